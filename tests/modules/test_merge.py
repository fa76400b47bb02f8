"""Merging as a module: what is loaded, refused, saved, evaluated and logged."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib import pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from sta_lightning import fuse
from sta_lightning.arithmetic import task_arithmetic
from sta_lightning.callbacks.board import RESULTS
from sta_lightning.encoders import build_encoder
from sta_lightning.engine import Job
from sta_lightning.errors import StaError
from sta_lightning.modules import CLIPClassifier, MergeModule, MultiTaskEvaluation, TaskSource
from sta_lightning.tasks import MultiTaskDataModule, TaskDataModule
from sta_lightning.weights import load_weights, read_metadata, save_weights, sha256
from tests.toys import entered, quiet_trainer, write_finetuned, write_importance

NAMES = ("spots", "stripes")


@pytest.fixture(scope="module")
def tasks(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskSource]:
    folder = tmp_path_factory.mktemp("tasks")
    return {
        name: TaskSource(
            str(write_finetuned(folder / f"{name}.safetensors", pretrained, seed)),
            str(write_importance(folder / f"{name}-importance.safetensors", pretrained, seed)),
        )
        for seed, name in enumerate(NAMES)
    }


def data(**settings: Any) -> MultiTaskDataModule:
    return MultiTaskDataModule(list(NAMES), **{"control": "watch", "batch_size": 4, **settings})


def states(pretrained: Path, tasks: dict[str, TaskSource]) -> tuple[Any, Any, Any]:
    base = build_encoder("miniature", str(pretrained)).state_dict()
    finetuned = {
        name: {n.removeprefix("visual."): t for n, t in load_weights(source.finetuned).items()}
        for name, source in tasks.items()
    }
    importance = {name: load_weights(source.importance or "") for name, source in tasks.items()}
    return base, finetuned, importance


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(t, second[n]) for n, t in first.items())


def test_it_fuses_what_the_library_fuses_once(pretrained: Path, tasks: dict[str, TaskSource]) -> None:
    base, finetuned, importance = states(pretrained, tasks)
    module = MergeModule(tasks, pretrained=str(pretrained), p=0.5)
    assert same(module.merge().weights, fuse(base, finetuned, importance, p=0.5))
    assert module.merge() is module.merge()
    assert not any("_original" in name for name in module.state_dict())


def test_measures_are_made_from_the_lp_file_or_from_weights(
    pretrained: Path, tasks: dict[str, TaskSource]
) -> None:
    base, finetuned, importance = states(pretrained, tasks)
    for measure, expected in (
        ("lp+amp", {k: {n: t * finetuned[k][n] ** 2 for n, t in v.items()} for k, v in importance.items()}),
        ("amp", {k: {n: t**2 for n, t in v.items()} for k, v in finetuned.items()}),
        ("delta-amp", {k: {n: (t - base[n]) ** 2 for n, t in v.items()} for k, v in finetuned.items()}),
    ):
        module = MergeModule(tasks, pretrained=str(pretrained), measure=measure)
        assert same(module.merge().weights, fuse(base, finetuned, expected)), measure


def test_other_methods_need_no_importance(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path
) -> None:
    base, finetuned, _ = states(pretrained, tasks)
    # In a folder of their own: importance that lies beside a checkpoint is found.
    bare = {
        name: {"finetuned": shutil.copy(str(source.finetuned), tmp_path)} for name, source in tasks.items()
    }
    module = MergeModule(bare, pretrained=str(pretrained), method="task_arithmetic", scale=0.3)  # type: ignore[arg-type]
    assert same(module.merge().weights, task_arithmetic(base, finetuned, scale=0.3))
    with pytest.raises(StaError, match=r"'spots'.*no importance file"):
        MergeModule(bare, pretrained=str(pretrained), method="sta").merge()  # type: ignore[arg-type]


def test_the_file_tells_its_origin_and_loads_again(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path
) -> None:
    module = MergeModule(tasks, pretrained=str(pretrained), p=0.6)
    path = module.save(tmp_path / "out" / "fused.safetensors")
    again = build_encoder("miniature", str(path)).state_dict()
    assert same(again, module.merge().weights)
    metadata = read_metadata(path)
    assert metadata["kind"] == "fused:sta"
    settings, sources = json.loads(metadata["settings"]), json.loads(metadata["sources"])
    assert settings["p"] == 0.6
    assert (settings["method"], settings["measure"], settings["normalize"]) == ("sta", "lp", "tensor")
    assert settings["tasks"] == list(NAMES)
    assert "scale" not in settings
    assert "version" in metadata
    expected = {"pretrained": pretrained}
    for name, source in tasks.items():
        expected |= {
            f"finetuned/{name}": Path(source.finetuned),
            f"importance/{name}": Path(source.importance or ""),
        }
    assert {role: entry["sha256"] for role, entry in sources.items()} == {
        role: sha256(file) for role, file in expected.items()
    }
    first = path.read_bytes()
    assert MergeModule(tasks, pretrained=str(pretrained), p=0.6).save(path).read_bytes() == first


def test_the_type_of_the_result(pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path) -> None:
    module = MergeModule(tasks, pretrained=str(pretrained), dtype="float16")
    found = load_weights(module.save(tmp_path / "half.safetensors"))
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}


def test_each_task_is_evaluated_with_its_own_head(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path
) -> None:
    # A head that always says class 0: its task's accuracy is the share of that class, the other's
    # is not touched.
    head = torch.zeros(3, 128)
    save_weights(
        tmp_path / "head.safetensors",
        {"weight": head, "bias": torch.tensor([1.0, 0.0, 0.0])},
        {"normalize": "true"},
    )
    own = TaskSource(
        tasks["stripes"].finetuned, tasks["stripes"].importance, str(tmp_path / "head.safetensors")
    )
    plain = MergeModule(tasks, pretrained=str(pretrained))
    fixed = MergeModule({**tasks, "stripes": own}, pretrained=str(pretrained))
    first, second = quiet_trainer(), quiet_trainer()
    first.test(plain, data(), verbose=False)
    second.test(fixed, data(), verbose=False)
    images = data().members["stripes"].dataset("test")
    share = sum(images[index][1] == 0 for index in range(len(images))) / len(images)
    assert float(second.callback_metrics["test/stripes/acc"]) == pytest.approx(share)
    assert first.callback_metrics["test/spots/acc"] == second.callback_metrics["test/spots/acc"]
    metrics = second.callback_metrics
    mean = (metrics["test/spots/acc"] + metrics["test/stripes/acc"]) / 2
    assert float(metrics["test/avg_acc"]) == pytest.approx(float(mean)), "the control is not in the average"
    assert metrics["accuracy/average"] == metrics["test/avg_acc"]
    table = {tag for row in quiet_trainer().test(fixed, data(), verbose=False) for tag in row}
    assert "test/avg_acc" in table
    assert not [tag for tag in table if tag.startswith("accuracy/")], "which are for HPARAMS"
    assert "test/control/watch/acc" in metrics


def test_accuracies_are_those_of_the_merged_weights_in_a_classifier(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path
) -> None:
    module = MergeModule(tasks, pretrained=str(pretrained))
    trainer = quiet_trainer()
    trainer.test(module, data(), verbose=False)
    path = module.save(tmp_path / "fused.safetensors")
    for name in NAMES:
        alone = quiet_trainer()
        classifier = CLIPClassifier(task=name, pretrained=str(pretrained), weights=str(path))
        alone.test(classifier, TaskDataModule(name), verbose=False)
        assert alone.callback_metrics[f"test/{name}/acc"] == trainer.callback_metrics[f"test/{name}/acc"]
    evaluation = MultiTaskEvaluation(pretrained=str(pretrained), weights=str(path))
    alone = quiet_trainer()
    alone.test(evaluation, data(), verbose=False)
    assert alone.callback_metrics == trainer.callback_metrics


@pytest.mark.parametrize("way", ["save", "output"])
def test_what_is_evaluated_is_the_file_and_the_merge_is_made_once(
    pretrained: Path,
    tasks: dict[str, TaskSource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    monkeypatch.setattr(Job, "in_memory", lambda *_: pytest.fail("it is in the file already"))
    file = tmp_path / "fused.safetensors"
    module = MergeModule(tasks, pretrained=str(pretrained), dtype="float16")
    if way == "save":
        module.save(file)
    else:
        module.output = file
    trainer = quiet_trainer()
    trainer.test(module, data(), verbose=False)
    written = {name.removeprefix("visual."): tensor for name, tensor in load_weights(file).items()}
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    assert all(torch.equal(t, written[n].float()) for n, t in module.encoder.state_dict().items())
    before = file.read_bytes()
    trainer.test(module, data(), verbose=False)
    assert file.read_bytes() == before
    assert module.merged is not None
    assert set(module.merged.kept["proj"]) == set(NAMES)
    assert module.change["norm"] > 0
    # What was measured is in the card, of this very file.
    assert module.card == tmp_path / "fused-card.md"
    card = ModelCard.load(module.card)
    measured = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    logged = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    assert measured == pytest.approx(
        {name: logged[f"test/{name}/acc"] for name in NAMES}
        | {"average": logged["test/avg_acc"], "watch (control)": logged["test/control/watch/acc"]}
    )
    assert sha256(file) in card.text


def test_a_trial_writes_no_card(pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path) -> None:
    module = MergeModule(tasks, pretrained=str(pretrained), metrics=["macro"])
    module.save(tmp_path / "fused.safetensors")
    trainer = quiet_trainer(limit_test_batches=1)
    trainer.test(module, data(), verbose=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "fused.safetensors"]
    assert module.card is None
    assert module.accuracy["spots"] == float(trainer.callback_metrics["test/spots/acc"])


def test_validation_then_test(pretrained: Path, tasks: dict[str, TaskSource]) -> None:
    module = MergeModule(tasks, pretrained=str(pretrained))
    trainer = quiet_trainer()
    trainer.validate(module, data(control=None), verbose=False)
    assert trainer.callback_metrics.keys() == {"val/spots/acc", "val/stripes/acc", "val/avg_acc"}
    trainer.test(module, data(), verbose=False)
    assert "test/control/watch/acc" in trainer.callback_metrics


def test_what_the_loggers_get(pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path) -> None:
    module = MergeModule(tasks, pretrained=str(pretrained))
    board = TensorBoardLogger(tmp_path, "board", default_hp_metric=False)
    table = CSVLogger(tmp_path, "table")
    quiet_trainer(logger=[board, table]).test(module, data(), verbose=False)
    assert plt.get_fignums() == []
    events = EventAccumulator(board.log_dir, size_guidance={"tensors": 0, "images": 0}).Reload()
    tags = events.Tags()
    scalars = set(tags["scalars"])
    tensor = "transformer.resblocks.0.mlp.c_fc.weight"
    wanted = {
        "test/spots/acc", "test/stripes/acc", "test/control/watch/acc", "test/avg_acc",
        "accuracy/average", "accuracy/control", "change/norm", "change/relative_norm",
    }  # fmt: skip
    assert wanted <= scalars
    assert "hp_metric" not in scalars
    assert not any(tag.startswith("selection/") for tag in scalars), "a point each says nothing"
    assert tags["images"] == ["kept/layers"]
    assert "layer" in (Path(board.log_dir) / "kept.svg").read_text(encoding="utf-8")
    assert {"report/text_summary", "command/text_summary", "kept"} <= {*tags["tensors"], *tags["histograms"]}
    assert any("custom_scalars" in tag for tag in tags["tensors"])
    with open(Path(table.log_dir) / "metrics.csv") as stream:
        rows = list(csv.DictReader(stream))
    found = {tag: float(value) for row in rows for tag, value in row.items() if value}
    assert found.keys() >= wanted
    kept = [found[f"selection/{name}/{tensor}"] for name in NAMES]
    assert sum(kept) == pytest.approx(1, abs=1e-4), "without ties one of two entries survives everywhere"
    settings, results = entered(events)
    assert settings.items() >= {"method": "sta", "measure": "lp", "p": 0.7}.items()
    assert results == RESULTS


@pytest.mark.parametrize("logger", [False, True])
def test_a_run_without_tensorboard_is_fine(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path, logger: bool
) -> None:
    loggers = [CSVLogger(tmp_path)] if logger else False
    module = MergeModule(tasks, pretrained=str(pretrained), method="average")
    quiet_trainer(logger=loggers).test(module, data(), verbose=False)
    assert module.merged is not None
    assert module.merged.kept == {}


def broken(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    name = "visual.ln_pre.weight"
    if how == "missing":
        return {n: t for n, t in state.items() if n != name}
    if how == "shape":
        return {**state, name: state[name][:-1]}
    if how == "nan":
        return {**state, name: torch.full_like(state[name], float("nan"))}
    return {**state, "visual.extra.weight": torch.ones(1)}


@pytest.mark.parametrize("how", ["missing", "shape", "nan", "extra"])
def test_a_source_that_does_not_fit_is_refused_by_name_before_anything_is_written(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path, how: str
) -> None:
    bad = tmp_path / "bad.safetensors"
    save_weights(bad, broken(load_weights(tasks["stripes"].finetuned), how), allow_nonfinite=True)
    module = MergeModule(
        {**tasks, "stripes": TaskSource(str(bad), tasks["stripes"].importance)}, pretrained=str(pretrained)
    )
    with pytest.raises(StaError) as caught:
        module.save(tmp_path / "fused.safetensors")
    message = str(caught.value)
    assert "stripes" in message
    assert "bad.safetensors" in message
    assert "extra.weight" in message or "ln_pre.weight" in message
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


@pytest.mark.parametrize("how", ["missing", "shape", "nan", "extra"])
def test_an_importance_that_does_not_fit_is_refused_by_name(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path, how: str
) -> None:
    bad = tmp_path / "bad.safetensors"
    scores = {f"visual.{n}": t for n, t in load_weights(tasks["spots"].importance or "").items()}
    save_weights(
        bad,
        {n.removeprefix("visual."): t for n, t in broken(scores, how).items()},
        {"measure": "lp"},
        allow_nonfinite=True,
    )
    module = MergeModule(
        {**tasks, "spots": TaskSource(tasks["spots"].finetuned, str(bad))}, pretrained=str(pretrained)
    )
    with pytest.raises(
        StaError, match=r"importance of task 'spots'.*bad\.safetensors.*(ln_pre|extra)\.weight"
    ):
        module.merge()


def test_an_importance_of_another_measure_is_refused(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    save_weights(other, load_weights(tasks["spots"].importance or ""), {"measure": "lp+amp"})
    changed = {**tasks, "spots": TaskSource(tasks["spots"].finetuned, str(other))}
    with pytest.raises(StaError, match=r"measure 'lp\+amp', but 'lp' is asked for"):
        MergeModule(changed, pretrained=str(pretrained)).merge()


def test_a_missing_file_is_named(pretrained: Path, tasks: dict[str, TaskSource]) -> None:
    gone = {**tasks, "spots": TaskSource("/nowhere/spots.safetensors", None)}
    with pytest.raises(StaError, match=r"task 'spots'.*/nowhere/spots\.safetensors"):
        MergeModule(gone, pretrained=str(pretrained)).merge()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "tiez"}, "merging method 'tiez' is unknown"),
        ({"measure": "fishy"}, "measure='fishy'"),
        ({"p": 1.3}, "1.3"),
        ({"normalize": "row"}, "normalize='row'"),
        ({"scale": 0.5}, "no coefficient"),
        ({"dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_wrong_settings(tasks: dict[str, TaskSource], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StaError, match=message):
        MergeModule(tasks, **settings)


def test_data_of_other_tasks_is_refused(pretrained: Path, tasks: dict[str, TaskSource]) -> None:
    module = MergeModule({"spots": tasks["spots"]}, pretrained=str(pretrained), method="average")
    with pytest.raises(StaError, match=r"'stripes'.*'spots'"):
        quiet_trainer().test(module, data(), verbose=False)


def test_there_is_nothing_to_fit_or_predict_or_load(pretrained: Path, tasks: dict[str, TaskSource]) -> None:
    module = MergeModule(tasks, pretrained=str(pretrained), method="average")
    assert module.hparams["method"] == "average"
    assert module.hparams["tasks"]["spots"]["finetuned"] == tasks["spots"].finetuned
    with pytest.raises(StaError, match=r"MergeModule has nothing to fit.*CLIPClassifier"):
        quiet_trainer(max_epochs=1).fit(module, data())
    with pytest.raises(StaError, match=r"weights=\.\.\."):
        MergeModule.load_from_checkpoint("merge.ckpt")
    with pytest.raises(StaError, match="nothing to predict"):
        quiet_trainer().predict(module, data())
