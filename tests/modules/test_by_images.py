"""Methods of a merge that look at images: what is merged, looked at, written and refused."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from torch import Tensor

from sta_lightning import merge
from sta_lightning.arithmetic.baselines.regmean_plus_plus import merged_input_grams
from sta_lightning.cli.main import main
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.encoders.pretrained import built_pretrained
from sta_lightning.engine import FusionOptions, TaskSource
from sta_lightning.errors import StaError
from sta_lightning.modules import DistilledMerging, MergeModule
from sta_lightning.modules.foretelling import ranking
from sta_lightning.modules.judge import Judge
from sta_lightning.modules.learned import learn
from sta_lightning.tasks import MultiTaskDataModule
from sta_lightning.tasks.unlabelled import Held, HeldImages
from sta_lightning.weights import read_metadata
from tests.modules.test_adamerging import NAMES, Poisoned, same
from tests.modules.test_adamerging import tasks as tasks  # a fixture
from tests.modules.test_foretelling import images, weights
from tests.modules.test_foretelling import judge as judge  # a fixture
from tests.toys import ToyDataset, quiet_trainer

FEW = ["average", "task_arithmetic", "tsv"]


def data() -> MultiTaskDataModule:
    return MultiTaskDataModule(list(NAMES), batch_size=9)


@pytest.fixture
def unlabelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training images whose labels nobody may look at."""
    plain = ToyDataset.__getitem__

    def opened(self: ToyDataset, index: int) -> Any:
        image, label = plain(self, index)
        return image, Poisoned() if self.start % 1000 == 0 else label

    monkeypatch.setattr(ToyDataset, "__getitem__", opened)


def evaluated(
    tasks: dict[str, TaskSource], pretrained: Path, output: Path | None = None, **settings: Any
) -> MergeModule:
    method = settings.pop("method", "auto")
    given = {"samples": 6, **({"candidates": FEW} if method == "auto" else {}), **settings}
    module = MergeModule({**tasks}, pretrained=str(pretrained), method=method, settings=given)
    module.output = output
    quiet_trainer().test(module, data(), verbose=False)
    return module


@pytest.mark.usefixtures("unlabelled")
def test_what_is_written_is_the_nearest_and_says_what_it_was_chosen_from(
    pretrained: Path, tasks: dict[str, TaskSource], judge: Judge, tmp_path: Path
) -> None:
    output = tmp_path / "fused.safetensors"
    module = evaluated(tasks, pretrained, output)
    opened = built_pretrained("miniature", str(pretrained), None)
    found = ranking(FusionOptions({**tasks}), opened, judge, FEW)
    assert module.about["ranking"] == [candidate.plain() for candidate in found]
    assert module.about["foretold"] == found[0].foretold.plain()
    best = found[0]
    job = FusionOptions({**tasks}, method=best.method, scale=best.scale).job()
    expected, written = job.in_memory(opened).weights, weights(str(output))
    assert same({name: written[name] for name in expected}, dict(expected))
    metadata = read_metadata(output)
    assert metadata["kind"] == f"fused:{best.method}"
    assert module.about.items() <= json.loads(metadata["settings"]).items()
    assert len(found) == 9
    assert "ranking" not in module.describe()
    assert module.describe()["method"] == best.method
    again = evaluated(tasks, pretrained, tmp_path / "again.safetensors")
    assert again.about == module.about
    assert (tmp_path / "again.safetensors").read_bytes() == output.read_bytes()


@pytest.mark.usefixtures("unlabelled")
def test_regmean_plus_plus_is_regmean_on_the_merged_blocks_inputs(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path
) -> None:
    output = tmp_path / "fused.safetensors"
    evaluated(tasks, pretrained, output, method="regmean_plus_plus", ratio=0.9)
    encoder = build_encoder("miniature", str(pretrained)).eval()
    finetuned = {name: weights(source.finetuned) for name, source in tasks.items()}
    grams = merged_input_grams(encoder, finetuned, images(6), ratio=0.9)
    expected = merge("regmean", encoder.state_dict(), finetuned, grams=grams, ratio=0.9)
    written = weights(str(output))
    assert same({name: written[name] for name in expected}, dict(expected))
    settings = json.loads(read_metadata(output)["settings"])
    assert settings.items() >= {"grams": "regmean_plus_plus", "samples": 6, "ratio": 0.9}.items()


def fitted(
    tasks: dict[str, TaskSource], pretrained: Path, seen: dict[str, Tensor], steps: int
) -> dict[str, Tensor]:
    """What the module makes of some images, all of them in every step."""
    held = {name: Held(batch) for name, batch in seen.items()}
    count = max(map(len, seen.values()))
    module = DistilledMerging(tasks, pretrained=str(pretrained))
    return learn(module, HeldImages(held, count, 0, crops=True), steps=steps)


