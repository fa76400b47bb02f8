"""Names of tensors become layers and kinds; shares keep their place."""

import csv
import io

import pytest

from sta_lightning.report import Selection
from sta_lightning.report.selection import split_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer.resblocks.11.mlp.c_fc.weight", (11, "mlp.c_fc.weight")),
        ("visual.transformer.resblocks.0.ln_1.weight", (0, "ln_1.weight")),
        ("blocks.3.attn.qkv.weight", (3, "attn.qkv.weight")),
        ("class_embedding", (None, "class_embedding")),
        ("ln_pre.weight", (None, "ln_pre.weight")),
    ],
)
def test_split_name(name: str, expected: tuple[int | None, str]) -> None:
    assert split_name(name) == expected


def selection(fc: str = "mlp.c_fc.weight") -> Selection:
    kept = {f"transformer.resblocks.{layer}.{fc}": {"a": layer / 20, "b": 0.5} for layer in (10, 2, 0)}
    return Selection.from_kept({**kept, "ln_post.weight": {"a": 0.1, "b": 0.2}})


def test_curve_is_ordered_by_layer_number_not_by_text() -> None:
    assert selection().curve("mlp.c_fc.weight", "a") == [(0, 0.0), (2, 0.1), (10, 0.5)]
    assert selection().tasks == ["a", "b"]


def test_tensors_outside_the_blocks_are_no_kind_but_are_in_the_csv() -> None:
    assert selection().kinds == ["mlp.c_fc.weight"]
    rows = list(csv.reader(io.StringIO(selection().csv())))
    assert rows[0] == ["tensor", "layer", "kind", "task", "share_kept"]
    assert ["ln_post.weight", "", "ln_post.weight", "b", "0.200000"] in rows
    assert len(rows) == 1 + 4 * 2


def test_main_kinds_are_the_papers_or_all() -> None:
    kept = {f"blocks.0.{kind}": {"a": 0.3} for kind in ("norm1.bias", "mlp.fc1.weight", "norm1.weight")}
    assert Selection.from_kept(kept).main_kinds() == ["norm1.weight", "mlp.fc1.weight"]
    assert selection("odd.weight").main_kinds() == ["odd.weight"]
