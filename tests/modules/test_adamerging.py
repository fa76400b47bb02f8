"""AdaMerging as a module: what it learns, what it looks at, what it leaves, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset

from sta_lightning.arithmetic import task_arithmetic
from sta_lightning.arithmetic.baselines.adamerging import entropy
from sta_lightning.cli.main import main
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.errors import StaError
from sta_lightning.modules import AdaMerging, TaskSource
from sta_lightning.modules.learned import learn
from sta_lightning.tasks import MultiTaskDataModule, UnlabelledDataModule
from sta_lightning.weights import load_weights, read_metadata, save_weights, sha256
from tests.launch import launch
from tests.toys import ToyDataset, quiet_trainer, write_finetuned, write_pretrained

NAMES = ("spots", "stripes")
WORKER = Path(__file__).with_name("adamerging_worker.py")


@pytest.fixture(scope="module")
def tasks(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskSource]:
    folder = tmp_path_factory.mktemp("tasks")
    found = {}
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        head = ClassificationHead(torch.randn(3, 128, generator=generator) * 4)
        head.save(folder / f"{name}-head.safetensors")
        encoder = write_finetuned(folder / f"{name}.safetensors", pretrained, seed, amount=0.05)
        found[name] = TaskSource(str(encoder), head=str(folder / f"{name}-head.safetensors"))
    return found


@pytest.fixture
def build(pretrained: Path, tasks: dict[str, TaskSource]) -> Any:
    return lambda **settings: AdaMerging(tasks, **{"pretrained": str(pretrained), **settings})


def data(**settings: Any) -> UnlabelledDataModule:
    return UnlabelledDataModule(list(NAMES), **{"batch_size": 4, **settings})


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(t, second[n]) for n, t in first.items())


def mean_entropy(module: AdaMerging, weights: dict[str, Tensor]) -> float:
    """The mean over the tasks of the entropy on all their test images."""
    encoder = build_encoder("miniature", str(module._pretrained)).eval()
    found = []
    with torch.no_grad():
        for name, member in MultiTaskDataModule(list(NAMES), batch_size=99).members.items():
            ((images, _),) = list(member.evaluation_loader("test"))
            head = ClassificationHead.load(str(module._sources[name].head))
            found.append(float(entropy(head(functional_call(encoder, weights, (images,))))))
    return sum(found) / len(found)


def test_it_starts_from_task_arithmetic(pretrained: Path, tasks: dict[str, TaskSource], build: Any) -> None:
    base = build_encoder("miniature", str(pretrained)).state_dict()
    finetuned = {
        name: {n.removeprefix("visual."): t for n, t in load_weights(str(source.finetuned)).items()}
        for name, source in tasks.items()
    }
    expected = task_arithmetic(base, finetuned, scale=0.3)
    for granularity in ("task", "tensor"):
        module = build(granularity=granularity)
        found = module.merged_weights()
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name])
        assert module.mean_coefficients() == pytest.approx(dict.fromkeys(NAMES, 0.3))


@pytest.mark.parametrize("granularity", ["task", "tensor"])
def test_the_entropy_falls_and_the_bits_are_the_same_again(build: Any, granularity: str) -> None:
    module = build(granularity=granularity, learning_rate=0.02)
    before = mean_entropy(module, module.merged_weights())
    found = learn(module, data(), steps=12, seed=3)
    after = mean_entropy(module, found)
    assert after < before - 0.01
    assert same(found, module.merged_weights())
    tensors = len(found)
    assert module.coefficients.shape == ((2,) if granularity == "task" else (2, tensors))
    assert same(learn(module, data(), steps=12, seed=3), found), "the same module starts anew"
    state = torch.get_rng_state()
    torch.manual_seed(77)
    fresh = build(granularity=granularity, learning_rate=0.02)
    assert same(learn(fresh, data(), steps=12, seed=3), found)
    assert not same(learn(fresh, data(seed=1), steps=12, seed=3), found)
    torch.set_rng_state(state)
    learn(fresh, data(), steps=1)
    assert torch.equal(state, torch.get_rng_state())


def test_a_step_is_adam_s_on_the_sum_of_the_tasks_entropies(build: Any) -> None:
    module = build()
    learn(module, data(), steps=1)
    moved = module.coefficients.detach() - 0.3
    # Adam's first step is the learning rate, against the sign of the gradient.
    batch = next(iter(data().train_dataloader()))
    module.reset()
    frozen = module._frozen
    loss = sum(entropy(frozen.heads[name](module(images))) for name, images in batch.items())
    (gradient,) = torch.autograd.grad(loss, module.coefficients)
    clear = gradient.abs() > 1e-5
    assert clear.float().mean() > 0.5
    torch.testing.assert_close(moved[clear], -1e-3 * gradient.sign()[clear], rtol=0.01, atol=0)


def test_coefficients_are_kept_within_bounds(build: Any) -> None:
    module = build(granularity="task", init=0.95, learning_rate=0.5)
    found = learn(module, data(), steps=3)
    assert module.coefficients.max() > 1 or module.coefficients.min() < 0
    assert all(0 <= value <= 1 for value in module.mean_coefficients().values())
    limited = module.limited()
    with torch.no_grad():
        module.coefficients.copy_(limited)
    assert same(module.merged_weights(), found)


def test_plus_plus_starts_from_trimmed_vectors(build: Any) -> None:
    whole, trimmed = build(), build(trim=0.2)
    found = learn(trimmed, data(), steps=2)
    kept = [
        sum(int((t != 0).sum()) for t in vector.values()) / sum(t.numel() for t in vector.values())
        for vector in trimmed._frozen.vectors.values()
    ]
    assert all(0.05 < share <= 0.2 for share in kept)
    whole.build()
    for task, vector in trimmed._frozen.vectors.items():
        for name, value in vector.items():
            there = value != 0
            assert torch.equal(value[there], whole._frozen.vectors[task][name][there])
    assert not same(found, learn(whole, data(), steps=2))


class Poisoned:
    """A label that nobody may look at."""

    def _refuse(self, *args: Any) -> Any:
        raise AssertionError("a label was looked at")

    __int__ = __index__ = __float__ = __bool__ = __eq__ = __hash__ = __len__ = __iter__ = _refuse  # type: ignore[assignment]


def test_no_label_is_looked_at(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = learn(build(), data(), steps=3)
    plain = ToyDataset.__getitem__
    monkeypatch.setattr(ToyDataset, "__getitem__", lambda self, index: (plain(self, index)[0], Poisoned()))
    assert same(learn(build(), data(), steps=3), expected)


class Cached(LightningDataModule):
    """Images in memory, in a loader that ends."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Kept(), batch_size=None, shuffle=True)


