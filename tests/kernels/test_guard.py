"""A mapped file that becomes shorter: a status inside a loop, the end of the process everywhere else."""

import signal
from pathlib import Path

import pytest

from sta_lightning.kernels.build import compiler
from tests.forks import Outcome, forked

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")
WORKER = Path(__file__).with_name("guard_worker.py")
CALLS = (
    "every_loop",
    "several_threads",
    "elsewhere",
    "elsewhere_without_a_handler",
    "sent_by_a_process",
    "taken_by_another",
    "taken_by_one_who_passes_it_on",
    "taken_too_often",
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, kept_loops: Path) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("guard")
    found = forked(WORKER, [(name, folder) for name in CALLS], {"STA_CACHE": str(kept_loops)})
    return dict(zip(CALLS, found, strict=True))


def test_every_loop_answers_that_the_file_is_gone(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["every_loop"].status == 0, outcomes["every_loop"]
    assert outcomes["every_loop"].out.split() == ["2"] * 11 + ["0"] * 2


def test_only_the_thread_that_met_it_is_told(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["several_threads"].out == "[0] [2] [0] [2]\n", outcomes["several_threads"]


@pytest.mark.parametrize("name", ["elsewhere", "taken_by_one_who_passes_it_on"])
def test_outside_of_a_loop_the_process_ends_as_without_us(name: str, outcomes: dict[str, Outcome]) -> None:
    status, out, err = outcomes[name]
    assert status == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in err
    assert out == ("" if name == "elsewhere" else "2\n")


@pytest.mark.parametrize("name", ["elsewhere_without_a_handler", "sent_by_a_process"])
def test_without_another_handler_it_ends_too(name: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[name] == Outcome(-signal.SIGBUS, "", "")


def test_another_handler_keeps_what_is_not_ours(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["taken_by_another"] == Outcome(0, "2\ntheirs\nalive\n", "")


def test_a_handler_that_is_put_back_again_and_again_wins(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["taken_too_often"] == Outcome(0, "True False\ntheirs\n", "")
