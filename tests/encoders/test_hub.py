from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub import constants, errors
from torch import Tensor, nn

from sta_lightning.encoders import build_clip, build_encoder, empty_encoder, encoder_spec, zeroshot_head
from sta_lightning.encoders.hub import Repository
from sta_lightning.encoders.pretrained import pretrained_file, pretrained_for_merge
from sta_lightning.errors import StaError
from sta_lightning.weights import sha256
from tests.encoders.hub_cache import MEAN, STD, random_clip, saved, tiny_config, write_repository, written

NAME = "hf-hub:org/tiny-clip"
OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"


@pytest.fixture
def cached(caches: Path, tmp_path: Path) -> dict[str, dict[str, Tensor]]:
    """Two revisions of a repository in the cache: one by hash and tag, one as ``main``."""
    config = tiny_config(quick_gelu=True)
    states = {OLD: random_clip(config, 1), NEW: random_clip(config, 2)}
    for commit, reference, weights in (
        (OLD, "v1", "open_clip_pytorch_model.bin"),
        (NEW, "main", "open_clip_model.safetensors"),
    ):
        files = {
            "open_clip_config.json": written(tmp_path / commit / "config.json", config),
            weights: saved(tmp_path / commit / weights, states[commit]),
        }
        write_repository(caches / "hub", "org/tiny-clip", commit, files, reference)
    return states


def visual(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("visual."): t for name, t in state.items() if name.startswith("visual.")}


def equal(module: nn.Module, state: dict[str, Tensor]) -> bool:
    own = module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


@pytest.mark.parametrize(
    ("name", "commit"), [(NAME, NEW), (f"{NAME}@main", NEW), (f"{NAME}@v1", OLD), (f"{NAME}@{OLD}", OLD)]
)
def test_a_cached_repository_needs_no_network(
    name: str, commit: str, cached: dict[str, dict[str, Tensor]], network: list[str]
) -> None:
    encoder = build_encoder(name)
    assert equal(encoder, visual(cached[commit]))
    assert isinstance(encoder.get_submodule("transformer.resblocks.0.mlp.gelu"), open_clip.model.QuickGELU)
    spec = encoder_spec(name)
    assert (spec.image_size, spec.mean, spec.std, spec.interpolation) == (16, MEAN, STD, "bilinear")
    assert zeroshot_head(name, None, ("cat", "dog"), ("a {}.",)).shape == (2, 128)
    assert build_clip(name, None, 24).visual(torch.zeros(1, 3, 24, 24)).shape == (1, 128)
    assert empty_encoder(name).state_dict().keys() == encoder.state_dict().keys()
    assert network == []


def test_a_repository_gives_what_open_clip_makes_of_it(
    cached: dict[str, dict[str, Tensor]], caches: Path, tmp_path: Path, network: list[str]
) -> None:
    folder = caches / "hub" / "models--org--tiny-clip" / "snapshots" / NEW
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = build_encoder(NAME).eval()
    assert torch.equal(ours(image), theirs.eval().visual(image))
    assert tuple(preprocess.transforms[-1].mean) == encoder_spec(NAME).mean


def test_another_file_for_the_architecture_of_a_repository(
    cached: dict[str, dict[str, Tensor]], tmp_path: Path, network: list[str]
) -> None:
    state = random_clip(tiny_config(quick_gelu=True), 5)
    assert equal(build_encoder(NAME, str(saved(tmp_path / "own.pt", state))), visual(state))
    torch.manual_seed(0)
    first = build_encoder(NAME, "random")
    assert not equal(first, visual(cached[NEW]))
    with pytest.raises(StaError, match="Leave pretrained out to use the repository's own weights"):
        build_encoder(NAME, "openai")
    assert network == []


def test_a_repository_is_merged_from_its_file(
    cached: dict[str, dict[str, Tensor]], network: list[str]
) -> None:
    with ExitStack() as stack:
        found = pretrained_for_merge(NAME, None, None, stack)
        file = pretrained_file(NAME, None)
        assert found.file == file
        assert found.prefix == "visual."
        assert file is not None
        assert file.name == "open_clip_model.safetensors"
        assert len(sha256(file)) == 64
        for name, tensor in visual(cached[NEW]).items():
            read = found.tensors[name].read(slice(0, tensor.numel()), tensor.dtype).reshape(tensor.shape)
            assert torch.equal(read, tensor)
    with ExitStack() as stack:  # not safetensors: built
        found = pretrained_for_merge(f"{NAME}@v1", None, None, stack)
        assert found.tensors.keys() == visual(cached[OLD]).keys()
    assert network == []