class Labelled(LightningDataModule):
    """Images and labels of one task."""

    def train_dataloader(self) -> DataLoader[Any]:
        return MultiTaskDataModule(["spots"]).members["spots"].train_dataloader()


class Kept(Dataset[Any]):
    def __init__(self) -> None:
        loader: Iterator[Any] = iter(data().train_dataloader())
        self.steps = [next(loader) for _ in range(3)]

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.steps[index]


def test_any_datamodule_of_images_by_task_serves(build: Any) -> None:
    found = learn(build(), Cached(), steps=7, seed=1)
    assert same(learn(build(), Cached(), steps=7, seed=1), found)
    assert not same(learn(build(), Cached(), steps=7, seed=2), found), "the loader shuffles by the given seed"


def test_only_the_coefficients_are_in_a_checkpoint_and_a_resumed_fit_is_the_unbroken_one(
    build: Any, tmp_path: Path
) -> None:
    def fit(steps: int, ckpt: Path | None = None, **settings: Any) -> AdaMerging:
        module: AdaMerging = build(learning_rate=0.01, **settings)
        kept = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        trainer = quiet_trainer(max_steps=steps, callbacks=[kept], enable_checkpointing=True)
        trainer.fit(module, data(), ckpt_path=ckpt)
        return module

    whole = fit(6)
    file = tmp_path / "step=4.ckpt"
    assert file.stat().st_size < 60_000
    content = torch.load(file, weights_only=True)
    assert list(content["state_dict"]) == ["coefficients"]
    for path in tmp_path.glob("step=6*.ckpt"):
        path.unlink()
    resumed = fit(6, file)
    assert torch.equal(resumed.coefficients, whole.coefficients)
    assert same(resumed.merged_weights(), whole.merged_weights())
    with pytest.raises(StaError, match="checkpoint holds the coefficients"):
        fit(6, file, granularity="task")
    loaded = AdaMerging.load_from_checkpoint(
        file, tasks=whole._sources, pretrained=whole._pretrained, weights_only=True
    )
    assert torch.equal(loaded.coefficients, content["state_dict"]["coefficients"])


