"""Threads that share a list of things to do, and processes that share the tensors."""

from __future__ import annotations

import math
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sta_lightning.arithmetic import workers as workers_module
from sta_lightning.arithmetic.workers import (
    Alone,
    Processes,
    Workers,
    group_limit,
    shared_out,
    together,
    usable_threads,
)
from sta_lightning.errors import StaError
from tests.peers import Peer, as_processes


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        return number * number

    with Workers(threads) as workers:
        assert workers.map(work, range(20)) == [number * number for number in range(20)]
        assert workers.map(work, iter([3])) == [9]
        assert workers.map(work, []) == []


def test_the_work_is_done_on_that_many_threads() -> None:
    meeting = threading.Barrier(3, timeout=20)  # fails unless three are there at once

    def work(_: int) -> str:
        meeting.wait()
        return threading.current_thread().name

    with Workers(3) as workers:
        names = workers.map(work, range(3))
    assert len(set(names)) == 3
    assert all(name.startswith("sta") for name in names)


def test_large_items_are_taken_one_at_a_time_and_their_own_work_waits_for_nobody() -> None:
    meeting = threading.Barrier(2, timeout=20)

    def work(number: int) -> list[int]:
        if number < 2:  # neighbours, which one thread would do one after the other in a share
            meeting.wait()
        return workers.map(lambda other: number * other, range(40))

    with Workers(2) as workers:
        found = workers.map(work, range(24), apart=True)
        assert found == [[number * other for other in range(40)] for number in range(24)]
        assert workers.map(lambda number: -number, range(3)) == [0, -1, -2]


def test_pytorch_has_one_thread_inside_a_worker_and_its_own_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        meeting = threading.Barrier(2, timeout=20)

        def work(_: int) -> int:
            meeting.wait()
            return torch.get_num_threads()

        with Workers(2) as workers:
            assert workers.map(work, range(2)) == [1, 1]
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("torch_s", "able", "limit", "used"),
    [(8, 8, math.inf, 8), (1, 8, 4.0, 1), (8, 3, 4.0, 3), (8, 8, 1.5, 2), (8, 8, 0.3, 1)],
)
def test_threads_are_as_many_as_have_a_processor(
    torch_s: int, able: int, limit: float, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: torch_s)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(able)), raising=False)
    monkeypatch.setattr(workers_module, "group_limit", lambda: limit)
    assert usable_threads() == used


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/of/the/host\n", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/\n", {}, math.inf),
        (
            "5:memory:/a\n3:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("nonsense", {"cpu.max": "1 100000"}, math.inf),
    ],
)
def test_the_control_group_s_limit(
    membership: str, files: dict[str, str], limit: float, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(membership)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text + "\n")
    assert group_limit(tmp_path / "root", tmp_path / "own") == limit
    assert group_limit(tmp_path / "root", tmp_path / "missing") == math.inf


def test_one_thread_is_the_caller_s() -> None:
    with Workers(1) as workers:
        assert workers.map(lambda _: threading.get_ident(), range(3)) == [threading.get_ident()] * 3


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_stops_the_others(threads: int) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 4:
            raise StaError("tensor 4 is bad")
        time.sleep(0.002)
        done.append(number)

    with Workers(threads) as workers:
        with pytest.raises(StaError, match="tensor 4 is bad"):
            workers.map(work, range(1000))
        assert len(done) < 20
        assert workers.map(abs, [-1, -2]) == [1, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_whatever_is_raised_comes_through(error: type[BaseException]) -> None:
    def work(_: int) -> None:
        raise error

    with Workers(2) as workers, pytest.raises(error):
        workers.map(work, range(5))


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    with Workers(4) as workers:
        workers.map(abs, range(10))
    assert threading.active_count() == before


def test_alone() -> None:
    assert together(Alone(), lambda: 3) == [3]
    with pytest.raises(ZeroDivisionError):
        together(Alone(), lambda: 1 // 0)


def test_every_process_gets_what_all_found() -> None:
    found = as_processes(3, lambda peer: together(peer, lambda: peer.rank * 10))
    assert found == [[0, 10, 20]] * 3


def test_an_error_on_one_process_is_raised_on_all() -> None:
    def work(peer: Processes) -> list[int]:
        def fail() -> int:
            if peer.rank == 1:
                raise ValueError("tensor 'w' is bad")
            return 0

        return together(peer, fail)

    first, second, third = as_processes(3, work)
    assert type(second) is ValueError
    assert type(first) is type(third) is StaError
    assert str(first) == str(third) == "process 1: tensor 'w' is bad"


def test_of_several_errors_each_process_raises_its_own() -> None:
    def work(peer: Processes) -> list[None]:
        def fail() -> None:
            if peer.rank:
                raise StaError(f"error {peer.rank}")

        return together(peer, fail)

    assert [str(error) for error in as_processes(3, work)] == ["process 1: error 1", "error 1", "error 2"]


def peers(size: int) -> list[Peer]:
    barrier = threading.Barrier(size)
    return [Peer(rank, size, barrier, []) for rank in range(size)]


@given(sizes=st.dictionaries(st.text(max_size=3), st.integers(0, 1000), max_size=20), size=st.integers(1, 7))
def test_tensors_are_shared_out_evenly(sizes: dict[str, int], size: int) -> None:
    shares = [list(shared_out(sizes, peer)) for peer in peers(size)]
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    # Whatever the order in which the names come: every process must come to the same answer.
    turned = dict(reversed(sizes.items()))
    assert [list(shared_out(turned, peer)) for peer in peers(size)] == shares
    loads = [sum(sizes[name] for name in share) for share in shares]
    assert max(loads) <= sum(sizes.values()) / size + max(sizes.values(), default=0)


def test_one_process_does_everything_largest_first() -> None:
    assert list(shared_out({"a": 1, "b": 5, "c": 3, "d": 5}, Alone())) == ["b", "d", "c", "a"]