@pytest.fixture
def tagged(caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A small architecture of open_clip with two tags, one of them in the cache."""
    config = tiny_config()
    open_clip.add_model_config(written(tmp_path / "configs" / "tiny-tagged.json", config["model_cfg"]))
    tags = {
        "openai": {"hf_hub": "org/tiny.openai/", "quick_gelu": True, "mean": MEAN, "std": STD},
        "lost": {"hf_hub": "org/tiny.lost/special.pth"},
        "plain": {"hf_hub": "org/tiny.openai/"},
    }
    for tag in tags.values():
        tag.setdefault("interpolation", "bicubic")
        tag.setdefault("resize_mode", "shortest")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-tagged", tags)
    state = random_clip(config, 3)
    file = saved(tmp_path / "open_clip_pytorch_model.bin", state)
    write_repository(caches / "hub", "org/tiny.openai", NEW, {file.name: file})
    return state


def test_a_cached_tag_needs_no_network(tagged: dict[str, Tensor], network: list[str]) -> None:
    encoder = build_encoder("tiny-tagged", "openai")
    assert equal(encoder, visual(tagged))
    gelu = "transformer.resblocks.0.mlp.gelu"
    assert isinstance(encoder.get_submodule(gelu), open_clip.model.QuickGELU)
    assert isinstance(empty_encoder("tiny-tagged", "openai").get_submodule(gelu), open_clip.model.QuickGELU)
    assert isinstance(build_encoder("tiny-tagged", "plain").get_submodule(gelu), nn.GELU)
    assert encoder_spec("tiny-tagged", pretrained="openai").mean == MEAN
    assert encoder_spec("tiny-tagged", pretrained="plain").mean == open_clip.OPENAI_DATASET_MEAN
    first = zeroshot_head("tiny-tagged", "openai", ("cat",), ("a {}.",))
    other = zeroshot_head("tiny-tagged", "plain", ("cat",), ("a {}.",))
    assert not torch.allclose(first, other)  # the text tower has the activation too
    assert network == []


def test_weights_that_are_nowhere_are_one_message_without_repetition(
    tagged: dict[str, Tensor], caches: Path, network: list[str]
) -> None:
    with pytest.raises(StaError) as caught:
        build_encoder("tiny-tagged", "lost")
    text = str(caught.value)
    for part in ("'special.pth'", "'org/tiny.lost'", str(caches / "hub"), "cannot be reached"):
        assert part in text
    assert "`hf download org/tiny.lost special.pth`" in text
    assert "models--org--tiny.lost" in text
    # The hub's client asks once in a process for something of its own; a download tries six times
    # for each file.
    assert 1 <= len(network) <= 2


def test_offline_mode_asks_nobody(
    caches: Path, network: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        StaError, match=r"open_clip_config\.json' of the repository 'org/none'.*HF_HUB_OFFLINE"
    ):
        encoder_spec("hf-hub:org/none")
    with pytest.raises(StaError, match=r"--include \"open_clip\*\" --revision abc`"):
        encoder_spec("hf-hub:org/none@abc")
    # The description alone does not do.
    config = written(tmp_path / "config.json", tiny_config())
    write_repository(caches / "hub", "org/half", NEW, {"open_clip_config.json": config})
    with pytest.raises(StaError, match=r"'open_clip_model\.safetensors' or 'open_clip_pytorch_model\.bin'"):
        build_encoder("hf-hub:org/half")
    assert build_encoder("hf-hub:org/half", "random")(torch.zeros(1, 3, 16, 16)).shape == (1, 128)
    assert network == []


def _refused(kind: type[Exception]) -> Exception:
    # Without __init__, which wants an answer of whichever HTTP library the hub's client is built
    # on.
    error = kind.__new__(kind)
    error.args = ("refused",)
    return error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RevisionNotFoundError, "no revision 'v9'"),
        (errors.GatedRepoError, "is gated.*hf auth login"),
        (errors.RepositoryNotFoundError, "does not exist, or is private"),
        (
            errors.RemoteEntryNotFoundError,
            "has no file 'open_clip_config.json': it is no repository of open_clip",
        ),
        (TimeoutError, "cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_told(
    kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise _refused(kind)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    with pytest.raises(StaError, match=message):
        encoder_spec("hf-hub:org/name@v9")


def test_a_missing_file_is_fetched_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def look(url: str) -> None:
        if url.endswith(".safetensors"):
            raise _refused(errors.RemoteEntryNotFoundError)

    def fetch(repository: str, name: str, revision: str | None = None) -> str:
        asked.append((f"{repository}@{revision}", name))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", look)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    found = Repository("org/name", "v1").file("a.safetensors", "b.bin")
    assert found == tmp_path / "b.bin"
    assert asked == [("org/name@v1", "b.bin")]


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:a/b@", "hf-hub:/b"])
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(StaError, match="hf-hub:org/name@revision"):
        encoder_spec(name)


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", '{"model_cfg": {"embed_dim": 4}}'])
def test_a_description_of_something_else(content: str, caches: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    write_repository(caches / "hub", "org/odd", NEW, {"open_clip_config.json": file})
    with pytest.raises(StaError, match="'org/odd'"):
        encoder_spec("hf-hub:org/odd")


def test_a_repository_is_an_encoder_and_no_weights() -> None:
    with pytest.raises(StaError, match=f"give encoder={NAME} and leave pretrained out"):
        build_encoder("ViT-B-16", NAME)
    with pytest.raises(StaError, match=r"'local-dir:/tmp' was asked for\. Known are"):
        build_encoder("local-dir:/tmp", "random")


def test_a_damaged_file_of_the_cache_is_named(caches: Path, tmp_path: Path) -> None:
    files = {
        "open_clip_config.json": written(tmp_path / "config.json", tiny_config()),
        "open_clip_model.safetensors": saved(tmp_path / "other.safetensors", {"a": torch.zeros(2)}),
    }
    write_repository(caches / "hub", "org/damaged", NEW, files)
    with pytest.raises(StaError, match=r"could not give 'hf-hub:org/damaged' the weights .*open_clip_model"):
        build_encoder("hf-hub:org/damaged")
