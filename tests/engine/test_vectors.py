"""Masked task vectors: what a fusion is made of, added again and taken out again."""

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sta_lightning.arithmetic import FORGET_METHODS, FUSION_METHODS, fuse, make_method
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.engine import ForgettingJob, FusionJob, Pretrained, TaskSource, write_vectors
from sta_lightning.errors import StaError
from sta_lightning.weights import load_weights, open_vector, read_metadata, save_weights

State = dict[str, Tensor]
TASKS = [f"task{i}" for i in range(6)]
# More than one step of the index, an odd number of entries, a scalar, nothing.
SHAPES = {"blocks.0.w": (300, 301), "blocks.0.b": (11,), "scale": (), "empty": (0, 2), "long": (140_001,)}


@pytest.fixture(scope="module")
def models() -> tuple[State, dict[str, State], dict[str, State]]:
    generator = torch.Generator().manual_seed(3)

    def state(spread: float, around: State | None = None) -> State:
        drawn = {n: spread * torch.randn(s, generator=generator) for n, s in SHAPES.items()}
        return drawn if around is None else {n: t + around[n] for n, t in drawn.items()}

    base = state(1.0)
    finetuned = {task: state(0.01, base) for task in TASKS}
    scores = {task: {n: t.abs() for n, t in state(1.0).items()} for task in TASKS}
    for model in (base, *finetuned.values()):
        model["steps"] = torch.tensor(7)
    return base, finetuned, scores


@pytest.fixture(scope="module")
def folder(
    models: tuple[State, dict[str, State], dict[str, State]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    base, finetuned, scores = models
    folder = tmp_path_factory.mktemp("vectors")
    save_weights(folder / "base.safetensors", base)
    for task in TASKS:
        save_weights(folder / f"{task}.safetensors", finetuned[task])
        save_weights(folder / f"{task}-importance.safetensors", scores[task], {"measure": "lp"})
    job = FusionJob(
        {
            t: TaskSource(str(folder / f"{t}.safetensors"), str(folder / f"{t}-importance.safetensors"))
            for t in TASKS
        },
        "sta",
        make_method("sta", FUSION_METHODS),
    )
    write_vectors(job, pretrained(base), folder / "vectors")
    write_vectors(job, pretrained(base), folder / "small", torch.bfloat16)
    job.write(pretrained(base), folder / "fused.safetensors")
    return folder


def pretrained(base: State) -> Pretrained:
    return Pretrained("toy", in_memory(base), "", digest="of the toy")


def added(folder: Path, tasks: list[str], base: str | None = None, *, of: str = "vectors") -> FusionJob:
    files = {task: TaskSource(vector=str(folder / of / f"{task}.safetensors")) for task in tasks}
    return FusionJob(files, "vectors", make_method("vectors", FUSION_METHODS), base=base)


def removed(folder: Path, task: str, model: str) -> ForgettingJob:
    files = TaskSource(vector=str(folder / "vectors" / f"{task}.safetensors"))
    return ForgettingJob(task, files, "vector", make_method("vector", FORGET_METHODS), model=model)


def test_all_vectors_make_the_fusion_again_bit_for_bit(models, folder: Path) -> None:
    base, finetuned, scores = models
    wanted = fuse(base, finetuned, scores)
    found = added(folder, TASKS).in_memory(pretrained(base)).weights
    stored = load_weights(folder / "fused.safetensors")
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
        assert torch.equal(stored[name], tensor), name


def test_a_vector_is_mask_times_task_vector(models, folder: Path) -> None:
    """Against NumPy: rank 4 of 6, strictly above, of normalised scores."""
    base, finetuned, scores = models
    name = "blocks.0.w"
    rows = np.stack([scores[task][name].numpy().astype(np.float64) for task in TASKS])
    low, high = rows.min(axis=(1, 2), keepdims=True), rows.max(axis=(1, 2), keepdims=True)
    rows = (rows - low) / (high - low)
    masks = rows > np.sort(rows, axis=0)[3]
    for mask, task in zip(masks, TASKS, strict=True):
        wanted = np.where(mask, finetuned[task][name].numpy() - base[name].numpy(), 0)
        with ExitStack() as stack:
            file, _ = open_vector(folder / "vectors" / f"{task}.safetensors", stack)
            found = file[name].read(slice(0, mask.size), torch.float32).numpy()
        np.testing.assert_array_equal(found, wanted.ravel())


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (0, 1), (7, 9), (65_535, 65_537), (65_536, 131_080), (100_000, 140_001)]
)
def test_any_piece_can_be_read(folder: Path, start: int, stop: int) -> None:
    with ExitStack() as stack:
        file, _ = open_vector(folder / "vectors" / "task2.safetensors", stack)
        whole = file["long"].read(slice(0, 140_001), torch.float32)
        assert torch.equal(file["long"].read(slice(start, stop), torch.float32), whole[start:stop])
        assert float(whole.count_nonzero()) > 0


