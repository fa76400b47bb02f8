"""A merge of models in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sta_lightning.arithmetic.checks import check_compatible, check_dtype, check_state, check_statistics
from sta_lightning.arithmetic.coefficients import Coefficients
from sta_lightning.arithmetic.dare import Dare
from sta_lightning.arithmetic.method import MergeMethod
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import run
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.arithmetic.states import Merged, StateDict, Statistics
from sta_lightning.errors import StaError, listed

PRETRAINED = "the pretrained model"


class MemorySink:
    """New tensors of the names, shapes, devices and types of a model, or floats of ``dtype``."""

    def __init__(self, like: StateDict, dtype: torch.dtype | None) -> None:
        self.weights: dict[str, Tensor] = {}
        self._flat: dict[str, Tensor] = {}
        for name, tensor in like.items():
            if tensor.is_floating_point():
                kept = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=tensor.device)
            else:
                kept = tensor.detach().clone(memory_format=torch.contiguous_format)
            self.weights[name], self._flat[name] = kept, kept.view(-1)

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is kept."""
        return self.weights[name].dtype

    def address(self, name: str) -> int | None:
        """The tensor's memory, if it is float32 on the CPU."""
        flat = self._flat[name]
        plain = flat.dtype == torch.float32 and flat.device.type == "cpu"
        return flat.data_ptr() if plain else None

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Keep some entries."""
        self._flat[name][start : start + values.numel()] = values


def run_in_memory(
    method: MergeMethod,
    base: StateDict,
    finetuned: Mapping[str, StateDict],
    importance: Mapping[str, StateDict] | None = None,
    *,
    grams: Mapping[str, StateDict] | None = None,
    control: StateDict | None = None,
    dare: Dare | None = None,
    coefficients: Coefficients | None = None,
    origin: StateDict | None = None,
    base_title: str = PRETRAINED,
    statistics: Statistics = "pretrained",
    dtype: torch.dtype | None = None,
    compiled: bool | None = None,
) -> Merged:
    """Merge models that are in memory.

    Args:
        method: what is done.
        base: the model that is changed; tensor name -> tensor of any shape.
        finetuned: task name -> model of the same names and shapes.
        importance: task name -> importance of every floating-point tensor, the same tasks.
        grams: task name -> Gram matrix ``[in, in]`` by the name of the layer's weight.
        control: the Gram matrices of what a forgetting spares.
        dare: what is dropped from the task vectors before they are merged.
        coefficients: by task and by layer; ``None`` for the method's own.
        origin: the model that the fine-tuned ones started from; ``None`` if it is ``base``.
        base_title: what to call ``base`` in a message.
        statistics: what running statistics become, see
            :class:`~sta_lightning.arithmetic.problem.Problem`.
        dtype: floating-point type of the result; ``None`` keeps each tensor's type in ``base``.
        compiled: see :func:`~sta_lightning.arithmetic.run.run`.

    Returns:
        The merged model, names in the order of ``base``, integer buffers copied from it, and the
        shares kept.

    Raises:
        StaError: see :func:`~sta_lightning.arithmetic.run.run`, or if ``coefficients`` name a task
            that is none, or tensors that are none.
    """
    check_dtype(dtype)
    check_state(base, base_title, finite=False)
    if origin is not None:
        check_state(origin, PRETRAINED, finite=False)
    check_tasks(finetuned)
    for task, model in finetuned.items():
        check_state(model, f"the model fine-tuned on '{task}'", finite=False)
    if method.needs_importance:
        importance = _check_scored(finetuned, importance)
    problem = Problem(
        base=in_memory(base),
        finetuned={task: in_memory(model) for task, model in finetuned.items()},
        scores={task: in_memory(scores) for task, scores in (importance or {}).items()},
        origin=None if origin is None else in_memory(origin),
        grams={task: in_memory(found) for task, found in (grams or {}).items()},
        control=in_memory(control or {}),
        statistics=check_statistics(statistics),
        base_title=base_title,
    )
    if dare is not None:
        problem = dare.drops(problem)
    if coefficients is not None:
        coefficients.check(base)
        problem = coefficients.over(finetuned).adjusted(problem)
    sink = MemorySink(base, dtype)
    return Merged(sink.weights, run(method, problem, sink, compiled=compiled))


def check_models(pretrained: StateDict, finetuned: Mapping[str, StateDict]) -> None:
    """Refuse, by a StaError, models that are none, not finite, or of other names or shapes."""
    check_tasks(finetuned)
    check_state(pretrained, PRETRAINED)
    for task, model in finetuned.items():
        name = f"the model fine-tuned on '{task}'"
        check_compatible(pretrained, model, reference_name=PRETRAINED, other_name=name)


def check_tasks(finetuned: Mapping[str, object]) -> None:
    """Refuse, by a StaError, what is no mapping, or empty."""
    if not isinstance(finetuned, Mapping):
        raise StaError(
            f"finetuned must map task names to state dicts, and is a {type(finetuned).__name__}. "
            "For example {'mnist': state_dict}."
        )
    if not finetuned:
        raise StaError("there is nothing to merge: give at least one fine-tuned model.")


def _check_scored(
    finetuned: Mapping[str, StateDict], importance: Mapping[str, StateDict] | None
) -> Mapping[str, StateDict]:
    if not isinstance(importance, Mapping):
        raise StaError(
            f"importance must map task names to importances, and is a {type(importance).__name__}. Compute "
            "them with importance_for."
        )
    missing, unknown = sorted(set(finetuned) - set(importance)), sorted(set(importance) - set(finetuned))
    if missing or unknown:
        raise StaError(
            f"every task needs its importance: missing for {listed(missing)}, left over for "
            f"{listed(unknown)}. Give fine-tuned models and importances under the same task names."
        )
    for task, scores in importance.items():
        check_state(scores, f"the importance of task '{task}'", finite=False)
    return importance
