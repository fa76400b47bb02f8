"""``sta convert`` from the command line, on the package's own architecture."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sta_lightning.cli.main import main
from sta_lightning.encoders.build import build_clip, build_encoder
from sta_lightning.weights import load_weights, read_metadata


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(build_clip("miniature", "random").state_dict(), path)
    return path


def test_help_gives_the_meaning_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--to", "--encoder", "--pretrained", "--dtype", "--unsafe-pickle"):
        assert re.search(rf"^  {option}[ ,\n]", text, flags=re.MULTILINE), option
    assert "IN OUT" in text


def test_it_needs_neither_lightning_nor_open_clip(clip_file: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from sta_lightning.cli.main import main\n"
        f"code = main(['convert', {str(clip_file)!r}, {str(tmp_path / 'o')!r}, '--to=huggingface', '--encoder=miniature'])\n"
        "heavy = ('lightning', 'open_clip', 'timm', 'torchvision', 'transformers', 'matplotlib')\n"
        "print(code, [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert "CLIPModel.from_pretrained('o')" in (tmp_path / "o" / "README.md").read_text()
    assert '"image_mean": [\n    0.5,' in (tmp_path / "o" / "preprocessor_config.json").read_text()


def test_there_and_back(clip_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = tmp_path / "folder", tmp_path / "back.safetensors"
    assert main(["convert", str(clip_file), str(folder), "--to", "huggingface", "--encoder=miniature"]) == 0
    assert capsys.readouterr().out.startswith(f"written: {folder} (a whole CLIP, miniature of CLIP")
    assert main(["convert", str(folder), str(file), "--to=open_clip"]) == 0
    wanted, found = torch.load(clip_file, weights_only=True), load_weights(file)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    build_clip("miniature", str(file))
    assert main(["convert", str(folder), str(file), "--to=safetensors", "--dtype=float16"]) == 0
    assert {value.dtype for value in load_weights(file).values()} == {torch.float16}
    assert read_metadata(file)["kind"] == "converted"
    capsys.readouterr()
    assert main(["inspect", str(file)]) == 0
    text = capsys.readouterr().out
    assert "  converted     from: safetensors, Hugging Face's names: a whole CLIP" in text
    assert "activation: gelu" in text
    assert "model: model.safetensors, SHA-256 " in text
    build_encoder("miniature", str(file))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "sta convert IN OUT --to FORMAT"),
        (["a.pt", "b.safetensors"], "sta convert IN OUT --to FORMAT"),
        (["a.pt", "b.safetensors", "--to=onnx"], "open_clip"),
        (["a.pt", "b.safetensors", "--to=open_clip", "--dtype=int8"], "float16"),
        (["a.pt", "b.safetensors", "--to=open_clip", "--unsafe"], "unsafe"),
        (["nowhere.pt", "b.safetensors", "--to=open_clip"], "there is no weights file 'nowhere.pt'"),
        (["a.pt", "b.pt", "--to=open_clip"], "ends in .safetensors"),
        (["a.npz", "b.safetensors", "--to=open_clip"], "'a.npz' is not a whole checkpoint"),
    ],
)
def test_mistakes(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"x")
    assert main(["convert", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error, error
    assert "internal error" not in error
    assert not (tmp_path / "b.safetensors").exists()


def test_a_wrong_architecture_is_one_message(
    clip_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", str(clip_file), str(tmp_path / "o"), "--to=huggingface", "--encoder=ViT-B-16"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"'{clip_file}' is no ViT-B-16: it is miniature" in error
    assert "'miniature'" in error.split("Known architectures")[1]


def test_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5))
    torch.save(layer.state_dict(), tmp_path / "base.pt")
    changed = layer.state_dict() | {"0.weight": layer[0].weight + torch.ones(5, 6), "1.bias": torch.ones(5)}
    torch.save(changed, tmp_path / "tuned.pt")
    words = ["convert", str(tmp_path / "tuned.pt"), str(tmp_path / "adapter"), "--to=lora", "--rank=1"]
    assert main(words) == 2
    assert "give that with --pretrained" in capsys.readouterr().err
    assert main([*words, f"--pretrained={tmp_path / 'base.pt'}"]) == 0
    said = capsys.readouterr().out
    assert "100.00%  0\n" in said
    assert (
        f"written: {tmp_path / 'adapter'} (100.00% of the whole change's energy; 1 modules are in it whole)"
        in said
    )
    assert load_weights(tmp_path / "adapter" / "adapter_model.safetensors").keys() == {
        *(f"base_model.model.0.lora_{end}.weight" for end in "AB"),
        *(f"base_model.model.1.{end}" for end in ("weight", "bias")),
    }


def test_an_average_of_the_weights_is_listed_and_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = build_encoder("miniature", "random").state_dict()
    average = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"state_dict": state, "epoch": 1, "state_dict_ema": average}, "last.pth.tar")
    assert main(["inspect", "last.pth.tar"]) == 0
    assert "state dicts   state_dict, state_dict_ema (the first is read; another with --state)" in (
        capsys.readouterr().out
    )
    assert main(["inspect", "last.pth.tar", "--state=ema"]) == 0
    assert "state_dict_ema, state_dict (" in capsys.readouterr().out
    for words, wanted in (([], state), (["--state", "ema"], average)):
        assert main(["convert", "last.pth.tar", "out.safetensors", "--to=safetensors", *words]) == 0
        found = load_weights("out.safetensors")
        assert all(torch.equal(found[f"visual.{name}"], tensor) for name, tensor in wanted.items())
    assert main(["convert", "last.pth.tar", "out.safetensors", "--to=safetensors", "--state=swa"]) == 2
    assert "'state_dict', 'state_dict_ema'. Name one of these" in capsys.readouterr().err


def test_nan_is_written_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = build_encoder("miniature", "random").state_dict()
    state["proj"].fill_(torch.nan)
    torch.save(state, "a.pt")
    (tmp_path / "out.safetensors").write_bytes(b"older")
    words = ["convert", "a.pt", "out.safetensors", "--to=safetensors"]
    assert main(words) == 2
    assert "tensor 'visual.proj' holds NaN or Inf" in capsys.readouterr().err
    assert (tmp_path / "out.safetensors").read_bytes() == b"older"
    assert main([*words, "--allow-nonfinite"]) == 0
    assert bool(torch.isnan(load_weights("out.safetensors")["visual.proj"]).all())
