from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sta_lightning.encoders import build_clip, heads, zeroshot_head
from sta_lightning.weights import save_weights

CLASSES, TEMPLATES = ("cat", "big dog"), ("a photo of a {}.", "{}")


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(build_clip("miniature", "random").state_dict())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The weights of which heads were made, and not read."""
    calls: list[str | None] = []
    own = heads._zeroshot

    def counted(name: str, pretrained: str | None, *others: tuple[str, ...]) -> Tensor:
        calls.append(pretrained)
        return own(name, pretrained, *others)

    monkeypatch.setattr(heads, "_zeroshot", counted)
    return calls


def kept(caches: Path) -> list[Path]:
    return sorted((caches / "sta" / "heads").glob("*.safetensors"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_head_is_made_once_and_read_bit_for_bit(
    suffix: str, state: dict[str, Tensor], made: list[str | None], caches: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"clip{suffix}"
    save_weights(path, state) if suffix == ".safetensors" else torch.save(state, path)
    first = zeroshot_head("miniature", str(path), CLASSES, TEMPLATES)
    again = zeroshot_head("miniature", str(path), list(CLASSES), list(TEMPLATES))
    assert torch.equal(first, again)
    assert first.dtype == again.dtype == torch.float32
    assert len(made) == len(kept(caches)) == 1
    again.zero_()  # nobody else's
    assert torch.equal(zeroshot_head("miniature", str(path), CLASSES, TEMPLATES), first)


def test_only_what_a_head_follows_from_counts(
    state: dict[str, Tensor], made: list[str | None], caches: Path, tmp_path: Path
) -> None:
    def head(changed: dict[str, Tensor], names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_weights(path, {**state, **changed})
        return zeroshot_head("miniature", str(path), names, templates)

    first = head({}, CLASSES, TEMPLATES)
    name = "visual.proj"
    assert torch.equal(
        head({name: state[name] + 1}, CLASSES, TEMPLATES), first
    )  # another place, another image encoder
    assert len(made) == 1
    for changed, names, templates in (
        ({"text_projection": state["text_projection"] * 1.5}, CLASSES, TEMPLATES),
        ({"logit_scale": state["logit_scale"] + 1}, CLASSES, TEMPLATES),
        ({}, CLASSES[::-1], TEMPLATES),
        ({}, ("cat", "big", "dog"), TEMPLATES),
        ({}, CLASSES, TEMPLATES[:1]),
        ({}, CLASSES, TEMPLATES[::-1]),
    ):
        before = len(made)
        head(changed, names, templates)
        assert len(made) == before + 1, (changed.keys(), names, templates)
    assert len(kept(caches)) == 7


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty"])
def test_a_damaged_entry_is_made_again(
    damage: str, state: dict[str, Tensor], made: list[str | None], caches: Path, tmp_path: Path
) -> None:
    path = tmp_path / "clip.safetensors"
    save_weights(path, state)
    first = zeroshot_head("miniature", str(path), CLASSES, TEMPLATES)
    (entry,) = kept(caches)
    content = bytearray(entry.read_bytes())
    if damage == "cut":
        entry.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[-3] ^= 1
        entry.write_bytes(content)
    elif damage == "other":
        save_weights(entry, {"weight": torch.zeros(2, 128)})
    else:
        entry.write_bytes(b"")
    assert torch.equal(zeroshot_head("miniature", str(path), CLASSES, TEMPLATES), first)
    assert len(made) == 2
    assert torch.equal(zeroshot_head("miniature", str(path), CLASSES, TEMPLATES), first)
    assert len(made) == 2


def test_a_file_changed_in_its_place_is_another(
    state: dict[str, Tensor], made: list[str | None], tmp_path: Path
) -> None:
    path = tmp_path / "clip.safetensors"
    save_weights(path, state)
    first = zeroshot_head("miniature", str(path), CLASSES, TEMPLATES)
    save_weights(path, {**state, "logit_scale": state["logit_scale"] + 1})
    os.utime(path, ns=(1, 1))
    torch.testing.assert_close(zeroshot_head("miniature", str(path), CLASSES, TEMPLATES), first * torch.e)


def test_random_weights_are_not_kept(made: list[str | None], caches: Path) -> None:
    for _ in range(2):
        zeroshot_head("miniature", "random", CLASSES, TEMPLATES)
    assert len(made) == 2
    assert kept(caches) == []


def test_without_a_place_to_keep_it_the_head_is_made_all_the_same(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(tmp_path / "clip.safetensors", state)
    (tmp_path / "taken").write_text("a file where the folder should be")
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "taken"))
    found = zeroshot_head("miniature", str(tmp_path / "clip.safetensors"), CLASSES, TEMPLATES)
    assert found.shape == (2, 128)
