"""The paper's architectures in full width and depth, with random weights and small images."""

from __future__ import annotations

import gc
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sta_lightning.arithmetic import FUSION_METHODS, make_method
from sta_lightning.arithmetic.gradients import gradient_sums
from sta_lightning.encoders import ClassificationHead, build_encoder, encoder_spec
from sta_lightning.encoders.predictor import open_predictor
from sta_lightning.encoders.pretrained import pretrained_for_merge
from sta_lightning.engine import FusionJob, TaskSource
from sta_lightning.weights import TensorFile, load_weights, save_weights

CLASSES = ("cat", "dog", "ship")
TASKS = ("first", "second")
CHECKED = ("ln_post.weight", "transformer.resblocks.1.mlp.c_fc.bias", "class_embedding")


def in_half(state: dict[str, Tensor], prefix: str = "visual.") -> dict[str, Tensor]:
    """Half the room on the disk."""
    return {prefix + name: tensor.detach().bfloat16() for name, tensor in state.items()}


def one(path: Path, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    with TensorFile(path) as file:
        found = file[name] if name in file else file[f"visual.{name}"]
        return np.asarray(found.read(slice(0, found.shape.numel()), torch.float64))


@pytest.mark.parametrize(
    ("name", "size", "width", "parameters"),
    [("ViT-B-32", 64, 512, 86e6), ("ViT-B-16", 32, 512, 85e6), ("ViT-L-14", 28, 768, 303e6)],
)
def test_built_trained_scored_fused_saved_loaded(
    name: str, size: int, width: int, parameters: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, "random", size)
    gc.collect()
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(parameters, rel=0.03)
    save_weights(tmp_path / "pretrained.safetensors", in_half(encoder.state_dict()))
    head = ClassificationHead(F.normalize(torch.randn(3, width), dim=-1) * 20)
    model = nn.Sequential(OrderedDict(encoder=encoder, head=head))
    images, labels = torch.randn(2, 3, size, size), torch.tensor([0, 2])
    files = {}
    for task in TASKS:
        # One step of training; the second task goes on from the first, which leaves two task
        # vectors all the same.
        before = {n: encoder.get_parameter(n).detach().clone() for n in CHECKED}
        F.cross_entropy(model(images), labels).backward()
        torch.optim.SGD(encoder.parameters(), lr=0.1).step()
        encoder.zero_grad(set_to_none=True)
        assert all(not torch.equal(before[n], encoder.get_parameter(n)) for n in CHECKED)
        sums = gradient_sums(
            model,
            F.cross_entropy,
            images,
            labels,
            names=[f"encoder.{n}" for n, _ in encoder.named_parameters()],
        )
        files[task] = TaskSource(
            str(tmp_path / f"{task}.safetensors"), str(tmp_path / f"{task}-scores.safetensors")
        )
        save_weights(tmp_path / f"{task}.safetensors", in_half(encoder.state_dict()))
        plain = {n: sums[f"encoder.{n}"] * p.detach().abs() for n, p in encoder.named_parameters()}
        save_weights(tmp_path / f"{task}-scores.safetensors", in_half(plain, ""), {"measure": "lp"})
        del sums, plain
    del model, encoder
    gc.collect()

    fused = tmp_path / "fused.safetensors"
    with ExitStack() as stack:
        # Of another size than its own an encoder is built for the merge; without one its file is
        # read as it is, in a third of the time.
        asked = size if name == "ViT-B-32" else None
        pretrained = pretrained_for_merge(name, str(tmp_path / "pretrained.safetensors"), asked, stack)
        job = FusionJob(files, "sta", make_method("sta", FUSION_METHODS, p=0.7, normalize="tensor"))
        job.write(pretrained, fused, heads={"second": head.for_file(CLASSES)})
    del pretrained
    gc.collect()

    for tensor in CHECKED:  # Eq. 13 to 19 for two tasks: of each entry the larger share of importance wins
        base = one(tmp_path / "pretrained.safetensors", tensor)
        delta = [one(tmp_path / f"{task}.safetensors", tensor) - base for task in TASKS]
        scores_of = [one(tmp_path / f"{task}-scores.safetensors", tensor) for task in TASKS]
        a, b = ((s - s.min()) / (s.max() - s.min()) for s in scores_of)
        wanted = base + (a > b) * delta[0] + (b > a) * delta[1]
        np.testing.assert_allclose(one(fused, tensor), wanted, rtol=1e-6, atol=1e-7)

    predictor = open_predictor(fused, task="second", image_size=None if asked else size)
    assert predictor.spec == encoder_spec(name, size)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8))
    found = predictor.probabilities(predictor.prepare(picture)[None])
    assert found.shape == (1, 3)
    assert predictor.class_names == CLASSES
    assert torch.equal(load_weights(fused)["head.second.weight"], head.weight)
    for file in tmp_path.iterdir():  # gigabytes, which pytest would keep for three runs
        file.unlink()
