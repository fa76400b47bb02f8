"""What a file says about where it comes from."""

import hashlib
import json
import sys
import threading
from pathlib import Path

import pytest
import torch

import sta_lightning
from sta_lightning.errors import StaError
from sta_lightning.weights import provenance, read_metadata, save_weights, sha256

provenance_module = sys.modules[provenance.__module__]


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert sha256(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    with pytest.raises(StaError, match=r"cannot read '.*absent'"):
        sha256(tmp_path / "absent")


def test_everything_that_made_the_file_is_in_it(tmp_path: Path) -> None:
    source = tmp_path / "base.safetensors"
    save_weights(source, {"w": torch.ones(1)})
    settings = {"p": 0.7, "normalize": "tensor", "tasks": ("a", "b"), "file": source, "scale": None}
    metadata = provenance("fused:sta", settings, {"pretrained": source})
    save_weights(tmp_path / "fused.safetensors", {"w": torch.ones(1)}, metadata)
    got = read_metadata(tmp_path / "fused.safetensors")
    assert got == metadata
    assert (got["package"], got["version"]) == ("sta_lightning", sta_lightning.__version__)
    assert got["kind"] == "fused:sta"
    assert json.loads(got["settings"]) == {
        "p": 0.7,
        "normalize": "tensor",
        "tasks": ["a", "b"],
        "file": "base.safetensors",
        "scale": None,
    }
    assert json.loads(got["sources"]) == {
        "pretrained": {"file": "base.safetensors", "sha256": sha256(source)}
    }


def test_it_does_not_depend_on_the_machine_or_the_order(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text("x")
    first = provenance("k", {"b": 1, "a": tmp_path / "a" / "x"}, {"r": tmp_path / "a" / "x"})
    second = provenance("k", {"a": tmp_path / "b" / "x", "b": 1}, {"r": tmp_path / "b" / "x"})
    assert first == second
    assert str(tmp_path) not in json.dumps(first)


def test_sources_are_hashed_side_by_side_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, seen = threading.Barrier(2, timeout=30), []

    def hashed(path: Path) -> str:
        both.wait()  # for ever, if one waits for the other to be done
        seen.append(path.name)
        return path.name * 2

    monkeypatch.setattr(provenance_module, "sha256", hashed)
    monkeypatch.setattr(provenance_module, "usable_threads", lambda: 2)
    metadata = provenance("k", {}, {role: tmp_path / role[0] for role in ("a", "b", "a again", "b again")})
    assert sorted(seen) == ["a", "b"]
    assert json.loads(metadata["sources"])["b again"] == {"file": "b", "sha256": "bb"}


@pytest.mark.parametrize("value", [object(), float("nan"), torch.ones(1)])
def test_settings_that_are_no_json_are_refused(value: object) -> None:
    with pytest.raises(StaError, match="cannot be recorded as JSON"):
        provenance("k", {"x": value}, {})


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StaError, match="cannot read"):
        provenance("k", {}, {"pretrained": tmp_path / "absent"})
