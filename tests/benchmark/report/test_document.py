"""The page, the Markdown and the CSV files say the same, and say what was found."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from matplotlib.figure import Figure

from sta_lightning.benchmark.report.document import console, csv_tables, describe, write_report
from sta_lightning.benchmark.report.numbers import looks, looks_among, scores, settings_text
from sta_lightning.benchmark.report.tables import fusion_grid, merges_grid
from sta_lightning.benchmark.results import BenchmarkResults, CurvePoint, PairedDifference
from sta_lightning.report.document import html, markdown
from sta_lightning.report.grid import Number
from tests.benchmark.report.synthetic import EMBEDDED, PAPER, made_up

FIGURES = (
    *("fusion", "radar", "pairs", "forgetting", "trade_off"),
    *("curve_p", "curve_scale", "curve_samples", "curve_tasks", "selection", "kept", "conflict"),
)
TABLES = (
    *("fusion", "forgetting", "pairs", "curves", "trade_off", "selection", "properties"),
    *("conflict", "verdicts"),
)


class Reader(HTMLParser):
    """Reads a page: refuses unbalanced elements, collects tables and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.elements: set[str] = set()
        self.ids: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.add(tag)
        self.addresses += [value for name in ("src", "href", "srcset") if (value := given.get(name))]
        if given.get("id"):
            self.ids.append(given["id"] or "")
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            assert given["alt"]
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if "caption" in self.open:
            self._caption += data
        elif self.open and any(cell in self.open for cell in ("td", "th")):
            self._rows[-1][-1] += data


@pytest.fixture(scope="module")
def results() -> BenchmarkResults:
    return made_up()


@pytest.fixture(scope="module")
def folder(results: BenchmarkResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert write_report(results, folder) == folder / "report.html"
    return folder


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def quick_page(results: BenchmarkResults) -> str:
    """The page with blank figures."""
    document = describe(results)
    return html(document, {picture.name: "<svg></svg>" for picture in document.pictures()})


def figures(results: BenchmarkResults) -> dict[str, Figure]:
    return {picture.name: picture.draw() for picture in describe(results).pictures()}


def test_every_file_is_there_and_nothing_else(folder: Path) -> None:
    expected = {
        "report.html",
        "report.md",
        *(f"{name}.csv" for name in TABLES),
        *(f"{name}.svg" for name in FIGURES),
    }
    assert {path.name for path in folder.iterdir()} == expected


def test_page_is_whole_and_needs_nothing_beside_it(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(text) < 700_000
    reader = read(text)
    assert "link" not in reader.elements
    assert all(address.startswith("#") for address in reader.addresses)
    assert {address[1:] for address in reader.addresses if address[0] == "#"} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert set(re.findall(r'https?://[^"]*', text)) == {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert text.count("<svg") == len(FIGURES), "drawn once, for light pages and dark ones"


def test_markdown_names_files_that_exist(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    names = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert names == [f"{name}.svg" for name in FIGURES]
    assert all((folder / name).is_file() for name in names)


def test_every_table_says_the_same_on_the_page_and_in_markdown_and_csv(results: BenchmarkResults) -> None:
    document = describe(results)
    page_tables = read(quick_page(results)).tables
    text = markdown(document)
    for grid in document.grids():
        rows = page_tables[grid.title][-len(grid.lines) :]
        for line, row in zip(grid.lines, rows, strict=True):
            assert row[0].startswith(line.label)
            for cell, shown in zip(line.cells, row[1:], strict=True):
                assert shown.startswith(grid.text(cell))
                if isinstance(cell, Number):
                    assert shown.startswith(f"{cell.mean:.1f}")
        assert grid.markdown().strip() in text
        if grid.name:
            lines = list(csv.reader(io.StringIO(csv_tables(results)[grid.name])))[1:]
            assert [line[0] for line in lines] == [line.label for line in grid.lines]


def test_fusion_csv_has_the_numbers_of_the_results(results: BenchmarkResults) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_tables(results)["fusion"])))
    found = next(row for row in rows if (row["method"], row["setting"]) == ("TSV-M", "tuned"))
    digits = [row.accuracy["digits"] for row in results.fused("tsv", "tuned")]
    assert float(found["digits"]) == fmean(digits)
    assert float(found["digits std"]) == stdev(digits)
    assert float(found["average"]) == fmean(row.average for row in results.fused("tsv", "tuned"))


def test_curves_csv_has_a_line_per_point(results: BenchmarkResults) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_tables(results)["curves"])))
    points = {(point.curve, point.method, point.x) for point in results.curves}
    assert len(rows) == len(points)


