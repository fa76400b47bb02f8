"""A model in a file, ready to classify pictures: encoder, head, class names and preprocessing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sta_lightning.encoders.architectures import MINIATURE, has_text_tower, is_hub_name
from sta_lightning.encoders.build import empty_encoder
from sta_lightning.encoders.head import ClassificationHead
from sta_lightning.encoders.heads import Classes, zeroshot_head
from sta_lightning.encoders.pictures import rgb
from sta_lightning.encoders.sources import tag_config, weights_file
from sta_lightning.encoders.spec import EncoderSpec, encoder_spec
from sta_lightning.encoders.union import UnionHead, task_discriminant
from sta_lightning.engine import TaskHead, read_head_file, read_heads
from sta_lightning.errors import StaError, listed
from sta_lightning.weights import SAFETENSORS, decoded, encoder_weights, read_metadata, sha256

AUTO = "auto"
"""In a task's place: all that the model's file knows."""


class Predictor:
    """An encoder with a head.

    Args:
        encoder: The encoder; it is put into evaluation mode.
        head: The head, of one task or of several.
        class_names: The classes in label order.
        spec: What the encoder expects of its input.
        tasks: Of a head of several tasks: their names, and how each was asked for.

    Raises:
        StaError: if head and class names do not fit each other.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: ClassificationHead | UnionHead,
        class_names: Sequence[str],
        spec: EncoderSpec,
        tasks: Mapping[str, str] | None = None,
    ) -> None:
        if head.num_classes != len(class_names):
            raise StaError(
                f"The head has {head.num_classes} classes, the task {len(class_names)}. Give the head that was made for it."
            )
        self.encoder, self.head = encoder.eval().requires_grad_(False), head
        self.class_names, self.spec, self.tasks = tuple(class_names), spec, dict(tasks or {})
        self._transform = _evaluation_transform(spec)

    def to(self, device: torch.device) -> Predictor:
        """Move encoder and head to a device."""
        self.encoder.to(device)
        self.head.to(device)
        return self

    def prepare(self, image: Any) -> Tensor:
        """Turn a PIL image into the encoder's input, float32 ``[3, S, S]``.

        Raises:
            StaError: see :func:`~sta_lightning.encoders.pictures.rgb`.
        """
        prepared: Tensor = self._transform(rgb(image))
        return prepared

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The features ``[B, D]``, float32, of images ``[B, 3, S, S]``.

        Raises:
            StaError: if the head does not fit the encoder.
        """
        device = next(self.head.buffers()).device
        found: Tensor = self.encoder(images.to(device)).float()
        if found.shape[-1] != self.head.num_features:
            raise StaError(
                f"The encoder gives {found.shape[-1]} features, the head reads {self.head.num_features}: it was made for "
                "another encoder. Give the head that belongs to this model."
            )
        return found

    def weigh(self, examples: Mapping[str, Tensor], batch_size: int = 32) -> None:
        """Weigh the heads of several tasks against each other by images of each, without labels.

        Args:
            examples: by task: images ``[n, 3, S, S]``.
            batch_size: how many are looked at together.

        Raises:
            StaError: see :func:`~sta_lightning.encoders.union.task_discriminant`.
        """
        assert isinstance(self.head, UnionHead)
        self.head.discriminant = task_discriminant(
            {
                task: torch.cat([self.features(part) for part in torch.split(examples[task], batch_size)])
                for task in self.tasks
            }
        )

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """The class probabilities ``[B, C]``, float32 on the CPU, of images ``[B, 3, S, S]``.

        Raises:
            StaError: if the head does not fit the encoder, or a feature is NaN or infinite.
        """
        found: Tensor = self.head(self.features(images)).softmax(dim=-1).cpu()
        if not bool(torch.isfinite(found).all()):
            raise StaError(
                "The model gives NaN or infinite features: its weights are damaged. Make it again."
            )
        return found


def open_predictor(
    path: str | Path,
    *,
    task: str | None = None,
    tasks: Sequence[str] | None = None,
    head: str | Path | None = None,
    encoder: str | None = None,
    image_size: int | None = None,
    pretrained: str | None = None,
    find_task: Callable[[str], Classes] | None = None,
) -> Predictor:
    """Open a fine-tuned or merged encoder for classification.

    Encoder and image size are what the file says of itself where they are not given. The head is
    that of the file ``head``; else the one that the model's file brings along for the task; else it
    is made from the task's prompts by the text tower of ``pretrained``.

    Args:
        path: The model: a weights file with an image encoder, alone or inside a larger model.
        task: The task's name, or anything that ``find_task`` knows; may be left out if the file
            brings one head, or the file ``head`` tells its class names. :data:`AUTO` for all tasks
            whose heads the file brings, else those that it was merged of.
        tasks: Several tasks, whose classes together are told apart; a class that two of them have
            is called by its task, as in ``digits/0``.
        head: A head's file.
        encoder: The encoder's name.
        image_size: Side of its input in pixels.
        pretrained: The pretrained CLIP, as for ``build_encoder``. A tag also tells preprocessing
            and activation.
        find_task: Finds class names and templates, for heads that do not tell them.

    Raises:
        StaError: if something is missing, broken, or does not fit.
    """
    metadata = read_metadata(path) if Path(path).suffix == SAFETENSORS else {}
    settings = _entry(metadata, "settings")
    name = encoder or settings.get("encoder")
    if not isinstance(name, str):
        raise StaError(
            f"'{path}' does not say which encoder it holds: give its name (--encoder), such as ViT-B-16."
        )
    if task == AUTO:
        tasks = _known_tasks(path, settings)
    size = image_size or settings.get("image_size")
    tag = _tag(name, pretrained) or _tag(name, settings.get("pretrained"))
    spec = encoder_spec(name, size if isinstance(size, int) else None, tag)

    def opened(task: str | None) -> tuple[ClassificationHead, tuple[str, ...]]:
        """A task's head and the names of its classes."""
        chosen = _head_of(path, task, head, find_task)
        if chosen is None:
            if task is None or find_task is None:
                raise StaError(
                    f"'{path}' brings no heads: give the task (--task) and its head's file (--head), or the pretrained CLIP "
                    "(--pretrained) to make one from the task's prompts."
                )
            classes = find_task(task)
            source = _for_prompts(path, name, pretrained, tag, metadata, task)
            weight = zeroshot_head(name, source, classes.class_names, classes.templates)
            return ClassificationHead(weight), classes.class_names
        names = chosen.class_names
        if names is None:
            if task is None or find_task is None:
                raise StaError(
                    "The head does not tell the names of its classes: give the task that it was made for (--task)."
                )
            names = find_task(task).class_names
        return ClassificationHead.of(chosen), names

    module = empty_encoder(name, tag, spec.image_size)
    module.load_state_dict(encoder_weights(path, names=module.state_dict()))
    if tasks is None:
        return Predictor(module, *opened(task), spec)
    asked = {_name_of(one, find_task): one for one in tasks}
    if len(asked) < len(tasks):
        raise StaError(f"The tasks {listed(tasks)} have one twice; give each once.")
    found = {own: opened(one) for own, one in asked.items()}
    names = _told_apart({own: names for own, (_, names) in found.items()})
    return Predictor(module, UnionHead({own: head for own, (head, _) in found.items()}), names, spec, asked)


