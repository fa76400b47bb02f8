"""``sta inspect`` from the command line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sta_lightning.cli.main import main
from sta_lightning.encoders import build_encoder
from sta_lightning.encoders.sources import MINIATURE_WEIGHTS
from sta_lightning.weights import provenance, save_weights


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fused encoder: the package's own, every weight a little larger."""
    path = tmp_path_factory.mktemp("fused") / "fused.safetensors"
    state = build_encoder("miniature").state_dict()
    metadata = provenance("fused:sta", {"encoder": "miniature", "p": 0.7}, {"pretrained": MINIATURE_WEIGHTS})
    save_weights(path, {f"visual.{name}": 1.5 * value for name, value in state.items()}, metadata)
    return path


def test_help_gives_the_meaning_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--pretrained", "--html", "--json", "--unsafe-pickle"):
        assert re.search(rf"^  {option}[ ,\n]", text, flags=re.MULTILINE), option


def test_text(fused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", str(fused), str(MINIATURE_WEIGHTS), "--pretrained", str(MINIATURE_WEIGHTS)]
    assert main(words) == 0
    brief = capsys.readouterr().out.splitlines()
    assert [re.sub(r"^.*/", "", line) for line in brief[:3]] == [
        "fused.safetensors (7.4 MB, safetensors): fused:sta, miniature of CLIP, 32×32 pixels, 1,845,120 parameters",
        "miniature.safetensors (10.2 MB, safetensors): pretrained CLIP, miniature of CLIP, 32×32 pixels, "
        "5,117,057 parameters",
        "",
    ]
    assert brief[3].startswith("can be merged: 2 models with the ")
    assert main([*words, "--verbose"]) == 0
    text = capsys.readouterr().out
    first, second = text.split("\n\n")[:2]
    for line in (
        r"fused\.safetensors \(7\.4 MB, safetensors\)",
        r"  holds +fused:sta",
        r"  layout +open_clip's names: an image encoder alone under 'visual\.'",
        r"  made by +sta_lightning \d",
        r"  architecture +miniature of CLIP, 32×32 pixels",
        r"  activation +gelu",
        r"  parameters +1,845,120 \(image encoder 1,845,120\)",
        r"  float32 +\d+ tensors, 1,845,120 entries, 7\.4 MB",
        r"  settings +encoder: miniature",
        r" +p: 0\.7",
        r"  sources +pretrained: miniature\.safetensors, SHA-256 [0-9a-f]{16}…",
    ):
        assert re.search(line, first), line
    assert "text tower 3,271,937" in second
    assert "can be merged: 2 models with the " in text
    for line in (
        r"^fused +\d+\.\d+ +\d+\.\d+ +\d+\.\d +1\.0000 ",
        r"^miniature +0\.0000 +0\.000 +0\.0 +1\.0000 +– +\d+ of \d+$",
        r"^visual\.transformer\.resblocks\.3 +50\.000 +0\.000$",
    ):
        assert re.search(line, text, flags=re.MULTILINE), line


def test_json(fused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", str(fused), str(MINIATURE_WEIGHTS)]) == 0
    one, two = json.loads(capsys.readouterr().out)["files"]
    assert one["architecture"]["name"] == two["architecture"]["name"] == "miniature"
    assert one["settings"] == {"encoder": "miniature", "p": 0.7}
    assert two["types"].keys() == {"float16"}


def test_one_file_is_not_compared(fused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", str(fused)]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"files"}
    assert main(["inspect", str(fused), "--html=out.html"]) == 2
    assert f"--html is of a comparison, and '{fused}' alone is named" in capsys.readouterr().err


def test_it_needs_neither_lightning_nor_open_clip(fused: Path) -> None:
    program = (
        "import sys\n"
        "from sta_lightning.cli.main import main\n"
        f"code = main(['inspect', {str(fused)!r}])\n"
        "heavy = ('lightning', 'open_clip', 'timm', 'torchvision', 'transformers', 'matplotlib')\n"
        "print(code, [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_a_bad_file_does_not_hide_the_good_ones(
    fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(fused.read_bytes()[:1000])
    assert main(["inspect", str(bad), str(fused)]) == 2
    out, err = capsys.readouterr()
    assert "fused:sta" in out
    assert f"'{bad}' is not a whole safetensors file" in err
    assert main(["inspect", "--json", str(bad), str(fused)]) == 2
    first, second = json.loads(capsys.readouterr().out)["files"]
    assert "not a whole safetensors file" in first["error"]
    assert second["kind"] == "fused:sta"


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, {"a": torch.ones(1)}, {"note": "one\x1b[2Jtwo\nthree"})
    assert main(["inspect", str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_no_files_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect"]) == 2
    assert "sta inspect FILE" in capsys.readouterr().err
