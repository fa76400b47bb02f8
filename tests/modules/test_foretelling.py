"""Foretelling and the method ``auto``: what is compared, what is chosen, what is looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sta_lightning import merge
from sta_lightning.cli.main import main
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.encoders.pretrained import built_pretrained
from sta_lightning.engine import FusionOptions, TaskSource
from sta_lightning.errors import StaError
from sta_lightning.modules import MergeModule
from sta_lightning.modules.foretelling import Judge, candidates, ranking
from sta_lightning.tasks import MultiTaskDataModule
from sta_lightning.weights import load_weights, read_metadata
from tests.modules.test_adamerging import NAMES, Poisoned, same
from tests.modules.test_adamerging import tasks as tasks  # a fixture
from tests.toys import ToyDataset, quiet_trainer

FEW = ["average", "task_arithmetic", "tsv"]


def data(**settings: Any) -> MultiTaskDataModule:
    return MultiTaskDataModule(list(NAMES), **{"batch_size": 9, **settings})


def images(count: int) -> dict[str, Tensor]:
    return {
        name: member.dataset("train").batch(member.scoring_samples(count, 0))
        for name, member in data().members.items()
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


def evaluated(
    tasks: dict[str, TaskSource], pretrained: Path, output: Path | None = None, **settings: Any
) -> MergeModule:
    given = {"candidates": FEW, "samples": 6, **settings}
    module = MergeModule({**tasks}, pretrained=str(pretrained), method="auto", settings=given)
    module.output = output
    quiet_trainer().test(module, data(), verbose=False)
    return module


def test_what_is_written_is_the_nearest_and_says_what_it_was_chosen_from(
    pretrained: Path,
    tasks: dict[str, TaskSource],
    judge: Judge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = ToyDataset.__getitem__

    def unlabelled(self: ToyDataset, index: int) -> Any:
        image, label = plain(self, index)
        training = self.start % 1000 == 0
        return image, Poisoned() if training else label

    monkeypatch.setattr(ToyDataset, "__getitem__", unlabelled)
    output = tmp_path / "fused.safetensors"
    module = evaluated(tasks, pretrained, output)
    opened = built_pretrained("miniature", str(pretrained), None)
    found = ranking(FusionOptions({**tasks}), opened, judge, FEW)
    assert module.ranking == found
    best = found[0]
    job = FusionOptions({**tasks}, method=best.method, scale=best.scale).job()
    expected, written = job.in_memory(opened).weights, weights(str(output))
    assert same({name: written[name] for name in expected}, dict(expected))
    metadata = read_metadata(output)
    assert metadata["kind"] == f"fused:{best.method}"
    assert json.loads(metadata["settings"])["ranking"] == [candidate.plain() for candidate in found]
    assert len(found) == 9
    assert "ranking" not in module.describe()
    assert module.describe()["method"] == best.method
    again = evaluated(tasks, pretrained, tmp_path / "again.safetensors")
    assert again.ranking == found
    assert (tmp_path / "again.safetensors").read_bytes() == output.read_bytes()


def test_what_it_cannot_do_is_told(pretrained: Path, tasks: dict[str, TaskSource]) -> None:
    module = MergeModule({**tasks}, pretrained=str(pretrained), method="auto")
    for without_images in (module.merge, module.describe, lambda: module.save("x.safetensors")):
        with pytest.raises(StaError, match=r"'auto' chooses by predictions.*here are none"):
            without_images()
    with pytest.raises(StaError, match="here are none"):
        merge("auto", str(pretrained), {name: str(source.finetuned) for name, source in tasks.items()})
    with pytest.raises(StaError, match="brings none of 'stripes'"):
        quiet_trainer().test(module, MultiTaskDataModule(["spots"]), verbose=False)
    with pytest.raises(StaError, match=r"25 samples.*24 training images"):
        evaluated(tasks, pretrained, samples=25)
    for settings, message in (
        ({"keep": 0.2}, "'auto' has no setting 'keep'"),
        ({"samples": 0}, "samples=0"),
    ):
        with pytest.raises(StaError, match=message):
            evaluated(tasks, pretrained, **settings)
    for name, message in (("random_mask", "'random_mask' reads"), ("tvs", "'tvs' is unknown")):
        with pytest.raises(StaError, match=message):
            evaluated(tasks, pretrained, candidates=[name])
    with pytest.raises(StaError, match="'auto' has no setting 'scale'"):
        MergeModule({**tasks}, pretrained=str(pretrained), method="auto", scale=0.5)


def test_the_command_line_shows_the_ranking_and_refuses_files_alone(
    pretrained: Path,
    tasks: dict[str, TaskSource],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [f"{name}={source.finetuned}" for name, source in tasks.items()]
    output = tmp_path / "fused.safetensors"
    assert main(["merge", str(pretrained), *files, "-o", str(output), "--method", "auto"]) == 2
    error = capsys.readouterr().err
    assert "'auto' chooses by predictions" in error
    assert "Traceback" not in error
    assert not output.exists()
    given = {name: {"finetuned": source.finetuned, "head": source.head} for name, source in tasks.items()}
    words = [
        *("merge", "--evaluate=true", f"--output={output}", f"--model.tasks={json.dumps(given)}"),
        *(f"--model.pretrained={pretrained}", "--model.encoder=miniature", "--model.method=auto"),
        "--model.settings={candidates: [tsv, average], samples: 4}",
        *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.logger=false"),
        "--trainer.enable_progress_bar=false",
    ]
    assert main(words) == 0, capsys.readouterr().err
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first = lines.index(["method", "scale", "divergence", "agreement"])
    shown = lines[first + 1 : first + 6]
    assert {line[0] for line in shown} == {"tsv", "average"}
    found = json.loads(read_metadata(output)["settings"])["ranking"]
    assert [line[0] for line in shown] == [row["method"] for row in found]
