"""Attention in a pass over several samples: the fused kernels, which ``vmap`` does not know, and ``nn.MultiheadAttention``."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sta_lightning.arithmetic.taylor.rules import project
from sta_lightning.arithmetic.taylor.tape import Tape

_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_PARAMETERS = inspect.signature(F.multi_head_attention_forward)


def attend(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """``F.scaled_dot_product_attention`` on the whole chunk, whose fused kernels take four dimensions.

    Args:
        tape: The chunk's.
        query: ``[..., heads, L, E]``, as vmap shows it, with as many dimensions as key and value.
        key: ``[..., heads, S, E]``.
        value: ``[..., heads, S, V]``.
        attn_mask: As there; one that is not the same for all heads goes the slow way.
        args: As there.
        kwargs: As there.

    Returns:
        ``[..., heads, L, V]``, as vmap shows it.
    """
    same = query.ndim == key.ndim == value.ndim and query.ndim >= 3
    leading = query.shape[:-3] == key.shape[:-3] == value.shape[:-3]
    if not same or not leading or (attn_mask is not None and attn_mask.ndim > 2):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)

    def forward(*batches: Tensor) -> Tensor:
        q, k, v = (batch.flatten(0, -4) for batch in batches[:3])
        mask = None
        if attn_mask is not None:
            # One mask for each sample, for all its heads and leading dimensions.
            mask = batches[3].repeat_interleave(len(q) // tape.samples, 0).unsqueeze(1)
        with sdpa_kernel(_KERNELS):
            output = F.scaled_dot_product_attention(q, k, v, mask, *args, **kwargs)
        return output.view(*batches[0].shape[:-1], output.shape[-1])

    masks = () if attn_mask is None else (attn_mask.expand(query.shape[-2], key.shape[-2]),)
    return tape.whole(forward, query, key, value, *masks)


def multi_head(tape: Tape, *args: Any, **kwargs: Any) -> Any:
    """``F.multi_head_attention_forward``, whose projections are linear layers and the rest of it has no parameters."""
    bound = _PARAMETERS.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    extras = ("bias_k", "bias_v", "static_k", "static_v", "key_padding_mask")
    scored = [given[name] for name in ("query", "key", "value", "attn_mask") if tape.ledger.name(given[name])]
    if scored or given["add_zero_attn"] or any(given[name] is not None for name in extras):
        return NotImplemented
    if given["training"] and given["dropout_p"] > 0:
        return NotImplemented
    names = (
        ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        if given["use_separate_proj_weight"]
        else ("in_proj_weight",)
    )
    weights = [given[name] for name in (*names, "out_proj_weight")]
    biases = [given[name] for name in ("in_proj_bias", "out_proj_bias")]
    if any(tape.ledger.name(tensor) is None for tensor in (*weights, *(b for b in biases if b is not None))):
        return NotImplemented
    if given["query"].ndim == 2:
        return NotImplemented
    return _multi_head(tape, given, names)


def _multi_head(tape: Tape, given: dict[str, Any], names: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
    """Shapes as in ``F.multi_head_attention_forward``: ``[L, N, E]`` in and out, weights ``[N, (heads,) L, S]``."""
    length, batch, width = given["query"].shape
    heads: int = given["num_heads"]
    source: int = given["key"].shape[0]

    def split(tensor: Tensor, tokens: int) -> Tensor:
        return tensor.reshape(tokens, batch, heads, width // heads).permute(1, 2, 0, 3)

    q, k, v = _projected(tape, given, names)
    query, key, value = split(q, length), split(k, source), split(v, source)
    mask: Tensor | None = given["attn_mask"]
    causal = bool(given["is_causal"]) and not given["need_weights"]
    if causal and mask is None:
        raise RuntimeError("is_causal needs attn_mask, as in F.multi_head_attention_forward")
    if mask is not None and mask.dtype == torch.bool:
        # True bars a position here, and admits it in scaled_dot_product_attention.
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, -math.inf)
    if mask is not None and mask.ndim == 3:
        mask = mask.view(batch, heads, length, source)
    weights = None
    if given["need_weights"]:
        scores = (query / math.sqrt(width // heads)) @ key.mT
        weights = (scores if mask is None else scores + mask).softmax(-1)
        mixed = weights @ value
        weights = weights.mean(1) if given["average_attn_weights"] else weights
    else:
        mixed = attend(tape, query, key, value, None if causal else mask, is_causal=causal)
    joined = mixed.permute(2, 0, 1, 3).reshape(length, batch, width)
    output = project(tape, joined, tape.take(given["out_proj_weight"]), tape.take(given["out_proj_bias"]))
    return output, weights


def _projected(tape: Tape, given: dict[str, Any], names: tuple[str, ...]) -> list[Tensor]:
    """Queries, keys and values, each ``[L or S, N, E]``; disjoint rows of one packed weight count as one use."""
    query, key, value = given["query"], given["key"], given["value"]
    width = query.shape[-1]
    bias = tape.take(given["in_proj_bias"])
    weights = [tape.take(given[name]) for name in names]
    if query is key and key is value and len(names) == 1:
        return list(project(tape, query, weights[0], bias).chunk(3, -1))
    thirds = [slice(start * width, (start + 1) * width) for start in range(3)]
    if len(names) == 1:
        return [
            project(tape, x, weights[0], bias, rows=rows, bias_rows=rows)
            for x, rows in zip((query, key, value), thirds, strict=True)
        ]
    return [
        project(tape, x, weight, bias, bias_rows=rows)
        for x, weight, rows in zip((query, key, value), weights, thirds, strict=True)
    ]