def test_best_of_a_column_is_the_best_merge(results: BenchmarkResults) -> None:
    grid = fusion_grid(results)
    place = [column.name for column in grid.columns].index("average")
    (best,) = [line for (line, column), rank in grid.ranks.items() if column == place and rank == "best"]
    merges = [run for run in grid.lines if run.compete]
    means = {line.label + line.detail: line.cells[place].mean for line in merges}  # type: ignore[union-attr]
    winner = grid.lines[best]
    assert max(means, key=means.__getitem__) == winner.label + winner.detail
    assert not any(grid.lines[line].label.startswith("fine-tuned") for line, _ in grid.ranks)


def test_the_papers_numbers_stand_beside_published_settings_on_its_data() -> None:
    grid = fusion_grid(made_up(PAPER))
    lines = {(line.label, line.detail): line for line in grid.lines}
    assert [getattr(cell, "paper", None) for cell in lines["STA LP", "published"].cells[:-1]] == [
        *(82.84, None, 99.34, 85.45, 93.31, 86.61, 51.99, 80.37)
    ]
    assert all(getattr(cell, "paper", None) is None for cell in lines["STA LP", "tuned"].cells)
    assert "(99.34)" in grid.markdown()
    assert "In brackets: the paper's Table 2" in grid.note


def test_the_embedded_suite_has_no_numbers_of_the_paper_and_says_why(results: BenchmarkResults) -> None:
    grid = fusion_grid(results)
    assert results.tasks == EMBEDDED
    assert not grid.has_paper
    assert "same data sets" in grid.note


def shifted(results: BenchmarkResults, by: tuple[float, ...]) -> BenchmarkResults:
    """The random mask above or below STA LP by so much on every task, seed by seed."""
    own = {row.seed: row for row in results.fusion if (row.method, row.setting) == ("sta_lp", "published")}
    fusion = tuple(
        replace(row, accuracy={task: value + by[row.seed] for task, value in own[row.seed].accuracy.items()})
        if row.method == "random_mask"
        else row
        for row in results.fusion
    )
    return replace(results, fusion=fusion)


@pytest.mark.parametrize(
    ("by", "sentence"),
    [
        ((2.8, 3.2, 3.6), "It lies 3.2 ± 0.2 points below the random mask as published (loses)"),
        ((-2.8, -3.2, -3.6), "It lies 3.2 ± 0.2 points above the random mask as published (wins)"),
        ((0.2, 0.2, 0.2), "It lies 0.2 ± 0.0 points below the random mask as published (ties)"),
    ],
)
def test_the_summary_says_who_wins(results: BenchmarkResults, by: tuple[float, ...], sentence: str) -> None:
    text = markdown(describe(shifted(results, by)))
    line = next(line for line in text.splitlines() if line.startswith("- **STA LP (published):**"))
    assert sentence in line
    assert "tuned, where they can be," in line


def test_one_seed_has_no_winner(tmp_path: Path) -> None:
    one = made_up(seeds=(0,))
    text = quick_page(one)
    read(text)
    assert "one seed: no spread" in text
    assert "±" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert "loses" not in text
    assert set(figures(one)) == set(FIGURES)


def few_rows() -> BenchmarkResults:
    """One seed and few methods, as `sta demo` has them, compared image by image."""
    one = made_up(seeds=(0,))
    keys = ("zero_shot", "fine_tuned", "sta_lp", "random_mask", "average", "task_arithmetic")
    fusion = tuple(row for row in one.fusion if row.method in keys)
    average = {row.method: row.average for row in fusion if row.setting == "published"}
    return replace(
        one,
        methods=tuple(info for info in one.methods if info.key in keys),
        forget_methods=tuple(
            info for info in one.forget_methods if info.key in ("pretrained", "sta_lp", "task_arithmetic")
        ),
        fusion=fusion,
        pairs=(),
        forgetting=tuple(row for row in one.forgetting if row.method in keys or row.method == "pretrained"),
        trade_off=(),
        conflict={},
        curves=(
            *(
                replace(point, accuracy=dict.fromkeys(one.tasks, point.average))
                for point in one.curves
                if (point.curve, point.method) in (("p", "sta_lp"), ("scale", "task_arithmetic"))
            ),
            CurvePoint("level", "zero_shot", 0, 0.0, 64.5, "validation"),
        ),
        paired=(
            PairedDifference(
                "sta_lp",
                "published",
                0,
                "random_mask",
                "published",
                average["sta_lp"] - average["random_mask"],
                0.4,
            ),
        ),
        record={
            **one.record,
            "commit": "c0ffee" * 6,
            "clean": False,
            "published": {"fused.safetensors": "sta_lp"},
        },
    )


