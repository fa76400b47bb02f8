"""One method of a benchmark: its settings, its grid, what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sta_lightning.benchmark.entries import MethodEntry, entries
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
    made = chosen.make(0).settings()
    assert (made["keep"], made["scale"]) == (0.1, 1.0)
    assert chosen.choices() == []
    assert entry.make(0).settings()["keep"] == 0.2
    # A coefficient among the settings is the same as one beside them.
    inside = MethodEntry("ties", settings={"scale": 0.4}, tune={"scale": [0.5, 1.0]})
    assert [entry.make(0).settings()["scale"] for entry in inside.variants] == [0.4, 0.5, 1.0]
    assert len({str(entry.key(0)) for entry in inside.variants}) == 3
    masked = MethodEntry("sta", tune={"p": [0.2], "measure": ["amp"]}).with_choice(
        {"p": 0.2, "measure": "amp"}
    )
    assert (masked.make(0).settings()["p"], masked.measure) == (0.2, "amp")


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
    ],
)
def test_what_must_be_scored(entry: MethodEntry, wanted: str | None) -> None:
    assert entry.statistic() == wanted


def test_a_key_holds_what_the_result_depends_on_and_nothing_else() -> None:
    first = MethodEntry("task_arithmetic", scale=0.4, label="one", p=0.1, measure="amp")
    assert first.key(0) == MethodEntry("task_arithmetic", scale=0.4, label="another", paper="x").key(0)
    assert first.key(0) != MethodEntry("task_arithmetic", scale=0.5).key(0)
    assert first.key(0) == first.key(1)  # nothing is drawn
    assert MethodEntry("random_mask").key(0) != MethodEntry("random_mask").key(1)
    assert MethodEntry("average", dare=0.5).key(0) != MethodEntry("average").key(0)
    assert MethodEntry("average", dare=0.5).key(0) != MethodEntry("average", dare=0.5).key(1)
    assert MethodEntry("sta").key(0) != MethodEntry("sta", measure="amp").key(0)


def test_properties_tell_what_a_row_needs() -> None:
    lp = MethodEntry("sta", group="sta").info("sta_lp")
    assert (lp.data, lp.coefficient, lp.group, lp.label) == ("labelled samples", False, "sta", "STA")
    assert MethodEntry("sta", measure="amp").info("sta_amp").data == "nothing"
    assert MethodEntry("task_arithmetic").info("ta").coefficient
    assert MethodEntry("adamerging").info("ada").data == "unlabelled test images"
    assert MethodEntry("regmean").info("r").data == "unlabelled samples"


def test_what_a_reader_is_shown() -> None:
    entry = MethodEntry("ties", settings={"merge": "sum"}, dare=0.5)
    assert entry.shown({"scale": 0.7}) == {"scale": 0.7, "merge": "sum", "dare": 0.5}
    assert MethodEntry("sta", normalize="model").shown({}) == {"p": 0.7, "normalize": "model"}
    assert MethodEntry("sta").shown({"measure": "amp"}) == {"p": 0.7, "measure": "amp"}


def test_a_method_of_ones_own_is_known_by_its_files_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def plain(pretrained, deltas, scale: float = 1.0):\n    return scale * deltas.mean(0)\n")
    entry = MethodEntry(f"{file}:plain", settings={"scale": 0.5})
    entry.check("mine")
    assert list(entry.files().values()) == [file]
    assert list(MethodEntry("lines", settings={"inner": f"{file}:plain"}).files().values()) == [file]
    assert entry.info("mine").label == "plain"
    assert MethodEntry("average").files() == {}


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
        entry.check("x")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (MethodEntry("task_arithmetic", dare=0.5), "dare goes in front of merging methods"),
        (MethodEntry("adamerging"), "makes nothing forget"),
        (MethodEntry("ties"), "forgetting method 'ties' is unknown"),
    ],
)
def test_what_cannot_forget_is_refused(entry: MethodEntry, message: str) -> None:
    with pytest.raises(StaError, match=f"methods.x: .*{message}"):
        entry.check("x", forgetting=True)


def test_every_measure_of_a_grid_is_scored() -> None:
    entry = MethodEntry("sta", tune={"measure": ["amp", "delta-lp"]})
    assert [variant.statistic() for variant in entry.variants] == ["lp", None, "delta-lp"]


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(StaError, match=r"methods.x: 'scal' is not a field"):
        entries({"x": {"method": "average", "scal": 1}})
    assert entries({"x": {"method": "average"}, "y": MethodEntry()})["x"] == MethodEntry("average")