def test_the_loggers_get_entropies_and_coefficients(build: Any, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer(max_steps=3, logger=logger)
    trainer.fit(build(), data())
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    each = [f"train/{name}/entropy" for name in NAMES]
    assert metrics.keys() == {"train/entropy", *each, *(f"coefficient/{name}" for name in NAMES)}
    assert metrics["train/entropy"] == pytest.approx(sum(metrics[tag] for tag in each) / 2)
    assert metrics["coefficient/spots"] == pytest.approx(0.3, abs=0.01)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4
    settings = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert settings["granularity"] == "tensor"
    assert settings["images"]["split"] == "test"


def test_the_file_tells_its_origin_and_loads_again(
    pretrained: Path, tasks: dict[str, TaskSource], build: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "fused.safetensors"
    module = build(output=str(output))
    found = learn(module, data(), steps=2)
    assert [file.name for file in output.parent.iterdir()] == [output.name]
    assert same(build_encoder("miniature", str(output)).state_dict(), found)
    metadata = read_metadata(output)
    assert metadata["kind"] == "fused:adamerging"
    settings, sources = json.loads(metadata["settings"]), json.loads(metadata["sources"])
    assert settings["tasks"] == list(NAMES)
    assert (settings["granularity"], settings["trim"], settings["init"]) == ("tensor", None, 0.3)
    assert (settings["learning_rate"], settings["steps"]) == (1e-3, 2)
    assert settings["images"] == {"split": "test", "limit": None, "batch_size": 4, "seed": 0, "crops": False}
    assert settings["coefficients"] == pytest.approx(module.mean_coefficients(), abs=1e-6)
    expected = {"pretrained": pretrained, **{f"finetuned/{n}": s.finetuned for n, s in tasks.items()}}
    assert {role: entry["sha256"] for role, entry in sources.items()} == {
        role: sha256(str(file)) for role, file in expected.items()
    }
    assert str(tmp_path) not in json.dumps(metadata)
    first = output.read_bytes()
    learn(build(output=str(output)), data(), steps=2)
    assert output.read_bytes() == first


def test_a_file_that_cannot_be_written_leaves_nothing(build: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StaError, match="fused"):
        learn(build(output=str(tmp_path / "file" / "fused.safetensors")), data(), steps=1)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_command_line_from_the_fit_to_the_test(
    pretrained: Path,
    tasks: dict[str, TaskSource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "model": {
            "class_path": "AdaMerging",
            "init_args": {
                "pretrained": str(pretrained),
                "output": "runs/fused.safetensors",
                "tasks": {n: {"finetuned": s.finetuned, "head": s.head} for n, s in tasks.items()},
            },
        },
        "data": {"class_path": "UnlabelledDataModule", "init_args": {"tasks": list(NAMES), "batch_size": 4}},
        "trainer": {
            "max_steps": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
        },
    }
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    quiet = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    assert main(["fit", "--config", "fit.yaml", *quiet]) == 0, capsys.readouterr().err
    evaluation = [
        "--model=MultiTaskEvaluation",
        f"--model.pretrained={pretrained}",
        "--model.weights=runs/fused.safetensors",
        "--data=MultiTaskDataModule",
        "--data.tasks=[spots, stripes]",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(["test", *evaluation, *quiet]) == 0, capsys.readouterr().err
    assert "test/avg_acc" in capsys.readouterr().out
    missing = "--model.tasks.spots.finetuned=gone.safetensors"
    assert main(["fit", "--config", "fit.yaml", *quiet, missing]) == 2
    err = capsys.readouterr().err
    assert "spots" in err
    assert "gone.safetensors" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"granularity": "layer"}, "granularity='layer'.*task, tensor"),
        ({"trim": 0.0}, r"trim=0\.0"),
        ({"trim": 1.5}, r"trim=1\.5"),
        ({"init": -0.1}, r"init=-0\.1"),
        ({"init": 1.0}, r"init=1\.0"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0"),
        ({"output": "fused.ckpt"}, r"output: 'fused\.ckpt'"),
    ],
)
def test_wrong_settings(build: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StaError, match=message):
        build(**settings)


def test_sources_that_do_not_fit_are_refused_by_name(
    pretrained: Path, tasks: dict[str, TaskSource], tmp_path: Path
) -> None:
    def made(source: Any) -> AdaMerging:
        return AdaMerging({**tasks, "stripes": source}, pretrained=str(pretrained))

    with pytest.raises(StaError, match=r"stripes.*nowhere\.safetensors"):
        made(TaskSource("/nowhere.safetensors")).build()
    for source in (TaskSource(), TaskSource(vector="x.safetensors")):
        with pytest.raises(StaError, match=r"'stripes'.*'finetuned'"):
            made(source)
    bad = tmp_path / "bad.safetensors"
    state = load_weights(str(tasks["stripes"].finetuned))
    name = "visual.ln_pre.weight"
    for broken in (state[name][:-1], torch.full_like(state[name], torch.nan)):
        save_weights(bad, {**state, name: broken}, allow_nonfinite=True)
        with pytest.raises(StaError, match=r"'stripes'.*bad\.safetensors.*ln_pre\.weight"):
            made(TaskSource(str(bad))).build()
    with pytest.raises(StaError, match="one task or more"):
        AdaMerging({})


def test_files_are_given_by_one_pattern(tasks: dict[str, TaskSource]) -> None:
    folder = Path(str(tasks["spots"].finetuned)).parent
    files = TaskSource(f"{folder}/{{task}}.safetensors", head=f"{folder}/{{task}}-head.safetensors")
    assert AdaMerging(list(tasks), files=files)._sources == dict(sorted(tasks.items()))
    with pytest.raises(StaError, match="twice"):
        AdaMerging(["spots", "spots"], files=files)


def test_data_of_other_tasks_is_refused(build: Any, tasks: dict[str, TaskSource], pretrained: Path) -> None:
    for names in (["spots"], ["spots", "stripes", "watch"]):
        with pytest.raises(StaError, match="datamodule brings images of 'spots'"):
            learn(build(), UnlabelledDataModule(names), steps=1)
    one = AdaMerging({"spots": tasks["spots"]}, pretrained=str(pretrained))
    with pytest.raises(StaError, match="batch brings images of 'spots', 'stripes'"):
        learn(one, Cached(), steps=1)
    with pytest.raises(StaError, match="batches of task -> images"):
        learn(one, Labelled(), steps=1)


def test_what_it_cannot_do_is_told(build: Any) -> None:
    with pytest.raises(StaError, match="0 steps"):
        learn(build(), data(), steps=0)
    with pytest.raises(StaError, match="nothing to test"):
        quiet_trainer().test(build(), MultiTaskDataModule(list(NAMES)))
    with pytest.raises(StaError, match="max_steps"):
        quiet_trainer(max_epochs=1).fit(build(), data())
    with pytest.raises(StaError, match="precision is bf16-true"):
        quiet_trainer(max_steps=1, precision="bf16-true").fit(build(), data())


def test_what_is_logged_lies_where_the_coefficients_are(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of several processes the values are added up by NCCL, which takes none from the CPU.
    module, logged = build(), {}
    module.build()
    module.to("meta")
    monkeypatch.setattr(module, "log", lambda tag, value, **_: logged.update({tag: value}))
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    module._show({name: torch.zeros((), device="meta") for name in NAMES})
    assert len(logged) == 1 + 2 * len(NAMES)
    assert {value.device.type for value in logged.values()} == {"meta"}


def test_averaged_coefficients_are_what_is_merged(build: Any, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            seen.append(module.coefficients.detach().clone())

    module = build(output=str(tmp_path / "merged.safetensors"), learning_rate=0.05)
    quiet_trainer(max_steps=3, callbacks=[Watch(), WeightAveraging()]).fit(module, data())
    mean = torch.stack(seen).mean(0)
    assert not torch.allclose(mean, seen[-1])
    torch.testing.assert_close(module.coefficients.detach(), mean)
    found = load_weights(tmp_path / "merged.safetensors")
    assert same({n.removeprefix("visual."): t for n, t in found.items()}, module.merged_weights())


def test_mixed_precision(build: Any) -> None:
    module = build()
    quiet_trainer(max_steps=2, precision="bf16-mixed").fit(module, data())
    assert module.coefficients.dtype == torch.float32
    assert {value.dtype for value in module.merged_weights().values()} == {torch.float32}


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    pretrained = write_pretrained(tmp_path / "pretrained.safetensors")
    for seed, name in enumerate(NAMES):
        write_finetuned(tmp_path / f"{name}.safetensors", pretrained, seed, amount=0.05)
    said = {}
    for world, outputs in launch(WORKER, (1, 2), tmp_path).items():
        lines = [line for text in outputs for line in text.splitlines() if line.startswith("SAID ")]
        said[world] = [json.loads(line.removeprefix("SAID ")) for line in lines]
        assert len(said[world]) == world
    (alone,) = said[1]
    first, second = said[2]
    # Adam's first steps are as long as the learning rate however small a gradient is, of which the
    # sign may be a matter of rounding.
    for learned, least in (("coefficients", 1.0), ("distilled", 0.95)):
        assert first[learned] == second[learned]
        apart = torch.tensor(first[learned]) - torch.tensor(alone[learned])
        assert (apart.abs() < 2e-5).float().mean() >= least
    assert [found["made"] for found in (alone, first, second)] == [2, 2, 0], "the first one merges, for all"
    assert first["metrics"] == second["metrics"]
    assert first["metrics"] == pytest.approx(alone["metrics"], abs=1e-4)
    assert [found["images"] for found in said[2]] == [[2, 2]] * 2
    assert all("3 images cannot be shared out" in found["odd"] for found in said[2])
    # The first process alone writes; a failure to write is every process's.
    assert same(
        load_weights(tmp_path / "fused-2.safetensors"),
        {f"visual.{n}": t for n, t in load_weights(tmp_path / "merged-2-1.safetensors").items()},
    )
    assert all("in_the_way" in found["unwritable"] for found in said[2])