def test_one_seed_is_compared_image_by_image() -> None:
    few = few_rows()
    text = markdown(describe(few))
    line = next(line for line in text.splitlines() if line.startswith("- **STA LP (published):**"))
    gap = few.paired[0].difference
    side = "above" if gap > 0 else "below"
    assert (
        f"It lies {abs(gap):.1f} ± 0.4 points {side} the random mask as published (on the same test" in line
    )
    assert "on the same test images: more than two standard errors" in line
    assert "Standard error of an average from the test images (1000 per task): at most" in text
    assert "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffee, and changes that were not committed" in text
    assert "fused.safetensors" in text
    verdicts = list(csv.DictReader(io.StringIO(csv_tables(few)["verdicts"])))
    (found,) = [row for row in verdicts if row["standard error"]]
    assert (found["against"], float(found["standard error"]), found["outcome"]) == ("random mask", 0.4, side)
    assert set(figures(few)) == {
        *("fusion", "radar", "forgetting", "curve_p", "curve_scale", "selection", "kept")
    }


def test_the_sweep_has_every_task_and_levels_and_stars_the_settings_of_the_tables() -> None:
    few = few_rows()
    rows = list(csv.DictReader(io.StringIO(csv_tables(few)["curves"])))
    (level,) = [row for row in rows if row["curve"] == "level"]
    assert (level["method"], level["x"], level["average accuracy"]) == ("zero-shot", "", "64.5")
    point = next(row for row in rows if row["curve"] == "p")
    assert point["street numbers"] == point["average accuracy"]
    assert "Without p: zero-shot 64.5." in markdown(describe(few))
    (axes,) = figures(few)["curve_p"].axes
    (stars,) = [line for line in axes.lines if line.get_marker() == "*"]
    assert list(stars.get_xdata()) == [0.7]
    assert any(set(line.get_ydata()) == {64.5} for line in axes.lines)


def test_the_terminal_gets_tables_and_sentences() -> None:
    text = console(few_rows())
    assert "Fusion of 6 fine-tuned models into one" in text
    assert "makes the best model for all 6 tasks" in text
    assert "pretrained 64.0% / 99.3%" in text


def test_sections_without_data_are_left_out(results: BenchmarkResults, tmp_path: Path) -> None:
    bare = replace(
        results, pairs=(), forgetting=(), curves=(), trade_off=(), kept={}, conflict={}, record={}, images={}
    )
    assert [section.key for section in describe(bare).sections] == ["fusion", "methods", "record"]
    write_report(bare, tmp_path)
    assert {path.name for path in tmp_path.glob("*.svg")} == {"fusion.svg", "radar.svg"}
    assert {path.stem for path in tmp_path.glob("*.csv")} == {"fusion", "properties", "verdicts"}
    read((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_forgetting_alone(results: BenchmarkResults) -> None:
    only = replace(results, fusion=(), pairs=(), curves=(), kept={}, conflict={}, methods=())
    assert [section.key for section in describe(only).sections] == [
        "forgetting",
        "methods",
        "record",
    ]
    read(quick_page(only))
    assert set(figures(only)) == {"forgetting", "trade_off"}


def test_no_data_at_all(results: BenchmarkResults) -> None:
    empty = BenchmarkResults("t", "e", ("a",), "c", (0,), (), (), {})
    assert [section.key for section in describe(empty).sections] == ["record"]
    assert figures(empty) == {}
    read(quick_page(empty))


def test_task_names_are_escaped() -> None:
    evil = ('<i>"one"|*</i>', "two'&", "three`[x](y)`")
    found = made_up(evil)
    text = quick_page(found)
    reader = read(text)
    assert "<i>" not in text
    assert "i" not in reader.elements
    table = reader.tables[fusion_grid(found).title]
    assert [cell.removesuffix("\u00a0↑") for cell in table[0][3:6]] == list(evil)
    lines = markdown(describe(found)).splitlines()
    assert not any("<i>" in line or "[x]" in line.replace("\\[x\\]", "") for line in lines)
    heads = [line for line in lines if line.startswith("| method | average\u00a0↑") and "&lt;i&gt;" in line]
    assert len(heads) == 1


def test_names_are_escaped(results: BenchmarkResults) -> None:
    evil = '<b>&"TIES"|*x*</b>'
    methods = tuple(replace(info, label=evil) if info.key == "ties" else info for info in results.methods)
    odd = replace(
        results, methods=methods, title="<script>alert(1)</script>", record={"command": "sta <x> & y"}
    )
    text = quick_page(odd)
    reader = read(text)
    assert text.count("<script") == 1, "the page's own"
    assert "<b>" not in text
    assert any(row[0].startswith(evil) for table in reader.tables.values() for row in table if row)
    assert "sta &lt;x&gt; &amp; y" in text
    assert "<b>" not in markdown(describe(odd))


def test_every_variant_of_sta_meets_every_other_method(results: BenchmarkResults) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_tables(results)["verdicts"])))
    fusion = [row for row in rows if row["measure"] == "fusion"]
    merges = [
        (info.label, setting)
        for info in results.methods
        if info.group != "reference"
        for setting in scores(results).settings(info.key)
    ]
    for own in ("STA LP", "STA LP+Amp", "STA Amp"):
        for setting in ("published", "tuned"):
            met = {
                (r["against"], r["its setting"])
                for r in fusion
                if (r["method"], r["setting"]) == (own, setting)
            }
            assert met == {run for run in merges if run[0] != own}
    assert {row["measure"] for row in rows} == {"fusion", "target", "control"}
    assert {row["outcome"] for row in rows} <= {"wins", "ties", "loses"}


