"""RegMean++: RegMean whose Gram matrices are of what the merged blocks below put out.

Nguyen et al., "RegMean++: Enhancing Effectiveness and Generalization of Regression Mean for Model
Merging", arXiv 2508.03121.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor, nn

from sta_lightning.arithmetic.baselines.regmean import RegMean
from sta_lightning.arithmetic.depth import block_number
from sta_lightning.arithmetic.gram import input_grams
from sta_lightning.arithmetic.linear import Average
from sta_lightning.arithmetic.memory import check_models, run_in_memory
from sta_lightning.arithmetic.states import StateDict
from sta_lightning.errors import StaError


def merged_input_grams(
    encoder: nn.Module,
    finetuned: Mapping[str, StateDict],
    images: Mapping[str, Tensor],
    *,
    ratio: float = 0.95,
) -> dict[str, dict[str, Tensor]]:
    """The Gram matrices with which RegMean is RegMean++.

    Block after block, from the first: of each task's images, the inputs of the linear layers of its
    own fine-tuned block, where all blocks below and what lies in no block are merged already; then
    the block is merged by RegMean. What lies in no block is averaged. A block is what LiNeS takes
    for one (:func:`~sta_lightning.arithmetic.depth.block_number`), and blocks are
    computed in the order of their numbers.

    Args:
        encoder: the pretrained encoder; left as it is.
        finetuned: the fine-tuned encoders by task, of the same names and shapes, on the CPU.
        images: by task, ``[S, 3, H, W]``, on the device of the encoder.
        ratio: RegMean's.

    Returns:
        task -> name of a linear layer's weight ``[out, in]`` -> ``[in, in]``, on the CPU.

    Raises:
        StaError: the models do not fit, or no linear layer lies in a block.
    """
    # Merged on the CPU, where the fine-tuned models are; the module takes its weights from there.
    base = {name: tensor.cpu() for name, tensor in encoder.state_dict().items()}
    check_models(base, finetuned)
    module = deepcopy(encoder)
    method = RegMean(ratio)
    blocks: dict[int | None, list[str]] = {}
    for name in base:
        blocks.setdefault(block_number(name), []).append(name)
    outside = blocks.pop(None, [])
    merged = dict(run_in_memory(Average(), *_part(base, finetuned, outside)).weights)
    found: dict[str, dict[str, Tensor]] = {task: {} for task in finetuned}
    for number in sorted(block for block in blocks if block is not None):
        names = blocks[number]
        layers = [name for name in names if base[name].ndim == 2 and base[name].is_floating_point()]
        grams: dict[str, dict[str, Tensor]] = {}
        for task, model in finetuned.items():
            module.load_state_dict({**base, **merged, **{name: model[name] for name in names}})
            seen = input_grams(module, images[task], names=layers)
            grams[task] = {name: gram.cpu() for name, gram in seen.items()}
            found[task] |= grams[task]
        part = _part(base, finetuned, names)
        known = all(grams.values())
        made = run_in_memory(method, *part, grams=grams) if known else run_in_memory(Average(), *part)
        merged |= made.weights
    if not all(found.values()):
        raise StaError(
            "RegMean++ merges the linear layers of numbered blocks one block after the other, and the encoder has none. "
            "Choose another method."
        )
    return found


def _part(
    base: StateDict, finetuned: Mapping[str, StateDict], names: list[str]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Some tensors of every model."""
    models = {task: {name: model[name] for name in names} for task, model in finetuned.items()}
    return {name: base[name] for name in names}, models