def _known_tasks(path: str | Path, settings: Mapping[str, Any]) -> list[str]:
    """The tasks whose heads a file brings, else those that it was merged of."""
    known = list(read_heads(path)) or settings.get("tasks")
    if not isinstance(known, list) or not known:
        raise StaError(
            f"'{path}' brings no heads and does not say which tasks it was merged of: name them (--tasks)."
        )
    return [str(task) for task in known]


def _name_of(task: str, find_task: Callable[[str], Classes] | None) -> str:
    """A task's name: what it is called by, or as its YAML file says."""
    return task if find_task is None or not task.endswith((".yaml", ".yml")) else find_task(task).name


def _told_apart(names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The classes of all tasks; what two tasks have, by task."""
    count = Counter(name for own in names.values() for name in set(own))
    return tuple(f"{task}/{n}" if count[n] > 1 else n for task, own in names.items() for n in own)


def _head_of(
    path: str | Path, task: str | None, file: str | Path | None, find_task: Callable[[str], Classes] | None
) -> TaskHead | None:
    """The head of a file, or that which the model brings for the task, if any."""
    if file is not None:
        return read_head_file(file)
    heads = read_heads(path)
    if not heads:
        return None
    if task is None:
        if len(heads) == 1:
            return next(iter(heads.values()))
        raise StaError(f"'{path}' brings heads for {listed(heads, limit=20)}: say which with --task.")
    return heads.get(task) or heads.get(_name_of(task, find_task))


def _for_prompts(
    path: str | Path,
    name: str,
    pretrained: str | None,
    tag: str | None,
    metadata: Mapping[str, str],
    task: str,
) -> str | None:
    """What to make a zero-shot head from: as asked, else what the model was fine-tuned from."""
    if not has_text_tower(name):
        raise StaError(
            f"'{path}' brings no head for '{task}', and '{name}' has no text tower to make one: give its file (--head)."
        )
    if pretrained is not None or tag is not None:
        return pretrained or tag
    source = _entry(metadata, "sources").get("pretrained")
    said = _entry(metadata, "settings").get("pretrained")
    own = name == MINIATURE or is_hub_name(name)
    if own and said is None and metadata:
        digest = source.get("sha256") if isinstance(source, Mapping) else None
        if digest is None or digest == sha256(str(weights_file(name, None))):
            return None
    known = (source.get("file") if isinstance(source, Mapping) else None) or said
    hint = f" It was fine-tuned from '{known}'." if known else ""
    brought = read_heads(path)
    what = f"brings heads for {listed(brought, limit=20)}, not for '{task}'" if brought else "brings no heads"
    raise StaError(
        f"'{path}' {what}: give the head's file (--head), or the pretrained CLIP (--pretrained) to make one from the prompts of "
        f"'{task}'.{hint}"
    )


def _tag(name: str, pretrained: Any) -> str | None:
    """The value itself if it is a tag of open_clip for that encoder."""
    if not isinstance(pretrained, str) or not has_text_tower(name) or Path(pretrained).is_file():
        return None
    return pretrained if tag_config(name, pretrained) is not None else None


def _entry(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    found = decoded(metadata, name)
    return found if isinstance(found, dict) else {}  # another program may have one of that name


def _evaluation_transform(spec: EncoderSpec) -> Callable[[Any], Any]:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    wanted = PreprocessCfg(
        size=spec.image_size, mean=spec.mean, std=spec.std, interpolation=spec.interpolation
    )
    return cast(Callable[[Any], Any], image_transform_v2(wanted, is_train=False))