def test_a_task_is_taken_out_exactly(models, folder: Path) -> None:
    """To float32 rounding, the model without a task is the fusion without its masked vector."""
    base, _, _ = models
    rest = [task for task in TASKS if task != "task4"]
    wanted = added(folder, rest).in_memory(pretrained(base)).weights
    found = removed(folder, "task4", str(folder / "fused.safetensors")).in_memory(pretrained(base)).weights
    for name in SHAPES:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=4e-7)
    assert int(found["steps"]) == 7


def test_a_task_is_added_later(models, folder: Path, tmp_path: Path) -> None:
    base, _, _ = models
    some = tmp_path / "some.safetensors"
    added(folder, TASKS[:4]).write(pretrained(base), some)
    found = added(folder, TASKS[4:], str(some)).in_memory(pretrained(base)).weights
    stored = load_weights(folder / "fused.safetensors")
    for name in SHAPES:
        torch.testing.assert_close(found[name], stored[name], rtol=0, atol=4e-7)


def test_the_files_are_small(folder: Path) -> None:
    dense = (folder / "task0.safetensors").stat().st_size
    full = [(folder / "vectors" / f"{task}.safetensors").stat().st_size for task in TASKS]
    half = [(folder / "small" / f"{task}.safetensors").stat().st_size for task in TASKS]
    assert max(full) < 0.45 * dense
    assert max(half) < 0.25 * dense


def test_the_metadata_tells_where_a_vector_comes_from(folder: Path) -> None:
    metadata = read_metadata(folder / "vectors" / "task1.safetensors")
    settings = json.loads(metadata["settings"])
    assert metadata["kind"] == "vector:sta"
    assert (settings["task"], settings["p"]) == ("task1", 0.7)
    assert "finetuned/task1" in json.loads(metadata["sources"])


def test_methods_and_files_that_do_not_go_together(models, folder: Path) -> None:
    base, _, _ = models
    vector, model = str(folder / "vectors" / "task0.safetensors"), str(folder / "task0.safetensors")
    average, vectors = make_method("average", FUSION_METHODS), make_method("vectors", FUSION_METHODS)
    with pytest.raises(StaError, match=r"'task0'.*reads 'finetuned' and not 'vector'"):
        FusionJob({"task0": TaskSource(vector=vector)}, "average", average).in_memory(pretrained(base))
    with pytest.raises(StaError, match=r"'task0'.*reads 'vector' and not 'finetuned'"):
        FusionJob({"task0": TaskSource(model)}, "vectors", vectors).in_memory(pretrained(base))
    with pytest.raises(StaError, match="starts from the pretrained encoder"):
        FusionJob({"task0": TaskSource(model)}, "average", average, base=model)
    with pytest.raises(StaError, match="does not mask the task vectors"):
        write_vectors(
            FusionJob({"task0": TaskSource(model)}, "average", average), pretrained(base), folder / "no"
        )
    assert not (folder / "no").exists()


def test_what_is_no_vector_is_refused(folder: Path, tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(StaError, match="is no masked task vector"):
        open_vector(folder / "task0.safetensors", stack)
    whole = load_weights(folder / "vectors" / "task0.safetensors")
    metadata = read_metadata(folder / "vectors" / "task0.safetensors")
    bent = tmp_path / "bent.safetensors"
    save_weights(bent, {n: t for n, t in whole.items() if n != "values.long"}, metadata)
    with ExitStack() as stack, pytest.raises(StaError, match="damaged masked task vector"):
        open_vector(bent, stack)
    save_weights(bent, {**whole, "mask.long": torch.zeros(3, dtype=torch.uint8)}, metadata)
    with ExitStack() as stack, pytest.raises(StaError, match="damaged masked task vector"):
        open_vector(bent, stack)
    save_weights(bent, {**whole, "values.long": whole["values.long"][:-1]}, metadata)
    with ExitStack() as stack:
        file, _ = open_vector(bent, stack)
        with pytest.raises(StaError, match="values for a mask that keeps"):
            file["long"].read(slice(0, 10), torch.float32)


def test_a_full_disk_leaves_the_older_vectors(models, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _, _ = models
    before = {path.name: path.read_bytes() for path in (folder / "vectors").iterdir()}

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    files = {t: TaskSource(str(folder / f"{t}.safetensors")) for t in TASKS}
    job = FusionJob(files, "random_mask", make_method("random_mask", FUSION_METHODS))
    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(StaError, match="No space left"):
        write_vectors(job, pretrained(base), folder / "vectors")
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in (folder / "vectors").iterdir()} == before
