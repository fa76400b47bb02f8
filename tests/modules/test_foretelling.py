"""Foretelling: what is compared, and which merge is the nearest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.func import functional_call

from sta_lightning import merge
from sta_lightning.cli.main import main
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.encoders.pretrained import built_pretrained
from sta_lightning.engine import FusionOptions, TaskSource
from sta_lightning.errors import StaError
from sta_lightning.modules import MergeModule
from sta_lightning.modules.foretelling import candidates, ranking
from sta_lightning.modules.judge import Judge
from sta_lightning.tasks import MultiTaskDataModule
from sta_lightning.weights import load_weights, save_weights
from tests.modules.test_adamerging import NAMES
from tests.modules.test_adamerging import tasks as tasks  # a fixture
from tests.toys import quiet_trainer


def images(count: int) -> dict[str, Tensor]:
    return {
        name: member.dataset("train").batch(member.scoring_samples(count, 0))
        for name, member in MultiTaskDataModule(list(NAMES)).members.items()
    }


def weights(path: str | None) -> dict[str, Tensor]:
    return {name.removeprefix("visual."): tensor for name, tensor in load_weights(str(path)).items()}


@pytest.fixture
def judge(pretrained: Path, tasks: dict[str, TaskSource]) -> Judge:
    finetuned = {name: str(source.finetuned) for name, source in tasks.items()}
    heads = {name: ClassificationHead.load(str(source.head)) for name, source in tasks.items()}
    return Judge(build_encoder("miniature", str(pretrained)).eval(), finetuned, heads, images(6))


def test_it_compares_probabilities_and_classes(
    pretrained: Path, tasks: dict[str, TaskSource], judge: Judge
) -> None:
    encoder = build_encoder("miniature", str(pretrained)).double().eval()

    def probabilities(task: str, state: Mapping[str, Tensor]) -> np.ndarray:
        head = ClassificationHead.load(str(tasks[task].head)).double()
        double = {name: tensor.double() for name, tensor in state.items()}
        with torch.no_grad():
            logits = head(functional_call(encoder, double, (images(6)[task].double(),))).numpy()
        values = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(values / values.sum(-1, keepdims=True))

    other = weights(tasks["spots"].finetuned)
    found = judge.foretell(other)
    p, q = (probabilities("stripes", state) for state in (weights(tasks["stripes"].finetuned), other))
    assert found.divergence["stripes"] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)
    assert found.agreement["stripes"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert (found.divergence["spots"], found.agreement["spots"]) == (pytest.approx(0, abs=1e-6), 1)
    assert found.mean == pytest.approx(found.divergence["stripes"] / 2, abs=1e-6)


def test_the_nearest_comes_first(pretrained: Path, tasks: dict[str, TaskSource]) -> None:
    # The same model twice: its average is that model, and no other candidate is.
    same_twice = {name: TaskSource(tasks["spots"].finetuned) for name in NAMES}
    opened = built_pretrained("miniature", str(pretrained), None)
    head = ClassificationHead.load(str(tasks["spots"].head))
    judge = Judge(
        build_encoder("miniature", str(pretrained)).eval(),
        {name: str(source.finetuned) for name, source in same_twice.items()},
        dict.fromkeys(NAMES, head),
        images(4),
    )
    options = FusionOptions({**same_twice})
    found = ranking(options, opened, judge, ["task_arithmetic", "average"])
    assert [candidate.method for candidate in found] == ["average", *["task_arithmetic"] * 4]
    assert found[0].foretold.mean == pytest.approx(0, abs=1e-6)
    # 0.4 times twice the vector: 1.2 times that is nearly all of it.
    assert [candidate.scale for candidate in found][:2] == [None, pytest.approx(0.48)]
    means = [candidate.foretold.mean for candidate in found]
    assert means == sorted(means)
    assert ranking(options, opened, judge, ["task_arithmetic", "average"]) == found


def test_a_candidate_s_coefficient_multiplies_the_merged_vector() -> None:
    draw = torch.Generator().manual_seed(0)
    base = {
        f"blocks.{block}.{name}": torch.randn(shape, generator=draw)
        for block in range(2)
        for name, shape in (("attn.weight", (8, 6)), ("mlp.weight", (6, 8)), ("ln.bias", (6,)))
    }
    models = {
        name: {key: t + 0.1 * torch.randn(t.shape, generator=draw) for key, t in base.items()}
        for name in ("a", "b", "c")
    }
    grams = {
        name: {key: t.T @ t for key, t in model.items() if t.ndim == 2} for name, model in models.items()
    }
    found = candidates(grams=True)
    assert {"swudi_a", "tsv", "average", "spectral_sta", "regmean"} <= found.keys()
    assert not {"sta", "fisher", "vectors", "random_mask"} & found.keys()
    assert found.keys() - candidates(grams=False).keys() >= {"spectral_sta", "regmean", "esm"}
    for method, scales in found.items():
        if scales == (None,):
            continue
        first, *others = scales
        once = merge(method, base, models, grams=grams, scale=first)
        for scale in others:
            assert first is not None
            assert scale is not None
            moved = merge(method, base, models, grams=grams, scale=scale)
            for name, value in moved.items():
                expected = base[name] + scale / first * (once[name] - base[name])
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=f"{method}: {name}")


LAYERS = ("transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.1.mlp.c_fc.weight")


@pytest.fixture
def measured(tasks: dict[str, TaskSource], tmp_path: Path) -> dict[str, TaskSource]:
    """The tasks with Gram matrices of two layers; what comes into them is told by a seed."""
    found = {}
    for seed, (task, source) in enumerate(tasks.items()):
        state, file = weights(source.finetuned), str(tmp_path / f"{task}-gram.safetensors")
        x = {name: inputs(seed, state[name].shape[1]) for name in LAYERS}
        grams = {name: torch.from_numpy(rows.T @ rows / len(rows)).float() for name, rows in x.items()}
        save_weights(file, grams, {"measure": "gram"})
        found[task] = TaskSource(source.finetuned, head=source.head, gram=file)
    return found


def inputs(seed: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((300, width))


def test_a_merge_foretells_itself(
    pretrained: Path, measured: dict[str, TaskSource], judge: Judge, tmp_path: Path
) -> None:
    board, numbers = TensorBoardLogger(tmp_path, default_hp_metric=False), CSVLogger(tmp_path)
    data = MultiTaskDataModule(list(NAMES), batch_size=9)
    module = MergeModule({**measured}, pretrained=str(pretrained), method="average", foretell=6)
    quiet_trainer(logger=[board, numbers]).test(module, data, verbose=False)
    found = module.foretold
    assert found is not None
    merged = module.merge().weights
    assert found["samples"] == 6
    assert found["tasks"] == judge.foretell(merged).plain()
    assert found["layers"].keys() == set(LAYERS)
    base = build_encoder("miniature", str(pretrained)).state_dict()
    for name in LAYERS:
        for seed, (task, source) in enumerate(measured.items()):
            x, own = inputs(seed, base[name].shape[1]), weights(source.finetuned)[name]
            y, right, before = (x @ state.double().numpy().T for state in (merged[name], own, base[name]))
            expected = np.linalg.norm(y - right) ** 2 / np.linalg.norm(right - before) ** 2
            assert found["layers"][name][task] == pytest.approx(expected, rel=1e-5)
    assert "error (%)" in (Path(board.log_dir) / "foretold.svg").read_text(encoding="utf-8")
    logged = {**numbers.experiment.metrics[-1]} if numbers.experiment.metrics else {}
    rows = (Path(numbers.log_dir) / "metrics.csv").read_text(encoding="utf-8")
    assert "foretold/spots/divergence" in rows + str(logged)
    assert f"foretold/stripes/{LAYERS[1]}" in rows + str(logged)


def test_the_command_line_shows_and_writes_what_is_foretold(
    pretrained: Path, measured: dict[str, TaskSource], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "fused.safetensors"
    given = {
        task: {"finetuned": files.finetuned, "head": files.head, "gram": files.gram}
        for task, files in measured.items()
    }
    words = [
        *("merge", f"--output={output}", f"--model.tasks={json.dumps(given)}", "--model.method=tsv"),
        *(f"--model.pretrained={pretrained}", "--model.encoder=miniature", "--model.foretell=4"),
        *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.logger=false"),
        "--trainer.enable_progress_bar=false",
    ]
    assert main([*words, "--evaluate=true"]) == 0, capsys.readouterr().err
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first = lines.index(["task", "divergence", "agreement", "layer", "error"])
    found = json.loads((tmp_path / "fused-foretold.json").read_text())
    for line in lines[first + 1 : first + 3]:
        row, layers = found["tasks"][line[0]], [row[line[0]] for row in found["layers"].values()]
        shown = (row["divergence"], 100 * row["agreement"], np.mean(layers))
        assert [float(word.rstrip("%")) for word in line[1:]] == pytest.approx(shown, abs=0.06)
    output.unlink()
    assert main([*words[:-4], "--evaluate=false"]) == 2
    assert "foretell=4 looks at training images, and here are none" in capsys.readouterr().err
    assert not output.exists()


def test_what_cannot_be_foretold_is_told(
    pretrained: Path, tasks: dict[str, TaskSource], measured: dict[str, TaskSource]
) -> None:
    with pytest.raises(StaError, match="foretell=0 was asked for"):
        MergeModule({**tasks}, pretrained=str(pretrained), foretell=0)
    vectors = {task: TaskSource(vector=source.finetuned) for task, source in tasks.items()}
    with pytest.raises(StaError, match="foretell reads the fine-tuned encoder"):
        MergeModule({**vectors}, pretrained=str(pretrained), method="vectors", foretell=4)
    broken = load_weights(str(measured["spots"].gram))
    broken[LAYERS[0]] = broken[LAYERS[0]].clone().fill_(float("nan"))
    save_weights(str(measured["spots"].gram), broken, {"measure": "gram"}, allow_nonfinite=True)
    module = MergeModule({**measured}, pretrained=str(pretrained), method="average", foretell=4)
    with pytest.raises(StaError, match=rf"'spots': its .* NaN or Inf in tensor '{LAYERS[0]}'"):
        quiet_trainer().test(module, MultiTaskDataModule(list(NAMES)), verbose=False)