@pytest.mark.usefixtures("unlabelled")
def test_distilled_is_what_a_fit_to_the_training_images_makes(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path
) -> None:
    output = tmp_path / "fused.safetensors"
    module = evaluated(tasks, pretrained, output, method="distilled", steps=3)
    expected = fitted(tasks, pretrained, images(6), 3)
    assert same(module.merge().weights, expected)
    written = weights(str(output))
    assert same({name: written[name] for name in expected}, expected)
    metadata = read_metadata(output)
    assert metadata["kind"] == "fused:distilled"
    settings = json.loads(metadata["settings"])
    wanted = {"steps": 3, "samples": 6, "crops": True, "merges": ["swudi_a", "tsv"], "granularity": "row"}
    assert settings.items() >= wanted.items()
    assert settings["coefficients"].keys() == {"merge/swudi_a", "merge/tsv", *NAMES}
    assert json.loads(metadata["sources"]).keys() >= {f"finetuned/{name}" for name in NAMES}

    half = MergeModule(
        {**tasks}, pretrained=str(pretrained), method="distilled", settings=wanted, dtype="float16"
    )
    half.output = tmp_path / "half.safetensors"
    quiet_trainer().test(half, data(), verbose=False)
    found = weights(str(half.output))
    assert same(
        {name: found[name] for name in expected}, {name: value.half() for name, value in expected.items()}
    )


def test_auto_takes_the_fit_if_it_is_the_nearest_on_images_that_it_has_not_seen(
    pretrained: Path, tasks: dict[str, TaskSource], judge: Judge, tmp_path: Path
) -> None:
    chosen = evaluated(tasks, pretrained, candidates=["average", "distilled"], steps=8)
    by_name = {row["method"]: row for row in chosen.about["ranking"] if row.get("scale", 1.0) == 1.0}
    halves = [{name: batch[first::2] for name, batch in images(6).items()} for first in (0, 1)]
    finetuned = {name: str(source.finetuned) for name, source in tasks.items()}
    heads = {name: ClassificationHead.load(str(source.head)) for name, source in tasks.items()}
    encoder = build_encoder("miniature", str(pretrained)).eval()
    unseen = [
        Judge(encoder, finetuned, heads, others).foretell(fitted(tasks, pretrained, seen, 8))
        for seen, others in (halves, halves[::-1])
    ]
    for what in ("divergence", "agreement"):
        mean = fmean(half.means[what] for half in unseen)
        assert by_name["distilled"][what] == pytest.approx(mean, abs=2e-6)
    expected = fitted(tasks, pretrained, images(6), 8)
    assert by_name["distilled"]["divergence"] > judge.foretell(expected).mean, "it is better on what it saw"
    assert chosen.about["ranking"][0]["method"] == "distilled"
    assert same(chosen.merge().weights, expected)
    assert chosen.describe()["method"] == "distilled"

    few = evaluated(tasks, pretrained, candidates=None, steps=1, samples=1)
    assert "distilled" not in {row["method"] for row in few.about["ranking"]}, "no image is left to judge by"


@pytest.mark.parametrize("candidates", [None, ["distilled"]])
def test_the_fit_is_of_the_whole_encoder(
    pretrained: Path, tasks: dict[str, TaskSource], candidates: list[str] | None
) -> None:
    module: Any = None
    for given in ({"skip": ["*.bias"]}, {"dare": 0.5, "statistics": "average"}):
        settings = {"candidates": candidates, "samples": 2, "steps": 1}
        options: Any = {"pretrained": str(pretrained), **given}
        with pytest.raises(StaError, match=f"has no place for '{next(iter(given))}'"):
            MergeModule({**tasks}, method="distilled", **options)
        if candidates is not None:
            with pytest.raises(StaError, match="has no place for"):
                MergeModule({**tasks}, method="auto", settings=settings, **options)
            continue
        module = MergeModule({**tasks}, method="auto", settings=settings, **options)
        quiet_trainer().test(module, data(), verbose=False)
        assert "distilled" not in {row["method"] for row in module.about["ranking"]}


def test_what_it_cannot_do_is_told(pretrained: Path, tasks: dict[str, TaskSource]) -> None:
    module = MergeModule({**tasks}, pretrained=str(pretrained), method="auto")
    for without_images in (module.merge, module.describe, lambda: module.save("x.safetensors")):
        with pytest.raises(StaError, match=r"'auto' looks at training images, and here are none"):
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
        ({"candidates": "tsv"}, "candidates='tsv' of method 'auto' must be of type list"),
        ({"candidates": ["distilled"], "samples": 1}, "samples=1"),
        ({"method": "distilled", "steps": 2.5}, r"steps=2\.5"),
        ({"method": "distilled", "steps": 0}, "0 steps"),
        ({"method": "distilled", "granularity": "layer"}, "granularity='layer'"),
    ):
        with pytest.raises(StaError, match=message):
            evaluated(tasks, pretrained, **settings)
    for name, message in (("random_mask", "'random_mask' reads"), ("tvs", "'tvs' is unknown")):
        with pytest.raises(StaError, match=message):  # before any image is read
            MergeModule({**tasks}, pretrained=str(pretrained), method="auto", settings={"candidates": [name]})
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
    assert "'auto' looks at training images" in error
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
