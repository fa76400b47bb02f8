"""Methods of a merge that look at images: what is merged, looked at, written and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sta_lightning import merge
from sta_lightning.arithmetic.baselines.regmean_plus_plus import merged_input_grams
from sta_lightning.cli.main import main
from sta_lightning.encoders import build_encoder
from sta_lightning.encoders.pretrained import built_pretrained
from sta_lightning.engine import FusionOptions, TaskSource
from sta_lightning.errors import StaError
from sta_lightning.modules import MergeModule
from sta_lightning.modules.foretelling import ranking
from sta_lightning.modules.judge import Judge
from sta_lightning.tasks import MultiTaskDataModule
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
