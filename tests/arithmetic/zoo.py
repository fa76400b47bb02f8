"""Small networks, one for every way in which a parameter can be used, and whole encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

TOKENS = (6, 16)
IMAGE = (3, 32, 32)


class Net(nn.Module):
    """Parts and a function of them and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def attention(**settings: Any) -> dict[str, nn.Module]:
    return {"a": nn.MultiheadAttention(16, 4, **{"batch_first": True, **settings}), "o": nn.Linear(16, 3)}


def heads(module: Any, x: Tensor) -> Tensor:
    return cast(Tensor, module.a(x).view(-1, 6, 4, 4).transpose(1, 2))


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def attention_weights(module: Any, x: Tensor) -> Tensor:
    mixed, weights = module.a(x, x, x, average_attn_weights=False)
    return cast(Tensor, module.o((mixed + weights.amax(1) @ x).mean(1)))


CAUSAL = torch.ones(6, 6).tril() == 0


def under_no_grad(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        fixed = module.a(x) * module.s
    return cast(Tensor, module.o((module.a(x) * module.s + fixed).relu().mean(1)))


NETS: dict[str, Callable[[], Net]] = {
    "linear over tokens": lambda: Net(lambda m, x: m.a(x).relu().mean(1), a=nn.Linear(16, 3)),
    "linear over one token": lambda: Net(lambda m, x: m.a(x.mean(1)), a=nn.Linear(16, 3)),
    "linear over two dimensions of tokens": lambda: Net(
        lambda m, x: m.a(x.view(-1, 2, 3, 16)).relu().mean((1, 2)), a=nn.Linear(16, 3)
    ),
    "linear without bias": lambda: Net(lambda m, x: m.a(x).relu().mean(1), a=nn.Linear(16, 3, bias=False)),
    "linear with a constant bias": lambda: Net(
        lambda m, x: F.linear(x, m.w, x.new_ones(3)).relu().mean(1), w=weight(3, 16)
    ),
    "linear changed in place": lambda: Net(
        lambda m, x: m.o(F.relu_(m.a(x)).mean(1)), a=nn.Linear(16, 16), o=nn.Linear(16, 3)
    ),
    "product with a matrix": lambda: Net(lambda m, x: x.mean(1) @ m.w, w=weight(16, 3)),
    "product with a matrix over tokens": lambda: Net(
        lambda m, x: torch.matmul(x, m.w).relu().mean(1), w=weight(16, 3)
    ),
    "product with a matrix that is cast to its own type": lambda: Net(
        lambda m, x: x.mean(1) @ m.w.to(x.dtype).contiguous(), w=weight(16, 3)
    ),
    "layer norm": lambda: Net(
        lambda m, x: m.o(m.a(x).relu().mean(1)), a=nn.LayerNorm(16), o=nn.Linear(16, 3)
    ),
    "layer norm without bias": lambda: Net(
        lambda m, x: m.o(m.a(x).relu().mean(1)), a=nn.LayerNorm(16, bias=False), o=nn.Linear(16, 3)
    ),
    "layer norm over two dimensions": lambda: Net(
        lambda m, x: m.o(m.a(x).relu().mean(1)), a=nn.LayerNorm((6, 16)), o=nn.Linear(16, 3)
    ),
    "attention": lambda: Net(lambda m, x: m.o(m.a(x, x, x, need_weights=False)[0].mean(1)), **attention()),
    "attention, tokens first": lambda: Net(
        lambda m, x: m.o(m.a(*[x.transpose(0, 1)] * 3)[0].mean(0)), **attention(batch_first=False)
    ),
    "attention with weights": lambda: Net(attention_weights, **attention()),
    "attention with a mask": lambda: Net(
        lambda m, x: m.o(m.a(x, x, x, need_weights=False, attn_mask=CAUSAL)[0].mean(1)), **attention()
    ),
    "causal attention": lambda: Net(
        lambda m, x: m.o(m.a(x, x, x, need_weights=False, attn_mask=CAUSAL, is_causal=True)[0].mean(1)),
        **attention(),
    ),
    "attention with a mask per head": lambda: Net(
        lambda m, x: m.o(
            m.a(x, x, x, need_weights=False, attn_mask=CAUSAL.expand(4 * len(x), 6, 6))[0].mean(1)
        ),
        **attention(),
    ),
    "attention with a mask made of the data": lambda: Net(
        lambda m, x: m.o(m.a(x, x, x, attn_mask=(x @ x.mT).repeat_interleave(4, 0))[0].mean(1)), **attention()
    ),
    "cross-attention": lambda: Net(
        lambda m, x: m.o(m.a(x[:, :2], x, x.flip(1), need_weights=False)[0].mean(1)), **attention()
    ),
    "cross-attention between widths": lambda: Net(
        lambda m, x: m.o(m.a(x, x[..., :8], x[..., :4], need_weights=False)[0].mean(1)),
        **attention(kdim=8, vdim=4),
    ),
    "attention without bias": lambda: Net(lambda m, x: m.o(m.a(x, x, x)[0].mean(1)), **attention(bias=False)),
    "plain scaled dot product": lambda: Net(
        lambda m, x: m.o(F.scaled_dot_product_attention(*[heads(m, x)] * 3, ~CAUSAL).mean((1, 2))),
        a=nn.Linear(16, 16),
        o=nn.Linear(4, 3),
    ),
    "plain scaled dot product with a mask made of the data": lambda: Net(
        lambda m, x: m.o(
            F.scaled_dot_product_attention(*[heads(m, x)] * 3, (x @ x.mT)[:, None]).mean((1, 2))
        ),
        a=nn.Linear(16, 16),
        o=nn.Linear(4, 3),
    ),
    "plain scaled dot product of three dimensions": lambda: Net(
        lambda m, x: m.o(F.scaled_dot_product_attention(*[m.a(x)] * 3, is_causal=True).mean(1)),
        a=nn.Linear(16, 16),
        o=nn.Linear(16, 3),
    ),
    "transformer layer": lambda: Net(
        lambda m, x: m.o(m.a(x).mean(1)),
        a=nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        o=nn.Linear(16, 3),
    ),
    "broadcasting": lambda: Net(
        lambda m, x: m.o(((x + m.p) * m.s).mean(1)), p=weight(6, 16), s=weight(16), o=nn.Linear(16, 3)
    ),
    "a token that is expanded": lambda: Net(
        lambda m, x: m.o(torch.cat([m.p.expand(len(x), -1, -1), x], 1).sin().mean(1)),
        p=weight(1, 1, 16),
        o=nn.Linear(16, 3),
    ),
    "einsum": lambda: Net(lambda m, x: torch.einsum("btc,oc->bto", x, m.w).relu().mean(1), w=weight(3, 16)),
    "a product of parameters": lambda: Net(
        lambda m, x: (x @ (m.p @ m.q)).relu().mean(1), p=weight(16, 4), q=weight(4, 3)
    ),
    "weight norm": lambda: Net(
        lambda m, x: m.a(x).relu().mean(1), a=nn.utils.parametrizations.weight_norm(nn.Linear(16, 3))
    ),
    "embedding": lambda: Net(lambda m, x: m.a(x.argmax(-1)).mean(1), a=nn.Embedding(16, 3)),
    "batch norm": lambda: Net(
        lambda m, x: m.o(m.a(x.mT).relu().mean(2)), a=nn.BatchNorm1d(16), o=nn.Linear(16, 3)
    ),
    "group norm": lambda: Net(
        lambda m, x: m.o(m.a(x.mT).relu().mean(2)), a=nn.GroupNorm(4, 16), o=nn.Linear(16, 3)
    ),
    "convolution in one dimension": lambda: Net(lambda m, x: m.a(x.mT).relu().mean(2), a=nn.Conv1d(16, 3, 3)),
    "attention that leaves out tokens": lambda: Net(
        lambda m, x: m.o(m.a(x, x, x, key_padding_mask=x[..., 0] > 1)[0].mean(1)), **attention()
    ),
    "attention with more keys": lambda: Net(
        lambda m, x: m.o(m.a(x, x, x)[0].mean(1)), **attention(add_bias_kv=True, add_zero_attn=True)
    ),
    "a bias made of another": lambda: Net(
        lambda m, x: F.linear(x, m.w, m.b * 2).relu().mean(1), w=weight(3, 16), b=weight(3)
    ),
    "a layer used twice": lambda: Net(
        lambda m, x: m.o(m.a(m.a(x).relu()).mean(1)), a=nn.Linear(16, 16), o=nn.Linear(16, 3)
    ),
    "a layer used twice on one token": lambda: Net(
        lambda m, x: m.o(m.a(m.a(x.mean(1)).relu())), a=nn.Linear(16, 16), o=nn.Linear(16, 3)
    ),
    "a decoder that is the encoder turned": lambda: Net(
        lambda m, x: F.linear(m.a(x).relu(), m.a.weight.T).mean(1), a=nn.Linear(16, 8)
    ),
    "a rule and a sum": lambda: Net(
        lambda m, x: (m.a(x) * m.a.weight.sum()).relu().mean(1), a=nn.Linear(16, 3)
    ),
    "attention used twice": lambda: Net(
        lambda m, x: m.o(m.a(m.a(x, x, x)[0], x, x)[0].mean(1)), **attention()
    ),
    "norm used twice": lambda: Net(
        lambda m, x: m.o(m.a(m.a(x).relu()).relu().mean(1)), a=nn.LayerNorm(16), o=nn.Linear(16, 3)
    ),
    "a use without gradient": lambda: Net(
        under_no_grad, a=nn.Linear(16, 16), s=weight(16), o=nn.Linear(16, 3)
    ),
}


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "of patches": {"kernel_size": 8, "stride": 8},
    "of patches without bias": {"kernel_size": 8, "stride": 8, "bias": False},
    "with padding": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated, not square": {"kernel_size": (3, 2), "dilation": 2, "padding": (2, 0)},
    "in groups": {"kernel_size": 3, "stride": 3, "groups": 3},
    "with reflection": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "that covers the image": {"kernel_size": 32},
}


