"""The short way to say a merge and a forgetting: files in, file out."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from sta_lightning.arithmetic import FORGET_METHODS, FUSION_METHODS, make_method, settings_of
from sta_lightning.cli.catalogue import methods
from sta_lightning.cli.front import spelled_out
from sta_lightning.cli.main import main
from sta_lightning.engine.files import MERGE_MEASURES
from sta_lightning.engine.options import DATA_FREE, DATA_FREE_FORGETTING, MeasureName
from sta_lightning.ranges import range_of
from sta_lightning.weights import load_weights, read_metadata, save_weights
from tests.toys import write_finetuned, write_importance, write_pretrained


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a whole CLIP and two encoders fine-tuned from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STA_CACHE", str(tmp_path / "cache"))
    write_pretrained(Path("base.safetensors"))
    for seed, name in enumerate(("cars", "dogs")):
        write_finetuned(Path(f"{name}.safetensors"), Path("base.safetensors"), seed)
    return tmp_path


def settings(path: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(read_metadata(path)["settings"])
    return found


def test_three_files_and_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["merge", "base.safetensors", "cars.safetensors", "dogs.safetensors", "-o", "out.safetensors"])
        == 0
    )
    first, text, written, then = capsys.readouterr().out.splitlines()
    assert first.startswith("method: SWUDI-A (no importance lies beside 'cars', 'dogs'; ")
    assert text == "text tower: equal in all models, copied"
    assert written.startswith("written: out.safetensors (")
    assert then == "next: sta inspect out.safetensors"
    found = settings("out.safetensors")
    assert (found["method"], found["encoder"], found["tasks"]) == (DATA_FREE, "miniature", ["cars", "dogs"])


def test_both_ways_write_the_same() -> None:
    short = [
        "base.safetensors",
        "cars.safetensors",
        "d=dogs.safetensors",
        "--method",
        "ties",
        "--keep",
        "0.3",
    ]
    assert main(["merge", *short, "-o", "short.safetensors"]) == 0
    Path("long.yaml").write_text(
        "model:\n  pretrained: base.safetensors\n  tasks: {cars: cars.safetensors, d: {finetuned: dogs.safetensors}}\n"
        "  method: ties\n  settings: {keep: 0.3}\noutput: long.safetensors\nevaluate: false\n"
    )
    assert main(["merge", "--config", "long.yaml"]) == 0
    assert Path("short.safetensors").read_bytes() == Path("long.safetensors").read_bytes()


def test_coefficients_by_task_and_layer_in_both_ways() -> None:
    words = [
        "--scale",
        "cars=0.6",
        "--scale=d=-0.1",
        "--scale-layers",
        "*.mlp.*=0.2,1",
        "--scale_layers=*.bias=0",
    ]
    files = ["base.safetensors", "cars.safetensors", "d=dogs.safetensors", "--method=task_arithmetic"]
    assert main(["merge", *files, *words, "-o", "short.safetensors"]) == 0
    Path("long.yaml").write_text(
        "model:\n  pretrained: base.safetensors\n  tasks: {cars: cars.safetensors, d: dogs.safetensors}\n"
        "  method: task_arithmetic\n  scale: {cars: 0.6, d: -0.1}\n"
        "  scale_layers: {'*.mlp.*': [0.2, 1], '*.bias': 0}\noutput: long.safetensors\nevaluate: false\n"
    )
    assert main(["merge", "--config", "long.yaml"]) == 0
    assert Path("short.safetensors").read_bytes() == Path("long.safetensors").read_bytes()
    base, cars, dogs, out = (load_weights(f"{n}.safetensors") for n in ("base", "cars", "dogs", "short"))
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    wanted = 0.6 * (cars[name] - base[name]) - 0.1 * (dogs[name] - base[name])
    torch.testing.assert_close(out[name] - base[name], wanted, rtol=0, atol=1e-6)
    assert torch.equal(out["visual.ln_post.bias"], base["visual.ln_post.bias"])


def test_importance_beside_the_checkpoints_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    files = ["base.safetensors", "cars.safetensors", "dogs.safetensors"]
    for seed, name in enumerate(("cars", "dogs")):
        write_importance(Path(f"{name}-importance.safetensors"), Path("base.safetensors"), seed)
    assert main(["merge", *files, "-o", "out.safetensors", "--p", "0.3"]) == 0
    assert capsys.readouterr().out.startswith("method: STA (every task has its importance;")
    found = settings("out.safetensors")
    assert (found["method"], found["p"]) == ("sta", 0.3)
    assert "importance/cars" in json.loads(read_metadata("out.safetensors")["sources"])


def test_folders_call_their_tasks() -> None:
    for name in ("cars", "dogs"):
        Path(name).mkdir()
        Path(f"{name}.safetensors").rename(f"{name}/encoder.safetensors")
    write_importance(Path("cars/importance.safetensors"), Path("base.safetensors"), 0)
    words = [
        "base.safetensors",
        "cars/encoder.safetensors",
        "dogs/encoder.safetensors",
        "-o",
        "out.safetensors",
    ]
    assert main(["merge", *words]) == 0
    found = settings("out.safetensors")
    assert (found["method"], found["tasks"]) == (DATA_FREE, ["cars", "dogs"])


def test_a_lone_importance_is_not_taken_for_two() -> None:
    write_importance(Path("importance.safetensors"), Path("base.safetensors"), 0)
    words = ["base.safetensors", "cars.safetensors", "dogs.safetensors", "-o", "out.safetensors"]
    assert main(["merge", *words]) == 0
    assert settings("out.safetensors")["method"] == DATA_FREE


def test_forgetting(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cars.safetensors", "--base", "base.safetensors", "--finetuned", "dogs.safetensors"]
    assert main(["forget", *words, "-o", "out.safetensors"]) == 0
    assert capsys.readouterr().out.startswith("method: Task arithmetic (no importance lies beside")
    found = settings("out.safetensors")
    assert (found["method"], found["target"]) == (DATA_FREE_FORGETTING, "dogs")
    base, cars, dogs, out = (load_weights(f"{n}.safetensors") for n in ("base", "cars", "dogs", "out"))
    for name, tensor in out.items():
        torch.testing.assert_close(tensor, cars[name] - (dogs[name] - base[name]), rtol=0, atol=1e-6)


def test_what_comes_out_is_named_by_its_shapes_where_nobody_tells() -> None:
    # As open_clip's and OpenAI's files of one shape, whose activations differ.
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv1.weight": (768, 3, 32, 32), "class_embedding": (768,), "positional_embedding": (50, 768)}
    shapes |= {"proj": (768, 512), "transformer.resblocks.0.mlp.c_fc.weight": (3072, 768)}
    shapes |= {f"transformer.resblocks.{i}.ln_1.weight": (768,) for i in range(12)}
    for name in ("b32", "one", "two"):
        state = {f"visual.{n}": torch.randn(s, generator=generator) for n, s in shapes.items()}
        save_weights(f"{name}.safetensors", state)
    words = ["b32.safetensors", "one.safetensors", "two.safetensors", "--method", "average"]
    assert main(["merge", *words, "-o", "out.safetensors"]) == 0
    found = settings("out.safetensors")
    assert found["encoder"] is None
    assert str(found["architecture"]).startswith("ViT-B/32 of CLIP, 224×224")


MISTAKES = [
    ("nope.safetensors cars.safetensors", ["the pretrained model", "'nope.safetensors'", "looked from"]),
    ("base.safetensors nope.safetensors", ["'nope'", "'nope.safetensors'", "looked from"]),
    ("base.safetensors", ["nothing to merge", "sta merge BASE FILE FILE -o OUT"]),
    ("base.safetensors cars.safetensors dogs.safetensors --method tis", ["'tis'", "Did you mean 'ties'"]),
    ("base.safetensors cars.safetensors dogs.safetensors --kep 0.3", ["--kep", "Did you mean 'keep'"]),
    ("base.safetensors cars.safetensors dogs.safetensors --keep 0.3", ["'swudi_a'", "'keep'", "'ties'"]),
    ("base.safetensors cars.safetensors dogs.safetensors --method ties --p 0.3", ["'ties'", "'p'", "'keep'"]),
    (
        "base.safetensors cars.safetensors --method ties --scale cars=big",
        ["--scale cars=big", "'big' is no num"],
    ),
    (
        "base.safetensors cars.safetensors --method average --scale cars=1",
        ["'average'", "no setting 'scale'"],
    ),
    ("base.safetensors x=cars.safetensors x=dogs.safetensors", ["'x'", "both", "NAME=dogs.safetensors"]),
    ("--tasks={a: cars.safetensors}", ["pretrained", "encoder=miniature"]),
    *(
        (f"base.safetensors cars.safetensors dogs.safetensors {words}", [expected])
        for words, expected in (
            ("--method sta --p 1.3", "p must be a number in [0, 1], and is 1.3. 0 keeps all"),
            ("--method sta --p half", "p must be a number in [0, 1], and is 'half'."),
            ("--model.p=half", "--model.p: expected a number; found 'half'"),
            ("--method random_mask --model.p=-0.1", "p must be a number in [0, 1], and is -0.1."),
            ("--method ties --keep 2", "keep must be a number in (0, 1], and is 2."),
            ("--method ties --scale nan", "scale must be a finite number, and is"),
            ("--method ties --scale cars=nan", "scale of task 'cars' must be a finite number, and is "),
            (
                "--method consensus --agree 0.5",
                "must be an integer in [1, inf), and is 0.5. The authors use 2.",
            ),
            ("--method pcb --clamp 0.5", "at either end, must be a number in [0, 0.5), and is 0.5."),
            ("--dare 1.5", "DARE's drop rate must be a number in [0, 1), and is 1.5."),
            (
                "--method sta --normalize foo",
                "normalize='foo' was asked for; choose one of 'tensor', 'block',",
            ),
            ("--model.method=sta --model.normalize=foo", "normalize='foo' was asked for;"),
            ("--method ties --merge median", "merge='median' was asked for; choose one of 'mean', 'sum'."),
            ("--method fisher --normalized 2", "normalized=2 was asked for; choose one of True, False."),
            (
                "--method consensus --tall=-1",
                "tall, the lambda of the TALL masks, must be a number in [0, inf)",
            ),
            (
                "--method consensus --tall dogs=-1",
                "masks, of task 'dogs' must be a number in [0, inf), and is -1",
            ),
            ("--method lines --inner tis", "method 'tis' is unknown. Did you mean 'ties'?"),
            ("--method sta --measure lq", "expected one of 'lp', 'amp', 'lp+amp', "),
            ("--method ties --scale_layers *=nan", "--model.scale_layers: expected a number"),
            (
                '--method ties --scale_layers={"*":[]}',
                "scale_layers of '*' must be a finite number, and is [].",
            ),
            ("--method ties --scale_layers *.bias=0,x", "'0,x' is no number. Give NAME=NUMBER"),
            ("--method average --scale_layers *=1", "method 'average' (as asked) has no setting 'scale'"),
            ("--method ties --scale_layers 0.3", "--model.scale_layers: expected a mapping"),
        )
    ),
]


@pytest.mark.parametrize(("line", "expected"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistakes_are_answered_before_torch_is_imported(line: str, expected: list[str]) -> None:
    words = line.split(" ") if not line.startswith("--tasks") else [line]
    said = refused_at_once(["merge", *words, "-o", "out.safetensors"])
    for part in expected:
        assert part in said
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    "line",
    [
        "inspect nope.safetensors",
        "inspect base.safetensors x=nope.safetensors",
        "predict --model nope.safetensors .",
    ],
)
def test_a_missing_file_is_named_before_torch_is_imported(line: str) -> None:
    assert "there is no weights file 'nope.safetensors' (looked from" in refused_at_once(line.split(" "))


def test_missing_pictures_are_named_before_torch_is_imported() -> None:
    said = refused_at_once(["predict", "--model", __file__, "nope"])
    assert "there is no file or folder 'nope' (looked from" in said


def refused_at_once(words: list[str]) -> str:
    """The one line by which a process refuses them that has not imported torch."""
    code = (
        "import sys; from sta_lightning.cli.main import main; status = main(sys.argv[1:]); "
        "print('torch' in sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "False\n"
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a=b", "--heads", "x"], []),
        (["--evaluate"], ["--evaluate=true"]),
        (["--scale", "-0.5"], ["--model.settings.scale=-0.5"]),
        (["--method", "mine.py:f", "--odd", "3"], ["--model.method=mine.py:f", "--model.settings.odd=3"]),
        (["-omerged.safetensors", "-c", "x.yaml"], ["--output=merged.safetensors", "--config=x.yaml"]),
        (["--model.p=0.3", "--files.head", "h"], ["--model.p=0.3", "--model.files.head=h"]),
        (["--model.heads", "--seed", "3"], ["--model.heads=true", "--model.seed=3"]),
        (["--keep"], ["--model.settings.keep"]),
    ],
)
def test_how_it_is_spelled_out(words: list[str], expected: list[str]) -> None:
    if expected:
        assert spelled_out("merge", words) == expected


@pytest.mark.parametrize(("command", "table"), [("merge", FUSION_METHODS), ("forget", FORGET_METHODS)])
def test_the_source_tells_what_the_classes_have(command: str, table: dict[str, type]) -> None:
    told = methods(command)
    assert {name: set(settings) for name, settings in told.items()} == {
        name: set(settings_of(method)) for name, method in table.items()
    }
    for name, method in table.items():
        has = {field.name: range_of(field) for field in dataclasses.fields(method)}  # type: ignore[arg-type]
        assert told[name] == has
        # Every number has a range, and every word those that there are, but seeds and methods.
        assert settings_of(method).keys() - {key for key, within in has.items() if within} <= {
            "seed",
            "inner",
        }


def test_the_measures_are_those_that_a_merge_reads() -> None:
    assert get_args(MeasureName) == MERGE_MEASURES


def test_the_default_needs_neither_data_nor_coefficient() -> None:
    for name, table in ((DATA_FREE, FUSION_METHODS), (DATA_FREE_FORGETTING, FORGET_METHODS)):
        method = make_method(name, table)
        assert (method.data, method.needs_importance, method.needs_grams) == ("nothing", False, False)
