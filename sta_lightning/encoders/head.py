"""The last layer of a classifier: it belongs to its task, is mostly frozen, and is never merged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta_lightning.engine.heads import CLASSES_ENTRY, TaskHead, read_head_file
from sta_lightning.errors import StaError
from sta_lightning.weights import save_weights


class ClassificationHead(nn.Module):
    """Features to logits: ``weight @ features + bias``, normalised first if ``normalize`` is set.

    The weight keeps its scale: a zero-shot head carries CLIP's exp(logit_scale), a prototype head
    its factor of 20.

    Args:
        weight: Shape ``[C, D]``, one row a class. It is copied, as float32.
        bias: Shape ``[C]``, or ``None``.
        normalize: Whether features are divided by their Euclidean norm first.
        trainable: Whether weight and bias are parameters; they are buffers otherwise.

    Raises:
        StaError: if the shapes do not fit each other or a value is not finite.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, normalize: bool = True, trainable: bool = False
    ) -> None:
        super().__init__()
        TaskHead(weight, bias)  # which refuses shapes that do not fit each other
        tensors = {"weight": weight, "bias": bias}
        for name, tensor in tensors.items():
            copy = None if tensor is None else tensor.detach().to(torch.float32, copy=True)
            if copy is not None and not bool(torch.isfinite(copy).all()):
                raise StaError(f"The {name} of a classification head holds NaN or Inf: make the head again.")
            if trainable:
                self.register_parameter(name, None if copy is None else nn.Parameter(copy))
            else:
                self.register_buffer(name, copy)
        self.normalize = normalize

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return int(self.weight.shape[0])

    @property
    def num_features(self) -> int:
        """The number of features that it reads, D."""
        return int(self.weight.shape[1])

    def holds(self, state: Mapping[str, Tensor], prefix: str = "") -> bool:
        """Tell whether this head has the shapes of that in a state dict."""
        own = {
            prefix + name: tensor.shape
            for name, tensor in (("weight", self.weight), ("bias", self.bias))
            if tensor is not None
        }
        return own == {n: t.shape for n, t in state.items() if n in (f"{prefix}weight", f"{prefix}bias")}

    def forward(self, features: Tensor) -> Tensor:
        """Turn features ``[B, D]`` into logits ``[B, C]``."""
        if self.normalize:
            features = F.normalize(features, dim=-1)
        return F.linear(features, self.weight, self.bias)

    def get_extra_state(self) -> Tensor:
        """Return ``normalize``, so that a checkpoint describes the head wholly."""
        return torch.tensor(self.normalize)

    def set_extra_state(self, state: object) -> None:
        """Take ``normalize`` from a checkpoint."""
        self.normalize = bool(state)

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], prefix: str = "", *, trainable: bool = False
    ) -> ClassificationHead:
        """Make a head of a state dict, such as a Lightning checkpoint's with the prefix ``head.``.

        Raises:
            StaError: if there is no head under that prefix.
        """
        if f"{prefix}weight" not in state:
            raise StaError(
                f"A classification head was looked for under '{prefix}weight', but there is no such tensor."
            )
        normalize = bool(state.get(f"{prefix}_extra_state", torch.tensor(True)))
        return cls(
            state[f"{prefix}weight"], state.get(f"{prefix}bias"), normalize=normalize, trainable=trainable
        )

    def save(
        self,
        path: str | Path,
        metadata: Mapping[str, str] | None = None,
        *,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Write the head to a safetensors file, whose metadata tells ``normalize`` and classes."""
        tensors = {"weight": self.weight.detach()}
        if self.bias is not None:
            tensors["bias"] = self.bias.detach()
        said = {**(metadata or {}), "normalize": str(self.normalize).lower()}
        if class_names is not None:
            said[CLASSES_ENTRY] = json.dumps(list(class_names), ensure_ascii=False)
        save_weights(Path(path), tensors, said)

    @classmethod
    def load(cls, path: str | Path) -> ClassificationHead:
        """Read a head that ``save`` wrote.

        Raises:
            StaError: if the file is missing or holds no head.
        """
        return cls.of(read_head_file(path))

    @classmethod
    def of(cls, head: TaskHead) -> ClassificationHead:
        """Make the module of a head that came with a merged encoder."""
        return cls(head.weight, head.bias, normalize=head.normalize)

    def for_file(self, class_names: Sequence[str] | None = None) -> TaskHead:
        """Return what goes with a merged encoder into its file.

        Args:
            class_names: The classes in label order.
        """
        bias = None if self.bias is None else self.bias.detach().cpu()
        names = None if class_names is None else tuple(class_names)
        return TaskHead(self.weight.detach().cpu(), bias, self.normalize, names)
