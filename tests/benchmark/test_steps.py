"""A step is done once per key, written whole, and taken up again after an interruption."""

import json
from pathlib import Path

import pytest

from sta_lightning.benchmark.steps import StepRunner, UnfinishedError


class Work:
    """Writes a file and counts how often it ran."""

    def __init__(self, text: str = "weights") -> None:
        self.text = text
        self.runs = 0

    def __call__(self, folder: Path) -> dict[str, object]:
        self.runs += 1
        (folder / "out.txt").write_text(self.text)
        return {"accuracy": 0.5, "runs": self.runs}


def test_a_step_runs_once_and_gives_the_same_result(tmp_path: Path) -> None:
    work = Work()
    first = StepRunner(tmp_path).run("finetune/a", {"epochs": 1}, work)
    second = StepRunner(tmp_path).run("finetune/a", {"epochs": 1}, work)
    assert work.runs == 1
    assert (first.skipped, second.skipped) == (False, True)
    assert second.result == {"accuracy": 0.5, "runs": 1}
    assert second.file("out.txt").read_text() == "weights"
    assert [path.name for path in (tmp_path / "finetune").iterdir()] == ["a"]


def test_other_settings_or_inputs_or_source_do_it_again(tmp_path: Path) -> None:
    work = Work()
    source = tmp_path / "source"
    source.write_text("one")
    steps = tmp_path / "steps"
    StepRunner(steps).run("a", {"epochs": 1}, work, {"x": source})
    StepRunner(steps).run("a", {"epochs": 2}, work, {"x": source})
    assert work.runs == 2
    source.write_text("two!")
    StepRunner(steps).run("a", {"epochs": 2}, work, {"x": source})
    assert work.runs == 3
    StepRunner(steps).run("a", {"epochs": 2}, work, {"x": source}, ["sta_lightning.errors"])
    assert work.runs == 4
    StepRunner(steps).run("a", {"epochs": 2}, work, {"x": source}, ["sta_lightning.errors"])
    assert work.runs == 4


def test_the_place_of_an_input_does_not_count_but_its_content_does(tmp_path: Path) -> None:
    work = Work()
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_text("same")
    there.write_text("same")
    StepRunner(tmp_path / "steps").run("a", {}, work, {"x": here})
    StepRunner(tmp_path / "steps").run("a", {}, work, {"x": there})
    assert work.runs == 1


@pytest.mark.parametrize("damage", ["change", "truncate", "delete", "record"])
def test_a_damaged_step_is_done_again(tmp_path: Path, damage: str) -> None:
    work = Work()
    step = StepRunner(tmp_path).run("a", {}, work)
    if damage == "change":
        step.file("out.txt").write_text("weightz")
    elif damage == "truncate":
        step.file("out.txt").write_text("w")
    elif damage == "delete":
        step.file("out.txt").unlink()
    else:
        step.file("step.json").write_text("{")
    again = StepRunner(tmp_path).run("a", {}, work)
    assert work.runs == 2
    assert again.file("out.txt").read_text() == "weights"


def test_interrupted_work_finds_its_own_files_and_nothing_looks_done(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> dict[str, object]:
        (folder / "last.ckpt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StepRunner(tmp_path).run("finetune/a", {"epochs": 2}, interrupted)
    assert not (tmp_path / "finetune" / "a").exists()

    seen: list[bool] = []

    def resumed(folder: Path) -> dict[str, object]:
        seen.append((folder / "last.ckpt").exists())
        return {}

    # Other settings must not go on from that checkpoint; the same settings must.
    with pytest.raises(KeyboardInterrupt):
        StepRunner(tmp_path).run(
            "finetune/a",
            {"epochs": 3},
            lambda folder: (seen.append((folder / "last.ckpt").exists()), interrupted(folder))[1],
        )
    StepRunner(tmp_path).run("finetune/a", {"epochs": 2}, resumed)
    assert seen == [False, True]
    assert [path.name for path in (tmp_path / "finetune").iterdir()] == ["a"]  # leftovers are gone


def test_killed_before_the_move_is_not_done_again(tmp_path: Path) -> None:
    work = Work()
    step = StepRunner(tmp_path).run("a", {}, work)
    key = json.loads(step.file("step.json").read_text())["key"]
    step.folder.rename(tmp_path / f"a.{key[:16]}.partial")
    again = StepRunner(tmp_path).run("a", {}, work)
    assert work.runs == 1
    assert again.skipped
    assert again.file("out.txt").exists()


def test_a_failed_step_leaves_the_former_result(tmp_path: Path) -> None:
    StepRunner(tmp_path).run("a", {"v": 1}, Work("old"))

    def fails(folder: Path) -> dict[str, object]:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        StepRunner(tmp_path).run("a", {"v": 2}, fails)
    assert (tmp_path / "a" / "out.txt").read_text() == "old"


def test_a_step_asked_for_twice_in_one_run_is_one_step(tmp_path: Path) -> None:
    work = Work()
    runner = StepRunner(tmp_path)
    assert runner.run("a", {}, work) == runner.run("a", {}, work)
    assert work.runs == len(runner.steps) == 1


def test_a_runner_that_computes_nothing_finds_what_is_done(tmp_path: Path) -> None:
    work = Work()
    looking = StepRunner(tmp_path / "steps", compute=False)
    with pytest.raises(UnfinishedError, match="a"):
        looking.run("a", {}, work)
    assert not (tmp_path / "steps").exists()
    StepRunner(tmp_path / "steps").run("a", {}, work)
    assert looking.run("a", {}, work).skipped
    with pytest.raises(UnfinishedError):
        looking.run("a", {"epochs": 1}, work)
    assert work.runs == 1
