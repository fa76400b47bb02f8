"""Methods by name: those of the package, and a user's own without touching it."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from sta_lightning.arithmetic.entries import Block
from sta_lightning.arithmetic.method import Data, MergeMethod, VectorMethod
from sta_lightning.errors import StaError, listed

Own = TypeVar("Own", bound="type[MergeMethod] | Callable[..., Tensor]")

FUSION_METHODS: dict[str, type[MergeMethod]] = {}
"""The merging methods by name; :func:`fusion_method` adds one."""

FORGET_METHODS: dict[str, type[MergeMethod]] = {}
"""The forgetting methods by name; :func:`forget_method` adds one."""


@dataclass(frozen=True)
class Learned:
    """A way to merge that looks at images as it merges, and so is no :class:`MergeMethod`.

    Attributes:
        command: how it is run.
        settings: its settings with their defaults; the others are those of a :class:`MergeMethod`.
        reads_grams: whether it reads Gram matrices where every task has them.
    """

    title: str
    summary: str
    data: Data
    coefficient: str | None
    source: str
    command: str
    settings: Mapping[str, Any]
    reads_grams: bool = False


LEARNED_METHODS: Mapping[str, Learned] = {
    "adamerging": Learned(
        "AdaMerging",
        "coefficients for every task, or task and tensor, that make the merged model's predictions certain",
        "unlabelled test images",
        None,
        "Yang et al. 2024",
        "sta fit --config configs/adamerging/miniature.yaml",
        {
            "granularity": "tensor",
            "trim": None,
            "init": 0.3,
            "learning_rate": 1e-3,
            "steps": 500,
            "batch_size": 16,
        },
    ),
    "distilled": Learned(
        "distilled",
        "closed-form merges and task vectors, added up so as to predict what the fine-tuned models predict",
        "unlabelled samples",
        None,
        "this project",
        "sta merge --config configs/merge/miniature.yaml --model.method=distilled",
        {
            "merges": None,
            "granularity": "row",
            "init": 1.2,
            "learning_rate": 1e-2,
            "steps": 60,
            "samples": 32,
            "crops": True,
        },
        reads_grams=True,
    ),
    "auto": Learned(
        "auto",
        "of many merges that whose predictions are nearest to the fine-tuned models'",
        "unlabelled samples",
        None,
        "this project",
        "sta merge --config configs/merge/miniature.yaml --model.method=auto",
        {"candidates": None, "samples": 32, "steps": 60},
        reads_grams=True,
    ),
    "regmean_plus_plus": Learned(
        "RegMean++",
        "RegMean, a block after the other, on the inputs that the merged blocks below give",
        "unlabelled samples",
        None,
        "Nguyen et al. 2025",
        "sta merge --config configs/merge/miniature.yaml --model.method=regmean_plus_plus",
        {"ratio": 0.95, "samples": 256},
    ),
}
"""The ways to merge that look at images, by name."""


class FunctionMethod(VectorMethod):
    """A merging method that is a user's function of one tensor; every function has a subclass."""

    scope = "tensor"

    @staticmethod
    @abstractmethod
    def function(pretrained: Tensor, deltas: Tensor, **settings: Any) -> Tensor:
        """(pretrained, task vectors ``[N, *shape]``, settings) -> merged vector of one shape."""

    @override
    def vector(self, block: Block, state: Any) -> Tensor:
        """What the function makes of the tensor; a StaError if that has another shape."""
        deltas = torch.stack(list(block.deltas()))
        merged = type(self).function(block.base.clone(), deltas, **self.settings())
        if not isinstance(merged, Tensor) or merged.shape != block.base.shape:
            found = list(merged.shape) if isinstance(merged, Tensor) else type(merged).__name__
            raise StaError(
                f"method '{self.title}' must return the merged task vector, a tensor of shape {list(block.base.shape)} for "
                f"'{block.name}', and returned {found}."
            )
        return merged.to(block.base)


@dataclass(frozen=True)
class FunctionForgetting(FunctionMethod):
    """A forgetting method that is a user's function of one tensor: what it returns is taken out."""

    @override
    def vector(self, block: Block, state: Any) -> Tensor:
        """Minus what the function makes of the tensor."""
        return -super().vector(block, state)


