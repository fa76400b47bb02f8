"""What merging and building read: every layout under the names that they look for."""

from contextlib import ExitStack
from pathlib import Path

import torch

from sta_lightning.arithmetic.sources import in_memory, whole
from sta_lightning.weights import TensorFile, encoder_part, save_weights
from sta_lightning.weights.formats import convert, load_state, open_sources
from tests.weights.formats.test_conversion import WRITERS, archive_of_openai
from tests.weights.formats.tiny import CONFIGS, NAMES, same, tiny_clip


def test_every_layout_gives_the_encoder_that_a_merge_looks_for(tmp_path: Path) -> None:
    reference = in_memory(tiny_clip(seed=2).visual.state_dict())
    wanted = tiny_clip().visual.state_dict()
    for number, (way, write) in enumerate(WRITERS.items()):
        path = tmp_path / f"{number}.pt"
        write(tiny_clip(), path)
        with ExitStack() as stack:
            tensors, metadata = open_sources(path, stack, unsafe_pickle="module" in way)
            found = encoder_part(tensors, names=reference, title=way)
            same({name: whole(source) for name, source in found.items()}, wanted)
        assert metadata == {}


def test_hugging_faces_layout_without_a_projection(tmp_path: Path) -> None:
    base, finetuned = tiny_clip(seed=2).visual.state_dict(), tiny_clip().visual.state_dict()
    torch.save({name: value for name, value in finetuned.items() if name != "proj"}, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "theirs", "huggingface", configs=CONFIGS, encoder=NAMES["gelu"])
    reference = in_memory(base)
    with ExitStack() as stack:
        tensors, metadata = open_sources(tmp_path / "theirs", stack, projection=reference["proj"])
        found = encoder_part(tensors, names=reference, title="it")
        same({name: whole(source) for name, source in found.items()}, {**finetuned, "proj": base["proj"]})
    assert metadata["kind"] == "converted"


def test_a_file_of_this_package_is_left_as_it_is(tmp_path: Path) -> None:
    # Importances bring their bounds in such a file's metadata.
    save_weights(tmp_path / "a.safetensors", tiny_clip().visual.state_dict(), {"measure": "lp"})
    with ExitStack() as stack:
        tensors, metadata = open_sources(tmp_path / "a.safetensors", stack)
        assert isinstance(tensors, TensorFile)
    assert metadata == {"measure": "lp"}
    save_weights(tmp_path / "head.safetensors", {"weight": torch.ones(2)})
    assert load_state(tmp_path / "head.safetensors").keys() == {"weight"}


def test_whole_models_are_loaded_whole(tmp_path: Path) -> None:
    clip = tiny_clip()
    archive_of_openai(tiny_clip(), tmp_path / "openai.pt")
    same(load_state(tmp_path / "openai.pt"), clip.state_dict())
    torch.save(clip.state_dict(), tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "theirs", "huggingface", configs=CONFIGS, encoder=NAMES["gelu"])
    same(load_state(tmp_path / "theirs"), clip.state_dict())
