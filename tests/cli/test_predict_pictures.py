"""Folders of pictures classified by a model in a file."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sta_lightning.cli.main import main
from sta_lightning.encoders import ClassificationHead, build_encoder, encoder_spec, zeroshot_head
from sta_lightning.encoders.pictures import read_image
from sta_lightning.engine import TaskSource, read_heads
from sta_lightning.engine.heads import head_metadata, head_tensors
from sta_lightning.modules import MergeModule
from sta_lightning.tasks import Preprocess, get_task
from sta_lightning.weights import load_weights, read_metadata, save_weights
from tests.conftest import REPOSITORY
from tests.toys import CLASSES, register_toys, write_finetuned, write_pretrained

NAMES = ("spots", "stripes")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pretrained CLIP, two fine-tuned encoders, their fusion with heads, and pictures."""
    folder = tmp_path_factory.mktemp("predict")
    register_toys()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STA_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        pretrained = write_pretrained(folder / "clip.safetensors")
        tasks = {
            name: TaskSource(str(write_finetuned(folder / f"{name}.safetensors", pretrained, seed)))
            for seed, name in enumerate(NAMES)
        }
        module = MergeModule(tasks, pretrained=str(pretrained), method="average", heads=True)
        module.save(folder / "fused.safetensors")
        MergeModule(tasks, pretrained=str(pretrained), method="average").save(folder / "bare.safetensors")
        write_pictures(folder / "pictures")
        yield folder


def write_pictures(folder: Path) -> None:
    """Numbered pictures of several formats, modes and sizes in two folders, and other files."""
    generator = np.random.default_rng(0)
    (folder / "more.d").mkdir(parents=True)
    for number, (suffix, mode, size) in enumerate(
        [
            ("png", "RGB", (32, 32)),
            ("jpg", "RGB", (50, 40)),
            ("JPEG", "L", (33, 70)),
            ("bmp", "RGB", (20, 20)),
            ("gif", "P", (32, 48)),
            ("webp", "RGB", (40, 40)),
            ("tif", "RGB", (32, 32)),
            ("tiff", "L", (64, 32)),
            ("ppm", "RGB", (32, 32)),
            ("png", "RGBA", (45, 32)),
            ("png", "RGB", (32, 32)),
        ]
    ):
        pixels = generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        place = folder / "more.d" if number in (2, 7) else folder
        Image.fromarray(pixels).convert(mode).save(place / f"im {number}.{suffix}")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.png").write_text("no picture")


