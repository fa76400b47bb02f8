"""``sta score``: agreement of two precisions, Fisher information, Gram matrices."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from sta_lightning.cli.main import main
from sta_lightning.encoders import ClassificationHead, build_encoder
from sta_lightning.weights import load_weights, read_metadata, save_weights
from tests.conftest import REPOSITORY

FIRST = "transformer.resblocks.0.attn.in_proj_weight"


@pytest.fixture
def words(tiny_suite: Path) -> list[str]:
    """A command line that scores an untrained encoder in the folder that it is run from."""
    import torch

    torch.manual_seed(0)
    encoder = build_encoder("miniature", "random")
    save_weights(tiny_suite / "precision" / "encoder.safetensors", dict(encoder.state_dict()))
    folder = tiny_suite / "precision"
    width = encoder(torch.zeros(1, 3, 32, 32)).shape[-1]
    ClassificationHead(torch.randn(10, width)).save(folder / "head.safetensors")
    return [
        *(
            "score",
            "--config",
            str(REPOSITORY / "configs" / "score" / "miniature.yaml"),
            "--model.pretrained=random",
        ),
        *("--trainer.accelerator=cpu", "--samples=3", f"--weights={folder / 'encoder.safetensors'}"),
        *(f"--model.head={folder / 'head.safetensors'}", f"--output={folder / 'importance.safetensors'}"),
    ]


def test_bf16_is_told_and_recorded(
    words: list[str], tiny_suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--precision=bf16", "--report_agreement=true"]) == 0
    found = json.loads(read_metadata(tiny_suite / "precision" / "importance.safetensors")["agreement"])
    printed = capsys.readouterr().out
    assert f"rank correlation {found['spearman']['mean']:.4f}" in printed
    assert f"{found['kept']['mean']:.2%} of the entries" in printed
    assert found["kept"]["tensor"] in printed


def test_a_report_on_one_precision_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--report_agreement=true"]) == 2
    assert "report_agreement compares a pass in precision='bf16'" in capsys.readouterr().err
    assert main([*words, "--precision=half"]) == 2
    assert "half" in capsys.readouterr().err


def test_gram_matrices(words: list[str], tiny_suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tiny_suite / "precision" / "gram.safetensors"
    assert main([*words, "--measure=gram", f"--output={output}"]) == 0
    assert f"written: {output}" in capsys.readouterr().out
    found = load_weights(output)
    width = build_encoder("miniature", "random").state_dict()[FIRST].shape[1]
    assert found[FIRST].shape == (width, width)
    assert read_metadata(output)["measure"] == "gram"


def test_the_fisher_information(words: list[str], tiny_suite: Path) -> None:
    output = tiny_suite / "precision" / "fisher.safetensors"
    assert main([*words, "--measure=fisher", f"--output={output}"]) == 0
    assert read_metadata(output)["measure"] == "fisher"
    assert load_weights(output).keys() == build_encoder("miniature", "random").state_dict().keys()


def test_what_cannot_be_written_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--measure=file"]) == 2
    said = capsys.readouterr().err
    assert "'file'" in said
    assert "'gram'" in said
    assert main([*words, "--measure=gram", "--precision=bf16"]) == 2
    assert "Gram matrices are collected in float32" in capsys.readouterr().err
    assert main([*words, "--measure=gram", "--samples=0"]) == 2
    assert "samples must be at least 1" in capsys.readouterr().err


@pytest.mark.filterwarnings("default:The rendered set")
def test_it_goes_on_where_the_images_cannot_be_kept(
    words: list[str], tiny_suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tiny_suite / "precision" / "importance.safetensors"
    assert main(words) == 0
    before = output.read_bytes()
    output.unlink()
    capsys.readouterr()
    (tiny_suite / "in_the_way").touch()
    monkeypatch.setenv("STA_CACHE", str(tiny_suite / "in_the_way"))
    assert main(words) == 0
    assert output.read_bytes() == before
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "kept" in line]
    assert said.startswith("sta: warning: The rendered set could not be kept in ")
    assert said.endswith("set STA_CACHE.")


def test_the_help_tells_of_every_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["score", "--help-all"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "mean of x·xᵀ over the inputs x of every linear layer" in printed
    assert "the Fisher information" in printed
