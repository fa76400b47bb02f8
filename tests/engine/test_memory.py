"""Private memory stays small whatever the size of the models and however many there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from sta_lightning.kernels.build import compiler
from tests.engine.models import write_models
from tests.forks import Outcome, forked

WORKER = Path(__file__).with_name("merge_worker.py")
# 5 million entries, 20 MB a model; one tensor has most of them.
SHAPES = {"large": (1500, 2000), "b": (2000,), "c": (1000, 1000), "d": (1000, 1000)}
# Of many models it is enough that a tensor has some pieces.
MANY, MANY_SHAPES = 200, {"large": (500, 600)}
CALLS = [("sta", 6, "compiled"), ("sta", 12, "compiled"), ("sta", 6, "eager"), ("average", 12, "eager")]
CALLS += [("compare", 6, "eager"), ("sta", MANY, "compiled")]
BOUND = 60.0  # megabytes; the models of six tasks and their importances are 260
MANY_BOUND = 40.0  # of files that have 480 together

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file() or "RssAnon" not in Path("/proc/self/status").read_text(),
    reason="the system does not tell a process its private memory",
)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, kept_cache: Path) -> dict[tuple[str, int, str], float]:
    few, many = (tmp_path_factory.mktemp(name) for name in ("few", "many"))
    write_models(few, 2, shapes=SHAPES)
    write_models(many, 2, shapes=MANY_SHAPES)
    calls = [
        ("memory", folder, method, count, way, folder / "out.safetensors")
        for method, count, way in CALLS
        for folder in (many if count == MANY else few,)
    ]
    found: list[Outcome] = forked(WORKER, calls, {"STA_CACHE": str(kept_cache)})
    for path in few.iterdir():
        path.unlink()
    assert [outcome.status for outcome in found] == [0] * len(CALLS), found
    return {call: float(outcome.out) for call, outcome in zip(CALLS, found, strict=True)}


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_it_stays_below_a_bound(call: tuple[str, int, str], grown: dict[tuple[str, int, str], float]) -> None:
    assert grown[call] < (MANY_BOUND if call[1] == MANY else BOUND), grown


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_it_does_not_grow_with_the_number_of_models(grown: dict[tuple[str, int, str], float]) -> None:
    # Twice the models are 240 MB more. The eager form grows by what a piece of each takes, some
    # megabytes.
    assert grown["sta", 12, "compiled"] - grown["sta", 6, "compiled"] < 20, grown
