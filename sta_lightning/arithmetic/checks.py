"""Checks of what is given, before any arithmetic: each error names tensors, model and way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, get_args

import torch
from torch import Tensor

from sta_lightning.arithmetic.sources import TensorSource
from sta_lightning.arithmetic.states import StateDict, Statistics, is_weight, nonfinite_names
from sta_lightning.errors import StaError, listed

Tensors = Mapping[str, Tensor | TensorSource]
"""Tensor name -> tensor, in memory or not."""


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse, by a StaError, a type that is neither ``None`` nor a floating-point one."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise StaError(
            f"dtype must be a floating-point torch type such as torch.float16, or None, and is {dtype!r}."
        )


def check_state(state: StateDict, name: str, *, finite: bool = True) -> None:
    """Whether something is a mapping name -> tensor with real, dense tensors, all of them finite.

    ``name`` is what the message calls it; a merge, which looks at every entry on its way, leaves
    out ``finite``.

    Raises:
        StaError: names the tensors that are no tensors, are complex, sparse or without data, or
            hold NaN or Inf.
    """
    if not isinstance(state, Mapping):
        raise StaError(
            f"{name} must be a mapping from tensor name to tensor (a state dict), and is a "
            f"{type(state).__name__}. For a module, give module.state_dict()."
        )
    if wrong := [str(key) for key, value in state.items() if not isinstance(value, Tensor)]:
        raise StaError(
            f"{name} holds values that are not tensors: {listed(wrong)}. Give the state dict itself, not the "
            "checkpoint around it."
        )
    if odd := [key for key, value in state.items() if not _is_plain(value)]:
        raise StaError(
            f"{name} holds complex, sparse, quantised or meta tensors, which cannot be merged: "
            f"{listed(odd)}. Convert them to dense real tensors first."
        )
    if finite:
        check_finite(state, name)


def check_finite(state: StateDict, name: str) -> None:
    """Whether every floating-point entry is a finite number.

    Raises:
        StaError: names the tensors that hold NaN or Inf.
    """
    if bad := nonfinite_names(state):
        raise StaError(
            f"{name} holds NaN or Inf in {_tensors(bad)}: {listed(bad)}. Nothing can be computed from it; "
            "train, score or export it again."
        )


def compare_names(
    reference: Tensors, other: Tensors, *, reference_name: str, other_name: str, kinds: bool = True
) -> None:
    """Whether two models have the same names, shapes and, with ``kinds``, floating-point tensors.

    Raises:
        StaError: names the tensors that differ.
    """
    lead = f"{other_name} does not match {reference_name}"
    odd = {"missing": sorted(set(reference) - set(other)), "unknown": sorted(set(other) - set(reference))}
    found = [f"{what} {_tensors(names)}: {listed(names)}" for what, names in odd.items() if names]
    if found:
        raise StaError(
            f"{lead}: {'; '.join(found)}. All must be the image encoder alone, of one architecture "
            "(sta_lightning.weights.encoder_weights takes it out of a larger checkpoint)."
        )
    shapes = [
        f"{name} {tuple(other[name].shape)} instead of {tuple(reference[name].shape)}"
        for name in reference
        if reference[name].shape != other[name].shape
    ]
    if shapes:
        raise StaError(
            f"{lead}: shapes differ in {listed(shapes)}. Both must be the same architecture at the same input size."
        )
    types = [
        f"{name} {other[name].dtype} instead of {reference[name].dtype}"
        for name in reference
        if kinds and reference[name].dtype.is_floating_point != other[name].dtype.is_floating_point
    ]
    if types:
        raise StaError(
            f"{lead}: a floating-point tensor stands against an integer one in {listed(types)}. Dequantise it first."
        )


def check_compatible(reference: StateDict, other: StateDict, *, reference_name: str, other_name: str) -> None:
    """:func:`compare_names` of two models in memory, and whether the other one is finite.

    Raises:
        StaError: names the tensors that differ or are not finite.
    """
    check_state(other, other_name)
    compare_names(reference, other, reference_name=reference_name, other_name=other_name)


def check_importance(model: StateDict, importance: StateDict, *, name: str) -> None:
    """Whether every weight of a model has one finite importance of its shape.

    Entries for the model's buffers are ignored. ``name`` is what the message calls it.

    Raises:
        StaError: names the tensors that are missing, unknown, of another shape, or not finite.
    """
    check_state(importance, name)
    compare_scores(model, importance, name)


def compare_scores(model: Tensors, importance: Tensors, name: str) -> None:
    """:func:`compare_names` of an importance with the weights of its model."""
    wanted = {key: tensor for key, tensor in model.items() if is_weight(key, tensor.dtype)}
    found = {key: scores for key, scores in importance.items() if key in wanted or key not in model}
    compare_names(wanted, found, reference_name="the model", other_name=name, kinds=False)


def _tensors(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout == torch.strided and tensor.device.type != "meta"
    return dense and not tensor.is_complex() and not tensor.is_quantized


_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def torch_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """The floating-point type of that name; None for None, and a type for itself.

    Raises:
        StaError: if there is none, or the type is of integers.
    """
    if name is None or isinstance(name, torch.dtype):
        check_dtype(name)
        return name
    if name not in _DTYPES:
        raise StaError(f"dtype={name!r} was asked for; choose one of {listed(_DTYPES)}.")
    return _DTYPES[name]


def check_statistics(value: str) -> Statistics:
    """Refuse, by a StaError, what running statistics cannot become."""
    if value not in get_args(Statistics):
        raise StaError(f"statistics={value!r} was asked for; choose one of {listed(get_args(Statistics))}.")
    return cast(Statistics, value)


def torch_device(name: str) -> torch.device:
    """The device of that name; a GPU without a number stays without one.

    Raises:
        StaError: if there is none on this machine.
    """
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a missing GPU
        raise StaError(
            f"device={name!r} was asked for, and this machine does not have it ({str(error).splitlines()[0]}). "
            "Use 'cpu', or 'cuda' where PyTorch finds a GPU."
        ) from error