def fusion_method(
    name: str, *, summary: str = "", data: Data = "nothing", coefficient: str | None = None, source: str = ""
) -> Callable[[Own], Own]:
    """Register a merging method of one's own, so that ``method="name"`` finds it.

    Args:
        name: under which it is found. An unused one.
        summary: what it does, in one line; "" for the first line of the docstring.
        data: what it needs besides the weights.
        coefficient: its setting that has to be tuned, by name.
        source: where it was published.

    Returns:
        A decorator, which returns what it is given: a :class:`MergeMethod`, or a function of one
        tensor, ``f(pretrained, deltas, **settings)``: the pretrained tensor and the task vectors
        ``[N, *shape]`` of the tasks in alphabetical order -> the merged task vector ``[*shape]``.
        Its keyword arguments with defaults are its settings.

    Raises:
        StaError: if the name is taken, or the function has other arguments.

    Example:
        >>> @fusion_method("largest", summary="at every position the largest change of all tasks")
        ... def largest(pretrained, deltas, scale: float = 1.0):
        ...     where = deltas.abs().argmax(0, keepdim=True)
        ...     return scale * deltas.gather(0, where)[0]
        >>> made = make_method("largest", FUSION_METHODS, settings={"scale": 0.5})
        >>> made.settings()
        {'scale': 0.5}
        >>> del FUSION_METHODS["largest"]
    """
    return _registering(
        FUSION_METHODS, name, summary=summary, data=data, coefficient=coefficient, source=source
    )


def forget_method(
    name: str, *, summary: str = "", data: Data = "nothing", coefficient: str | None = None, source: str = ""
) -> Callable[[Own], Own]:
    """Register a forgetting method of one's own; takes and raises what :func:`fusion_method` does.

    The function gets the pretrained tensor and the task vector as ``[1, *shape]``, and what it
    returns is taken out.
    """
    return _registering(
        FORGET_METHODS, name, summary=summary, data=data, coefficient=coefficient, source=source
    )


def _registering(
    methods: dict[str, type[MergeMethod]], name: str, **card: str | None
) -> Callable[[Own], Own]:
    def register(given: Own) -> Own:
        if name in methods:
            raise StaError(
                f"a method '{name}' is there already: {methods[name].__name__}. Choose another name."
            )
        made = given if isinstance(given, type) else function_method(given, methods, title=name)
        for attribute, value in card.items():
            # A class may say these of itself.
            if value not in ("", "nothing", None):
                setattr(made, attribute, value)
        methods[name] = made
        if not isinstance(given, type):
            _decorated[methods is FORGET_METHODS, given] = made
        return given

    return register


# What a decorator says of a function holds wherever the function is found.
_decorated: dict[tuple[bool, Any], type[MergeMethod]] = {}


def function_method(
    function: Callable[..., Tensor], methods: Mapping[str, type[MergeMethod]], title: str | None = None
) -> type[MergeMethod]:
    """The method that a function of one tensor is, see :func:`fusion_method`.

    Raises:
        StaError: if it does not take ``(pretrained, deltas, name=default, ...)``.
    """
    if (known := _decorated.get((methods is FORGET_METHODS, function))) is not None:
        return known
    name = getattr(function, "__name__", repr(function))
    parameters = list(inspect.signature(function).parameters.values())
    tensors, settings = parameters[:2], parameters[2:]
    plain = [p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY) for p in tensors]
    named = [p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in settings]
    optional = [p.default is not p.empty for p in settings]
    if len(tensors) < 2 or not all(plain + named + optional):
        raise StaError(
            f"the function '{name}' cannot merge: it must take (pretrained, deltas) and settings with defaults, and takes "
            f"{inspect.signature(function)}."
        )
    base = FunctionForgetting if methods is FORGET_METHODS else FunctionMethod
    made = dataclasses.make_dataclass(
        name,
        [(p.name, Any, dataclasses.field(default=p.default)) for p in settings],
        bases=(base,),
        namespace={
            "function": staticmethod(function),
            "title": title or name,
            "summary": (inspect.getdoc(function) or "").split("\n")[0],
        },
        frozen=True,
    )
    made.__module__ = function.__module__
    return made


