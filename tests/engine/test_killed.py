"""Killed at any moment: the old output or the new one is there, whole."""

import json
from pathlib import Path

from tests.engine.models import write_models
from tests.forks import forked

WORKER = Path(__file__).with_name("merge_worker.py")
TIMES = 30


def test_the_output_is_whole_or_absent(tmp_path: Path) -> None:
    write_models(tmp_path / "models", shapes={"w": (300, 301), "b": (700,)})
    (tmp_path / "out").mkdir()
    ((status, out, err),) = forked(
        WORKER, [("killed", tmp_path / "models", TIMES, tmp_path / "out" / "merged.safetensors")]
    )
    assert status == 0, err
    found = json.loads(out)
    assert len(found["seen"]) == TIMES
    assert set(found["seen"]) <= {"sta", "average", "absent"}
    assert set(found["seen"]) - {"absent"}, "some merge has ended"
    assert found["last"] == "sta"
    assert 0 < found["left"] <= TIMES, "some merge was killed on its way, and the next one tidied up"
    assert found["after"] == ["merged.safetensors"]
