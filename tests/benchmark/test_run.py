"""How a benchmark runs: in two processes, to its end, and what it refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sta_lightning.benchmark.executor import Done, run_cells
from sta_lightning.benchmark.plan import plan
from sta_lightning.benchmark.results import BenchmarkResults
from sta_lightning.benchmark.run import dry_run, run_benchmark
from sta_lightning.benchmark.settings import BenchmarkSettings
from sta_lightning.errors import StaError

# Towards the end of a curve over p nothing is kept of small tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The masks keep nothing")


def test_two_processes_find_what_one_does(
    done: tuple[BenchmarkSettings, BenchmarkResults], tmp_path: Path
) -> None:
    settings, results = done
    two = replace(settings, output=str(tmp_path / "two"), devices=2)
    cells = plan(two)
    found = run_cells(two, cells)
    assert list(found) == [cell.id for cell in cells]
    check_same_numbers(found, results)


def check_same_numbers(found: dict[str, Done], results: BenchmarkResults) -> None:
    """What was computed elsewhere is what one process computes, to the last bit."""
    assert [row for done in found.values() for row in done.found.fusion] == list(results.fusion)
    assert [row for done in found.values() for row in done.found.forgetting] == list(results.forgetting)
    extra = {name: value for done in found.values() for name, value in done.found.extra.items()}
    digests = {name: value for name, value in extra.items() if name.startswith("hash/")}
    assert {name.removeprefix("hash/"): value for name, value in digests.items()} == results.record["hashes"]


def test_the_report_has_a_path_s_variable_and_not_the_machine_s_folder(
    copied: tuple[BenchmarkSettings, BenchmarkResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = copied
    monkeypatch.setenv("STA_RUNS", settings.output)
    found = run_benchmark(replace(settings, output="${STA_RUNS}"))
    assert found.record["settings"]["output"] == "${STA_RUNS}"
    assert settings.output not in (Path(settings.output) / "results.json").read_text(encoding="utf-8")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_ends_leaves_no_process_at_work(
    settings: BenchmarkSettings, tmp_path: Path, number: signal.Signals
) -> None:
    """The processes among which cells are shared out end with the one that shares."""
    description = {
        **{name: getattr(settings.models, name) for name in ("pretrained", "tasks", "control")},
        "epochs": 1000,
    }
    config = {
        "output": settings.output,
        "devices": 2,
        "seeds": [0, 1],  # more cells than processes: the next wait in a queue
        "models": description,
        "methods": {"average": {"method": "average"}},
    }
    file = tmp_path / "endless.yaml"
    file.write_text(yaml.safe_dump(config))
    running = subprocess.Popen(
        [sys.executable, "-m", "sta_lightning", "benchmark", "--config", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        steps = Path(settings.output) / "seed_0/steps/finetune"
        wait_for(lambda: len(list(steps.glob("*.partial"))) == 2)
        children = children_of(running.pid)
        assert len(children) >= 2
        running.send_signal(number)
        wait_for(lambda: running.poll() is not None)
    finally:
        running.kill()
        running.wait()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def children_of(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Against hangs: nothing is said of how long it takes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_what_a_cell_refuses_ends_the_run_with_its_words(settings: BenchmarkSettings) -> None:
    given = replace(settings, finetuned=str(Path(settings.output) / "{task}_{seed}.safetensors"))
    for devices in (1, 2):
        with pytest.raises(StaError, match=r"the encoder of task '(warm|cold)', seed [01], is not there"):
            run_benchmark(replace(given, devices=devices))


def test_a_dry_run_tells_and_writes_nothing(settings: BenchmarkSettings) -> None:
    text = dry_run(settings)
    assert "images a second and process, measured now" in text
    assert "forgetting (Table 3)" in text
    assert not Path(settings.output).exists()
