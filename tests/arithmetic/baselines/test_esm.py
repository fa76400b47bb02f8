"""ESM: the oracle, what its definition implies, and what is refused."""

import numpy as np
import pytest
import torch

from sta_lightning.arithmetic import average
from sta_lightning.arithmetic.baselines.esm import Esm
from sta_lightning.errors import StaError
from tests.arithmetic.by_name import by_name
from tests.oracles import spectral as oracle

esm, tsv = by_name("esm", "grams"), by_name("tsv")

State = dict[str, torch.Tensor]
SHAPES = {
    "blocks.0.attn.weight": (18, 6),
    "blocks.1.attn.weight": (18, 6),
    "blocks.0.mlp.weight": (6, 14),
    "blocks.1.mlp.weight": (6, 14),
    "blocks.0.tall.weight": (20, 4),
    "proj": (8, 8),
    "bias": (7,),
}
LAYERS = [name for name in SHAPES if name.startswith("blocks")]


def models(tasks: int, rows: int = 50) -> tuple[State, dict[str, State], dict[str, dict[str, oracle.Array]]]:
    """Models, the later blocks changed more, and inputs of every layer."""
    draw = np.random.default_rng(tasks)
    base = {name: torch.tensor(draw.normal(size=shape)) for name, shape in SHAPES.items()}
    finetuned = {
        f"t{i}": {
            name: value + (0.1 + 0.05 * i + 0.1 * ("1" in name)) * torch.tensor(draw.normal(size=value.shape))
            for name, value in base.items()
        }
        for i in range(tasks)
    }
    inputs = {
        task: {n: draw.normal(size=(rows, SHAPES[n][1])) * draw.uniform(0.2, 2, SHAPES[n][1]) for n in LAYERS}
        for task in finetuned
    }
    return base, finetuned, inputs


def rule(deltas: list[oracle.Array], inputs: list[oracle.Array]) -> oracle.Array:
    """One layer, by singular value decompositions of the outputs' changes."""
    out, _ = deltas[0].shape
    count = int(out / len(deltas))
    us, vs, norms = [], [], []
    for delta, x in zip(deltas, inputs, strict=True):
        _, s, vh = np.linalg.svd(x @ delta.T, full_matrices=True)
        energies = np.zeros(out)
        energies[: len(s)] = np.square(s) * (s > 1e-9 * s[0])
        scales = (energies[:count] / energies[:count].mean()) ** 0.15
        scales = scales / scales.mean()
        us.append(vh[:count].T * scales)
        vs.append(scales[:, None] * (vh[:count] @ delta) * np.square(delta).sum())
        norms.append(np.sqrt(np.square(delta).sum()))
    u, v = np.hstack(us), np.vstack(vs) / np.mean(norms) ** 2
    columns = np.sqrt(np.square(v).sum(0))
    v = v * np.square(columns / columns.mean())
    halves = []
    for matrix in (u, v):
        p, s, qh = np.linalg.svd(matrix, full_matrices=False)
        halves.append((p * (s > 1e-7 * s[0])) @ qh * s.mean())
    return 2 * halves[0] @ halves[1]


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_it_is_the_oracle(tasks: int) -> None:
    base, finetuned, inputs = models(tasks)
    grams = {
        task: {name: torch.tensor(x.T @ x / len(x)) for name, x in layers.items()}
        for task, layers in inputs.items()
    }
    got = esm(base, finetuned, grams, scale=0.7)
    wanted = {}
    for name in LAYERS:
        deltas = [(finetuned[task][name] - base[name]).numpy() for task in finetuned]
        wanted[name] = rule(deltas, [inputs[task][name] for task in finetuned])
    for kind in ("attn", "mlp", "tall"):
        layers = [name for name in LAYERS if kind in name]
        norms = [np.linalg.norm(wanted[name]) for name in layers]
        for name, norm in zip(layers, norms, strict=True):
            scale = 0.7 * (norm / np.mean(norms)) ** 2
            np.testing.assert_allclose(
                (got[name] - base[name]).numpy(), scale * wanted[name], atol=1e-9, err_msg=name
            )
    torch.testing.assert_close(got["proj"], tsv(base, finetuned, scale=0.7)["proj"])
    mean = average(base, finetuned)
    torch.testing.assert_close(got["bias"], base["bias"] + 0.7 * (mean["bias"] - base["bias"]))


def test_nothing_stays_nothing_and_dead_inputs_have_no_directions() -> None:
    base, finetuned, _ = models(2)
    dead = {task: {name: torch.zeros((SHAPES[name][1],) * 2) for name in LAYERS} for task in finetuned}
    assert all(torch.equal(esm(base, finetuned, dead)[name], base[name]) for name in LAYERS)
    alive = {task: {name: torch.eye(SHAPES[name][1]) for name in LAYERS} for task in finetuned}
    same = esm(base, dict.fromkeys(finetuned, base), alive)
    assert all(torch.equal(same[name], base[name]) for name in base)


def test_a_scale_that_is_no_number_is_refused() -> None:
    with pytest.raises(StaError, match="scale must be a finite number"):
        Esm(float("nan"))
