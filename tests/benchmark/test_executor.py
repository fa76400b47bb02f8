"""Where cells run changes no number, and a killed process loses none."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sta_lightning.benchmark.executor import Done, run_cells
from sta_lightning.benchmark.plan import plan
from sta_lightning.benchmark.settings import BenchmarkSettings, Curves, TradeOff
from sta_lightning.errors import StaError


@pytest.fixture(scope="module")
def small(toy_benchmark: BenchmarkSettings) -> BenchmarkSettings:
    """Three methods, one seed."""
    methods = {key: toy_benchmark.methods[key] for key in ("average", "ta", "sta_lp")}
    return replace(
        toy_benchmark,
        seeds=[0],
        methods=methods,
        pairs=[],
        forget_methods={},
        trade_off=TradeOff(),
        curves=Curves(),
    )


@pytest.fixture(scope="module")
def alone(small: BenchmarkSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """What one process computes."""
    settings = replace(small, output=str(tmp_path_factory.mktemp("alone") / "run"))
    return run_cells(settings, plan(settings))


def check_whole(settings: BenchmarkSettings, found: dict[str, Done], alone: dict[str, Done]) -> None:
    """Every cell once, the same numbers to the last bit, nothing left half done."""
    assert list(found) == [cell.id for cell in plan(settings)]
    assert {key: done.found for key, done in found.items()} == {
        key: done.found for key, done in alone.items()
    }
    assert not list(Path(settings.output).rglob("*.partial"))


@contextmanager
def killing(settings: BenchmarkSettings, victims: list[int]) -> Iterator[None]:
    """Kill the first process as soon as a fine-tuning has begun."""

    def kill() -> None:
        while not list(Path(settings.output).glob("seed_0/steps/finetune/*.partial")):
            time.sleep(0.02)
        victim = victims[0] if victims else multiprocessing.active_children()[0].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield
    thread.join(timeout=1.0)
    assert not thread.is_alive()


def test_a_cluster_of_two_of_which_one_is_killed_finds_what_one_process_does(
    small: BenchmarkSettings, alone: dict[str, Done], tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    settings = replace(small, output=str(tmp_path / "run"))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path / "dask")
    ) as cluster:
        victims = [worker.pid for worker in cluster.workers.values()]
        settings = replace(settings, cluster=cluster.scheduler_address)
        with killing(settings, victims):
            found = run_cells(settings, plan(settings))
    check_whole(settings, found, alone)


def test_a_killed_process_of_the_pool_is_replaced(
    small: BenchmarkSettings, alone: dict[str, Done], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(small, output=str(tmp_path / "run"), devices=2)
    with killing(settings, []):
        found = run_cells(settings, plan(settings))
    check_whole(settings, found, alone)
    assert "its cells are computed again" in capsys.readouterr().out


def test_a_cluster_that_does_not_answer_is_told(small: BenchmarkSettings, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    settings = replace(small, output=str(tmp_path / "run"), cluster=str(tmp_path / "scheduler.json"))
    with pytest.raises(StaError, match="cluster: no Dask scheduler answers at"):
        run_cells(settings, plan(settings))