def find_method(name: str, methods: Mapping[str, type[MergeMethod]]) -> type[MergeMethod]:
    """A method by its name, or by its place: ``package.module.Name``, ``file.py:name``.

    Raises:
        StaError: if there is no such method, or what is there is none.
    """
    if name in methods:
        return methods[name]
    kind = _kind(methods)
    place, separator, attribute = name.rpartition(":" if ":" in name else ".")
    if not separator or not attribute.isidentifier() or not place:
        raise StaError(
            f"{kind} method '{name}' is unknown. Choose one of {listed(methods, len(methods))}, or name your own as "
            "package.module.Name or file.py:name."
        )
    module = _module(place, f"{kind} method '{name}'")
    found = getattr(module, attribute, None)
    if isinstance(found, type) and issubclass(found, MergeMethod):
        return found
    if isinstance(found, type) or not callable(found):
        raise StaError(
            f"{kind} method '{name}': '{place}' has no method and no function '{attribute}'. It has "
            f"{listed(key for key, value in vars(module).items() if callable(value) and not key.startswith('_'))}."
        )
    return function_method(found, methods)


def _kind(methods: Mapping[str, type[MergeMethod]]) -> str:
    return "forgetting" if methods is FORGET_METHODS else "merging"


def _module(place: str, what: str) -> ModuleType:
    """A module by its dotted name (the working folder counts) or its file.

    Raises:
        StaError: if it is not there or cannot be imported.
    """
    try:
        if place.endswith(".py"):
            path = Path(place).resolve()
            spec = importlib.util.spec_from_file_location(f"_sta_own_{path.stem}", path)
            if spec is None or spec.loader is None or not path.is_file():
                raise ImportError(f"there is no file '{place}'")
            if spec.name in sys.modules and getattr(sys.modules[spec.name], "__file__", None) == str(path):
                return sys.modules[spec.name]
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up there
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[spec.name]
                raise
            return module
        here = str(Path.cwd())
        sys.path.insert(0, here)
        try:
            return importlib.import_module(place)
        finally:
            sys.path.remove(here)
    except StaError:
        raise
    except Exception as error:
        raise StaError(f"{what}: '{place}' cannot be imported: {type(error).__name__}: {error}.") from error


def settings_of(method: type[MergeMethod]) -> dict[str, Any]:
    """A method's settings with their defaults; ``dataclasses.MISSING`` for one without."""
    return {field.name: field.default for field in dataclasses.fields(method)}  # type: ignore[arg-type]


def has_setting(method: type[MergeMethod], name: str) -> bool:
    """Whether a method has a setting of that name."""
    return name in settings_of(method)


def make_method(
    name: str,
    methods: Mapping[str, type[MergeMethod]],
    *,
    scale: float | None = None,
    settings: Mapping[str, Any] | None = None,
    **common: Any,
) -> MergeMethod:
    """A method by its name, with the settings that it has.

    Args:
        name: one of ``methods``, or where a method of one's own is, see :func:`find_method`.
        methods: :data:`FUSION_METHODS` or :data:`FORGET_METHODS`.
        scale: its coefficient; ``None`` for its default.
        settings: settings by name, all of which it must have.
        common: settings of which it takes those that it has.

    Raises:
        StaError: if the method is unknown, is given a setting that it has not, or a setting is out
            of range.
    """
    found = find_method(name, methods)
    what = _kind(methods)
    has = settings_of(found)
    if scale is not None:
        if "scale" not in has:
            raise StaError(
                f"{what} method '{name}' has no coefficient, and scale={scale!r} was given. Leave scale out, or "
                "choose 'task_arithmetic'."
            )
        common["scale"] = scale
        if "scale" in (settings or {}):
            raise StaError(
                f"{what} method '{name}' was given its coefficient twice: scale={scale!r} and among its settings. Give it once."
            )
    unknown = [key for key in settings or {} if key not in has]
    if unknown:
        raise StaError(
            f"{what} method '{name}' has no setting {listed(unknown)}. It has {listed(has, len(has))}; `sta methods {name}` "
            "explains them."
        )
    chosen = {**{key: value for key, value in common.items() if key in has}, **(settings or {})}
    try:
        return found(**chosen)
    except TypeError as error:
        raise StaError(f"{what} method '{name}' cannot be made with {chosen}: {error}.") from error