def clip(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: VisionTransformer(
        **{
            "image_size": 32,
            "patch_size": 8,
            "width": 32,
            "layers": 2,
            "heads": 4,
            "mlp_ratio": 2.0,
            "output_dim": 10,
            **settings,
        }
    )


def vit(**settings: Any) -> Callable[[], nn.Module]:
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4, "num_classes": 5}
    return lambda: cast(nn.Module, timm.create_model("vit_tiny_patch16_224", **sizes, **settings))


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "CLIP": clip(),
    "CLIP with layer scale": clip(ls_init_value=1.0),
    "CLIP with attention pooling": clip(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2),
    "timm": vit(),
    "timm with layer scale and norms of queries": vit(init_values=1.0, qk_norm=True),
    "residual network": lambda: cast(nn.Module, timm.create_model("resnet10t", num_classes=5)),
}


def convolution(views: int, **settings: Any) -> Net:
    """A convolution over one or two views of an image."""

    def forward(module: Any, x: Tensor) -> Tensor:
        seen = torch.stack([x, x.flip(-1)][:views], 1).flatten(0, 1)
        return cast(Tensor, module.c(seen).relu().mean((2, 3)).view(len(x), views, -1).amax(1))

    return Net(forward, c=nn.Conv2d(3, 9, **settings))


def samples_of(module: nn.Module, shape: tuple[int, ...], samples: int) -> tuple[Tensor, Tensor]:
    """Random inputs of a shape, and labels out of the classes that the module has."""
    images = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        classes = module.eval()(images[:1]).shape[-1]
    return images, torch.arange(samples) % classes