def test_settings_are_told_once_or_by_seed() -> None:
    assert settings_text([{"scale": 0.3, "p": 0.7}] * 2) == "λ = 0.3; p = 0.7"
    assert settings_text([{"scale": 0.3}, {"scale": 0.4}]) == "λ = 0.3, 0.4 (by seed)"
    assert settings_text([{}]) == ""


def test_a_method_keeps_its_colour_and_no_two_of_a_figure_share_one(results: BenchmarkResults) -> None:
    everywhere = looks(results)
    assert everywhere["sta_lp"] == 0
    assert "zero_shot" not in everywhere
    keys = [key for key, place in everywhere.items() if place % 9 in (0, 1)]
    assert len(keys) > 2
    found = looks_among(results, keys, 9)
    assert len({place % 9 for place in found.values()}) == len(keys)
    assert found["sta_lp"] == 0


def test_rows_are_sorted_by_their_average_and_the_best_is_on_top_everywhere(
    results: BenchmarkResults,
) -> None:
    grid = fusion_grid(results)
    assert grid.columns[0].name == "average"
    merges = [line.cells[0] for line in grid.lines if line.kind != "reference"]
    means = [cell.mean for cell in merges if isinstance(cell, Number)]
    assert means == sorted(means, reverse=True)
    assert [line.kind for line in grid.lines[len(means) :]] == ["reference", "reference"]
    best = grid.lines[0]
    drawn = figures(results)
    assert drawn["fusion"].axes[0].texts[0].get_text() == best.label
    (legend,) = drawn["radar"].legends
    assert f"{best.label} (tuned)" in [text.get_text() for text in legend.get_texts()]
    assert describe(results).headline.startswith(f"{best.label} (tuned) makes the best model for all 6 tasks")
    assert "**STA LP, published**" in grid.markdown()


def test_a_published_setting_that_is_the_tuned_one_is_seen_around_it(results: BenchmarkResults) -> None:
    (axes,) = figures(results)["fusion"].axes
    ring, dot = (line for line in axes.lines if line.get_marker() in ("o", "s") and len(line.get_xdata()))
    assert ring.get_markersize() > dot.get_markersize() + 2
    assert ring.get_zorder() < dot.get_zorder()


def test_how_well_merges_foretell_themselves_is_told(results: BenchmarkResults) -> None:
    draw = np.random.default_rng(0)
    rows = [replace(row, divergence=float(draw.random())) for row in results.fusion]
    expected = []
    for seed in results.seeds:
        own = [row for row in rows if row.seed == seed]
        pair = np.array([[row.divergence, row.average] for row in own]).T
        # Ranks with ties at their mean: how many are below, and half of the others that are equal.
        ranks = [(v[:, None] > v).sum(1) + ((v[:, None] == v).sum(1) - 1) / 2 for v in pair]
        expected.append(np.corrcoef(*ranks)[0, 1])
    grid = merges_grid(results.methods, replace(results, fusion=tuple(rows)))
    said = f"over all rows of a seed: {np.mean(expected):.2f} for divergence."
    assert grid.note.endswith(said)
    assert "Spearman" not in merges_grid(results.methods, results).note


def test_table_1_of_the_paper_has_its_columns(results: BenchmarkResults) -> None:
    timed = tuple(
        replace(row, seconds=0.25, norm=0.5) if row.method == "ties" else row for row in results.fusion
    )
    infos = tuple(replace(info, forgets=info.key == "task_arithmetic") for info in results.methods)
    rows = csv_tables(replace(results, fusion=timed, methods=infos))["properties"]
    found = {row["method"]: row for row in csv.DictReader(io.StringIO(rows))}
    names = ("forgetting", "fusion", "coefficient", "test data", "labels", "seconds", "norm")
    assert [found["task arithmetic"][name] for name in names] == ["yes", "yes", "yes", "no", "no", "", ""]
    assert [found["TIES"][name] for name in names] == ["no", "yes", "yes", "no", "no", "0.25", "0.5"]
    assert [found["AdaMerging, layer-wise"][name] for name in names[3:5]] == ["yes", "no"]
    assert [found["STA LP"][name] for name in names[2:5]] == ["no", "no", "yes"]
