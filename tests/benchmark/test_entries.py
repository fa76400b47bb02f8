"""One method of a benchmark: its settings, its grid, what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sta_lightning.benchmark.entries import (
    check_entry,
    entry_files,
    entry_key,
    entry_source,
    made,
    method_info,
    shown,
    statistic,
)
from sta_lightning.benchmark.settings import BenchmarkSettings, ForgettingEntry, MethodEntry
from sta_lightning.errors import StaError


def test_the_grid_is_every_combination_in_its_order() -> None:
    entry = MethodEntry("ties", tune={"keep": [0.1, 0.2], "scale": [1.0, 0.5]})
    assert entry.choices() == [
        {"keep": 0.1, "scale": 1.0},
        {"keep": 0.1, "scale": 0.5},
        {"keep": 0.2, "scale": 1.0},
        {"keep": 0.2, "scale": 0.5},
    ]
    assert MethodEntry("average").choices() == []


def test_a_choice_changes_the_entrys_settings_and_the_methods_own() -> None:
    entry = MethodEntry("ties", scale=0.4, settings={"keep": 0.2}, tune={"keep": [0.1], "scale": [1.0]})
    chosen = entry.with_choice({"keep": 0.1, "scale": 1.0})
    found = made(chosen, 0).settings()
    assert (found["keep"], found["scale"]) == (0.1, 1.0)
    assert chosen.choices() == []
    assert made(entry, 0).settings()["keep"] == 0.2
    # A coefficient among the settings is the same as one beside them.
    inside = MethodEntry("ties", settings={"scale": 0.4}, tune={"scale": [0.5, 1.0]})
    assert [made(entry, 0).settings()["scale"] for entry in inside.variants] == [0.4, 0.5, 1.0]
    assert len({str(entry_key(entry, 0)) for entry in inside.variants}) == 3
    masked = MethodEntry("sta", tune={"p": [0.2], "measure": ["amp"]}).with_choice(
        {"p": 0.2, "measure": "amp"}
    )
    assert (made(masked, 0).settings()["p"], masked.measure) == (0.2, "amp")


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (MethodEntry("sta"), "lp"),
        (MethodEntry("sta", measure="lp+amp"), "lp"),
        (MethodEntry("sta", measure="amp"), None),
        (MethodEntry("sta", measure="delta-lp"), "delta-lp"),
        (MethodEntry("fisher"), "fisher"),
        (MethodEntry("regmean"), "gram"),
        (MethodEntry("average", measure="lp"), None),
        (MethodEntry("adamerging"), None),
        (MethodEntry("distilled"), "gram"),
    ],
)
def test_what_must_be_scored(entry: MethodEntry, wanted: str | None) -> None:
    assert statistic(entry) == wanted


def test_a_key_holds_what_the_result_depends_on_and_nothing_else() -> None:
    first = MethodEntry("task_arithmetic", scale=0.4, label="one", p=0.1, measure="amp")
    assert entry_key(first, 0) == entry_key(
        MethodEntry("task_arithmetic", scale=0.4, label="another", paper="x"), 0
    )
    assert entry_key(first, 0) != entry_key(MethodEntry("task_arithmetic", scale=0.5), 0)
    assert entry_key(first, 0) == entry_key(first, 1)  # nothing is drawn
    assert entry_key(MethodEntry("random_mask"), 0) != entry_key(MethodEntry("random_mask"), 1)
    assert entry_key(MethodEntry("average", dare=0.5), 0) != entry_key(MethodEntry("average"), 0)
    assert entry_key(MethodEntry("average", dare=0.5), 0) != entry_key(MethodEntry("average", dare=0.5), 1)
    assert entry_key(MethodEntry("sta"), 0) != entry_key(MethodEntry("sta", measure="amp"), 0)


def test_properties_tell_what_a_row_needs() -> None:
    lp = method_info("sta_lp", MethodEntry("sta", group="sta"))
    assert (lp.data, lp.coefficient, lp.group, lp.label) == ("labelled samples", False, "sta", "STA")
    assert method_info("sta_amp", MethodEntry("sta", measure="amp")).data == "nothing"
    assert method_info("ta", MethodEntry("task_arithmetic")).coefficient
    assert method_info("ada", MethodEntry("adamerging")).data == "unlabelled test images"
    assert method_info("r", MethodEntry("regmean")).data == "unlabelled samples"
    assert method_info("d", MethodEntry("distilled")).data == "unlabelled samples"


def test_what_a_reader_is_shown() -> None:
    entry = MethodEntry("ties", settings={"merge": "sum"}, dare=0.5)
    assert shown(entry, {"scale": 0.7}) == {"scale": 0.7, "merge": "sum", "dare": 0.5}
    assert shown(MethodEntry("sta", normalize="model"), {}) == {
        "p": 0.7,
        "measure": "lp",
        "normalize": "model",
    }
    assert shown(MethodEntry("sta"), {"measure": "amp"}) == {"p": 0.7, "measure": "amp"}


def test_a_method_of_ones_own_is_known_by_its_files_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def plain(pretrained, deltas, scale: float = 1.0):\n    return scale * deltas.mean(0)\n")
    entry = MethodEntry(f"{file}:plain", settings={"scale": 0.5})
    check_entry("methods.mine", entry)
    assert list(entry_files(entry).values()) == [file]
    assert list(entry_files(MethodEntry("lines", settings={"inner": f"{file}:plain"})).values()) == [file]
    assert method_info("mine", entry).label == "plain"
    assert entry_files(MethodEntry("average")) == {}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (MethodEntry("tiez"), r"methods.x: merging method 'tiez' is unknown"),
        (MethodEntry("ties", settings={"kep": 1}), r"methods.x: .*no setting 'kep'"),
        (MethodEntry("ties", tune={"keep": []}), r"methods.x.tune.keep: give at least one value"),
        (MethodEntry("ties", tune={"keep": [0.2, 7.0]}), r"methods.x: .*7"),
        (
            MethodEntry("adamerging", settings={"granula": 1}),
            r"methods.x: 'adamerging' has no setting 'granula'",
        ),
        (MethodEntry("average", dare=1.0), r"methods.x: DARE's drop rate"),
        (MethodEntry("average", scale=0.4), r"methods.x: .*has no coefficient"),
        (
            MethodEntry("average", tune={"p": [0.1]}),
            r"methods.x: 'p' was asked to vary, and method 'average' has no",
        ),
        (MethodEntry("fisher", tune={"measure": ["lp"]}), r"methods.x: 'measure' was asked to vary"),
        (MethodEntry("adamerging", tune={"init": [0.1]}), r"methods.x: 'adamerging' learns its coefficients"),
        (MethodEntry("adamerging", dare=0.5), r"methods.x: 'adamerging' takes neither scale nor dare"),
        (MethodEntry("ties", scale=0.4, settings={"scale": 0.5}), r"methods.x: .*its coefficient twice"),
    ],
)
def test_what_cannot_be_run_is_refused_by_the_entrys_name(entry: MethodEntry, message: str) -> None:
    with pytest.raises(StaError, match=message):
        check_entry("methods.x", entry)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (ForgettingEntry("task_arithmetic", dare=0.5), "dare goes in front of merging methods"),
        (ForgettingEntry("adamerging"), "makes nothing forget"),
        (ForgettingEntry("ties"), "forgetting method 'ties' is unknown"),
    ],
)
def test_what_cannot_forget_is_refused(entry: MethodEntry, message: str) -> None:
    with pytest.raises(StaError, match=f"methods.x: .*{message}"):
        check_entry("methods.x", entry)


def test_every_measure_of_a_grid_is_scored() -> None:
    entry = MethodEntry("sta", tune={"measure": ["amp", "delta-lp"]})
    assert [statistic(variant) for variant in entry.variants] == ["lp", None, "delta-lp"]


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(StaError, match=r"methods.x: 'scal' is no field there"):
        BenchmarkSettings(methods={"x": {"method": "average", "scal": 1}})  # type: ignore[dict-item]
    plain: dict[str, Any] = {"x": {"method": "average"}, "y": MethodEntry()}
    assert BenchmarkSettings(methods=plain).methods["x"] == MethodEntry("average")


def test_a_method_counts_with_the_modules_that_it_and_its_inner_method_are_defined_in() -> None:
    lines = entry_source(MethodEntry("lines", settings={"inner": "pcb"}))
    assert {"sta_lightning.arithmetic.baselines.lines", "sta_lightning.arithmetic.baselines.pcb"} <= lines
    assert "sta_lightning.arithmetic.baselines.pcb" not in entry_source(MethodEntry("lines"))
    assert entry_source(MethodEntry("adamerging")) == {"sta_lightning.benchmark.learning"}