def sta(*words: object) -> int:
    return main(["predict", *(str(word) for word in words)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def expected(work: Path, paths: list[str], head: ClassificationHead, model: str = "fused") -> Tensor:
    """The probabilities by another way: the images as the evaluation prepares them, one by one."""
    spec = encoder_spec("miniature")
    prepare = Preprocess(spec.image_size, spec.mean, spec.std, spec.interpolation)
    state = load_weights(work / f"{model}.safetensors")
    encoder = build_encoder("miniature", "random").eval()
    encoder.load_state_dict(
        {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}
    )
    with torch.no_grad():
        images = [prepare(read_image(Path(path))) for path in paths]
        return torch.cat([head(encoder(image[None])).softmax(-1) for image in images])


def test_a_folder_becomes_a_table(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = work / "out" / "table.csv"
    words = ["--model", work / "fused.safetensors", "--task", "stripes", "pictures"]
    assert sta(*words, "--output", output, "--top", "2", "--batch_size", "4") == 0
    table = rows(output)
    names = [Path(row["path"]).as_posix() for row in table]
    flat = [
        f"pictures/im {n}.{s}"
        for n, s in zip(
            (0, 1, 3, 4, 5, 6, 8, 9, 10),
            ("png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "png", "png"),
            strict=True,
        )
    ]
    assert names == [*flat, "pictures/more.d/im 2.JPEG", "pictures/more.d/im 7.tiff"]
    task = get_task("stripes")
    weight = zeroshot_head("miniature", str(work / "clip.safetensors"), task.class_names, task.templates)
    for row, probabilities in zip(table, expected(work, names, ClassificationHead(weight)), strict=True):
        order = probabilities.argsort(descending=True).tolist()
        assert [int(row["label"]), int(row["label_2"])] == order[:2]
        assert [row["class_name"], row["class_name_2"]] == [CLASSES[label] for label in order[:2]]
        assert float(row["probability"]) == pytest.approx(float(probabilities[order[0]]), abs=2e-5)
        assert "label_3" not in row
    said = capsys.readouterr().out
    assert said.startswith("left out, by their endings: 'pictures/notes.txt'\n11 pictures: ")
    assert f"written: {output}" in said


def test_defaults_and_order_of_places(work: Path) -> None:
    last = "pictures/im 10.png"
    assert (
        sta(
            "--model=fused.safetensors",
            "--task=spots",
            last,
            "pictures/more.d",
            last,
            "pictures/more.d/im 2.JPEG",
        )
        == 0
    )
    table = rows(work / "predictions.csv")
    assert [row["path"] for row in table] == [last, "pictures/more.d/im 2.JPEG", "pictures/more.d/im 7.tiff"]
    assert sum(
        float(table[0][key]) for key in ("probability", "probability_2", "probability_3")
    ) == pytest.approx(1)


def test_heads_of_other_sources_agree(work: Path) -> None:
    """The head in the model's file, that of its own file and that of the prompts are the same."""
    head = read_heads(work / "fused.safetensors")["spots"]
    ClassificationHead.of(head).save(work / "head.safetensors", class_names=CLASSES)
    sources = {
        "brought": ["--model=fused.safetensors", "--task=spots"],
        "file": ["--model=bare.safetensors", "--head=head.safetensors"],
        "prompts": ["--model=bare.safetensors", "--task=spots", "--pretrained=clip.safetensors"],
        "finetuned": [
            "--model=bare.safetensors",
            "--task=spots",
            "--head=head.safetensors",
            "--encoder=miniature",
        ],
    }
    for name, words in sources.items():
        assert sta(*words, "pictures", f"--output={name}.csv") == 0
    tables = {(work / f"{name}.csv").read_bytes() for name in sources}
    assert len(tables) == 1


def test_pictures_of_unknown_task(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model=fused.safetensors", "pictures", "--top=6"]
    assert sta(*common, "--tasks=spots, stripes", "--output=several.csv") == 0
    assert "not weighed" not in capsys.readouterr().out
    assert sta(*common, "--task=auto", "--output=auto.csv") == 0
    assert (work / "auto.csv").read_bytes() == (work / "several.csv").read_bytes()
    assert sta(*common, "--task=spots", "--output=spots.csv") == 0
    places = {f"{task}/{name}": (task, label) for task in NAMES for label, name in enumerate(CLASSES)}
    for row, alone in zip(rows(work / "several.csv"), rows(work / "spots.csv"), strict=True):
        assert row["path"] == alone["path"]
        found = {}
        for place in ("", *(f"_{number}" for number in range(2, 7))):
            key = row[f"class_name{place}"]
            assert places[key] == (row[f"task{place}"], int(row[f"label{place}"]))
            found[key] = float(row[f"probability{place}"])
        assert found.keys() == places.keys()
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        # Of the task's own classes it says what it says alone.
        own = [key.removeprefix("spots/") for key in found if key.startswith("spots/")]
        assert own == [alone[f"class_name{place}"] for place in ("", "_2", "_3")]


def test_examples_of_ones_own_weigh_the_heads(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bright pictures are of one task and dark ones of the other."""
    generator = np.random.default_rng(1)
    for folder, count in (("shown", 12), ("asked", 5)):
        for task, light in zip(NAMES, (200, 0), strict=True):
            (work / folder / task).mkdir(parents=True)
            for number in range(count):
                pixels = light + generator.integers(0, 55, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(work / folder / task / f"{number}.png")
    words = ["--model=fused.safetensors", "--task=auto", "asked", "--output=weighed.csv"]
    assert sta(*words, "--examples=shown") == 0
    table = rows(work / "weighed.csv")
    assert len(table) == 10
    assert all(row["path"].startswith(f"asked/{row['task']}/") for row in table)
    assert sta(*words, "--examples=shown/spots") == 2
    assert re.search(r"--examples: there is no file or folder 'shown/spots/spots'", capsys.readouterr().err)


def test_tasks_that_nobody_has_images_of(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file's heads are enough: their logits stand side by side, and the screen says it."""
    heads = {name: read_heads(work / "fused.safetensors")["spots"] for name in ("here", "there")}
    state = {n: t for n, t in load_weights(work / "fused.safetensors").items() if not n.startswith("head.")}
    metadata = {**read_metadata(work / "fused.safetensors"), **head_metadata(heads)}
    save_weights(work / "odd.safetensors", {**state, **head_tensors(heads)}, metadata)
    assert sta("--model=odd.safetensors", "--task=auto", "pictures", "--output=odd.csv", "--top=2") == 0
    assert "not weighed against each other, for want of --examples: " in capsys.readouterr().out
    for row in rows(work / "odd.csv"):  # two equal heads
        assert row["probability"] == row["probability_2"]
        assert [row["task"], row["task_2"]] == ["here", "there"]


def test_prompts_of_all_tasks_that_a_file_was_merged_of(work: Path) -> None:
    words = ["--pretrained=clip.safetensors", "pictures", "--task=auto"]
    assert sta("--model=bare.safetensors", *words, "--output=prompts.csv") == 0
    assert sta("--model=fused.safetensors", *words[1:], "--output=brought.csv") == 0
    assert (work / "prompts.csv").read_bytes() == (work / "brought.csv").read_bytes()


def test_a_broken_picture(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = work / "broken"
    folder.mkdir()
    whole = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(whole, "PNG")
    (folder / "1.png").write_bytes(whole.getvalue())
    (folder / "2.png").write_bytes(whole.getvalue()[:60])
    (folder / "3.jpg").write_text("no picture")
    words = ["--model=fused.safetensors", "--task=spots", "broken", "--output=broken.csv"]
    assert sta(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("sta: error: The image broken/2.png cannot be decoded")
    assert "--skip_broken" in error
    assert error.count("\n") == 1
    assert not (work / "broken.csv").exists()
    assert sta(*words, "--skip_broken") == 0
    said = capsys.readouterr().out
    assert "1 pictures, 2 skipped" in said
    assert "skipped: The image broken/3.jpg cannot be decoded: it is no image" in said
    assert [row["path"] for row in rows(work / "broken.csv")] == ["broken/1.png"]
    before = (work / "broken.csv").read_bytes()
    assert sta(*words[:2], "broken/3.jpg", "--output=broken.csv", "--skip_broken") == 2
    assert "none of the 1 pictures can be decoded" in capsys.readouterr().err
    assert (work / "broken.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=fused.safetensors", "--task=spots", "nowhere"], "no file or folder 'nowhere'"),
        (["--model=fused.safetensors", "--task=spots", "cache"], "holds no pictures"),
        (["--model=none.safetensors", "--task=spots", "pictures"], "no weights file 'none.safetensors'"),
        (
            ["--model=fused.safetensors", "pictures"],
            "brings heads for 'spots', 'stripes': say which with --task",
        ),
        (
            ["--model=fused.safetensors", "--task=digits", "pictures"],
            "brings heads for 'spots', 'stripes', not for 'digits'",
        ),
        (
            ["--model=bare.safetensors", "--task=spots", "pictures"],
            r"brings no heads.*It was fine-tuned from 'clip.safetensors'",
        ),
        (["--model=bare.safetensors", "pictures"], "give the task"),
        (["--model=fused.safetensors", "--tasks=spots,spots", "pictures"], "have one twice"),
        (
            ["--model=fused.safetensors", "--tasks=spots,digits", "pictures"],
            "brings heads for 'spots', 'stripes', not for 'digits'",
        ),
        (["--model=fused.safetensors", "--tasks=spots", "--task=spots", "pictures"], "says what the classes"),
        (["--model=fused.safetensors", "--task=spots", "--examples=x", "pictures"], "name them with --tasks"),
        (
            ["--model=spots.safetensors", "--encoder=miniature", "--task=auto", "pictures"],
            "does not say which tasks",
        ),
        (
            ["--model=bare.safetensors", "--task=nothing", "--pretrained=clip.safetensors", "pictures"],
            "'nothing' was asked for",
        ),
        (
            ["--model=fused.safetensors", "--task=spots", "--encoder=ViT-B-32", "pictures"],
            "does not hold this encoder",
        ),
        (["--model=spots.safetensors", "--task=spots", "pictures"], "does not say which encoder"),
        (["--model=fused.safetensors", "--task=spots", "pictures", "--top=0"], "--top=0 was asked for"),
        (["--model=fused.safetensors", "--task=spots", "pictures", "--batch_size=x"], "expected an integer"),
        (["--model=fused.safetensors", "--task=spots", "pictures", "--output=pictures"], "is a folder"),
        (["--model=fused.safetensors", "--task=spots"], "needs a model and pictures"),
        (["--task=spots", "pictures"], "needs a model and pictures"),
        (["--model=fused.safetensors", "--tsk=spots", "pictures"], "no option --tsk. Did you mean 'task'"),
        (["--model=fused.safetensors", "--task=spots", "--device=quantum", "pictures"], "does not have it"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sta(*words) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


def test_a_head_of_another_encoder(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ClassificationHead(torch.zeros(3, 64)).save(work / "narrow.safetensors", class_names=CLASSES)
    assert sta("--model=bare.safetensors", "--head=narrow.safetensors", "pictures") == 2
    assert "gives 128 features, the head reads 64" in capsys.readouterr().err
    ClassificationHead(torch.zeros(2, 128)).save(work / "few.safetensors")
    assert sta("--model=bare.safetensors", "--head=few.safetensors", "--task=spots", "pictures") == 2
    assert "head has 2 classes, the task 3" in capsys.readouterr().err
    assert sta("--model=bare.safetensors", "--head=few.safetensors", "pictures") == 2
    assert "does not tell the names of its classes" in capsys.readouterr().err


def test_damaged_weights_are_told_and_not_tabulated(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_weights(work / "fused.safetensors")
    state["visual.ln_post.bias"][:] = float("nan")
    save_weights(
        work / "nan.safetensors", state, read_metadata(work / "fused.safetensors"), allow_nonfinite=True
    )
    assert sta("--model=nan.safetensors", "--task=spots", "pictures", "--output=nan.csv") == 2
    assert "NaN or infinite" in capsys.readouterr().err
    assert not (work / "nan.csv").exists()


def test_lightning_is_not_imported(work: Path) -> None:
    script = (
        "import sys; from sta_lightning.cli.main import main\n"
        "status = main(['predict', '--model=fused.safetensors', '--task=spots', 'pictures', '--output=alone.csv'])\n"
        "print(status, [name for name in ('lightning', 'sta_lightning.tasks') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_merge_with_heads_by_its_two_ways(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluated, heads are made; alone, they are read from files, or a message says so."""
    files = {name: {"finetuned": f"{name}.safetensors"} for name in NAMES}
    common = ["--model.pretrained=clip.safetensors", "--model.method=average", "--model.heads=true"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    words = [f"--model.tasks={json.dumps(files)}", *common, "--output=whole.safetensors"]
    assert main(["merge", *words, *quiet]) == 0
    assert {n: h.class_names for n, h in read_heads(work / "whole.safetensors").items()} == dict.fromkeys(
        NAMES, CLASSES
    )
    assert main(["merge", *words[:-1], "--output=light.safetensors", "--evaluate=false"]) == 2
    assert "no head file is given for 'spots', 'stripes'" in capsys.readouterr().err
    assert not (work / "light.safetensors").exists()
    for name, head in read_heads(work / "whole.safetensors").items():
        ClassificationHead.of(head).save(work / f"{name}-head.safetensors", class_names=head.class_names)
        files[name]["head"] = f"{name}-head.safetensors"
    words[0] = f"--model.tasks={json.dumps(files)}"
    assert main(["merge", *words[:-1], "--output=light.safetensors", "--evaluate=false"]) == 0
    assert (work / "light.safetensors").read_bytes() == (work / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(
    "words", [["--config", "x.yaml"], ["--config=x.yaml", "--output=o"], ["-c", "x.yaml"]]
)
def test_a_configuration_is_for_another_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sta(*words) == 2
    assert "`sta probabilities --config=FILE --output=FILE`" in capsys.readouterr().err
