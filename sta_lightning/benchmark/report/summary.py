"""What a benchmark says, in sentences: where STA wins, ties and loses, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from sta_lightning.benchmark.report.numbers import (
    SETTINGS,
    Duel,
    Scores,
    duels,
    kept_accuracy,
    scores,
    spaced,
)
from sta_lightning.benchmark.report.verdict import ONE_SEED, RULE
from sta_lightning.benchmark.results import BenchmarkResults, Run, Setting
from sta_lightning.report.document import Item
from sta_lightning.report.grid import Number

_MOST_NAMES = 3
_NEGATION = "task_arithmetic"
_SHORT: dict[Setting, str] = {"published": "as published", "tuned": "tuned"}
_PHRASES: dict[Setting, str] = {"published": "as published", "tuned": "tuned, where they can be,"}
_ONE_SEED = ("above", "level", "below")
_VERBS = {
    "wins": "wins",
    "ties": "ties",
    "loses": "loses",
    "above": "lies above",
    "level": "level with",
    "below": "below",
}
_TRADES = {
    "wins": "is better in one measure and no worse in the other than",
    "ties": "ties in both with",
    "trades": "is better in one and worse in the other than",
    "loses": "is worse in one and no better in the other than",
}


def reading(results: BenchmarkResults) -> str:
    """How the numbers of the summary are to be read."""
    if len(results.seeds) > 1:
        return (
            f"All numbers are means over {len(results.seeds)} seeds of fine-tuning. After ± stands the "
            "standard deviation over the seeds for an accuracy, and the standard error for a "
            f"difference. {RULE}"
        )
    text = f"All numbers are of one seed of fine-tuning ({results.seeds[0]}). {ONE_SEED}"
    if results.paired:
        text += (
            " After ± stands the standard error of a difference image by image on the same test "
            "images; another seed of fine-tuning would differ too."
        )
    return text


def fusion_items(results: BenchmarkResults) -> tuple[Item, ...]:
    """Each variant of STA."""
    found, met = scores(results), duels(results)
    kept = kept_accuracy(results)
    items = []
    for run in found.runs("sta"):
        text = f"{_value(found.spread(run))} on average"
        if run in kept.values:
            text += f", {_value(kept.spread(run))} of the fine-tuned models' accuracy (mean over the tasks)"
        own = [duel for duel in met if duel.own == run and found.group(duel.other) != "sta"]
        text += f". {_tally(found, own, len(results.seeds))}" if own else "."
        near = [
            duel
            for duel in own
            if found.group(duel.other) == "control" or duel.verdict.image_error is not None
        ]
        for key in dict.fromkeys(duel.other[0] for duel in near):
            text += f" {_against(found, [duel for duel in near if duel.other[0] == key])}"
        items.append(Item(text, f"{found.named(run)}:"))
    return tuple(items)


def headline(results: BenchmarkResults) -> str:
    """What was found, in one sentence; nothing if nothing was fused or forgotten."""
    found = scores(results)
    if not found.runs():
        return forgetting_headline(results)
    best = found.best(found.runs())
    bounds = ", ".join(
        f"{found.infos[run[0]].label} {found.mean(run):.1f}%" for run in found.runs("reference")
    )
    text = f"{found.named(best)} makes the best model for all {len(results.tasks)} tasks: {_value(found.spread(best))}"
    text += " on average" + (f" ({bounds})" if bounds else "")
    own = [run for run in found.runs("sta") if run[0] == "sta_lp"] or found.runs("sta")
    if own and best not in own:
        first = found.best(own)
        text += f"; {found.named(first)} reaches {_value(found.spread(first))}"
        for duel in duels(results):
            if (duel.own, duel.other) == (first, best):
                text += f" and lies {duel.verdict.lies} it{duel.verdict.said}"
    return f"{text}."


def forgetting_headline(results: BenchmarkResults) -> str:
    """What forgetting one task leaves of it and of the control, in one sentence."""
    target, control = scores(results, "target"), scores(results, "control")
    parts = [
        f"{target.named(run)} {target.mean(run):.1f}% / {control.mean(run):.1f}%"
        for run in (*target.ranked(low=True), *target.runs("reference"))
    ]
    if not parts:
        return ""
    return (
        f"Forgotten task / control ({spaced(results.control)}) after forgetting one task: {', '.join(parts)}."
    )


def handed_out(results: BenchmarkResults) -> dict[str, str]:
    """File in the output folder -> which fused model it holds."""
    found, texts = scores(results), {}
    for file, key in results.record["published"].items():
        run: Run = (key, "published")
        free = [other for other in found.runs() if not found.infos[other[0]].coefficient]
        best = "the best model that needs no tuned coefficient, " if run == found.best(free) else ""
        texts[file] = f"{best}{found.infos[key].label}, {found.mean(run):.1f}% on average"
    return texts


def _tally(found: Scores, met: Sequence[Duel], seeds: int) -> str:
    """Against how many methods it wins, ties and loses: as published, and where they were tuned."""
    parts = []
    for setting in SETTINGS:
        # A method with one setting stands for itself in both groups.
        group = [duel for duel in met if duel.other[1] == setting or len(found.settings(duel.other[0])) == 1]
        if group and (setting == "published" or any(duel.other[1] == setting for duel in group)):
            outcomes = _outcomes(found, group)
            parts.append(f"against the {len(group)} other methods {_PHRASES[setting]} it {outcomes}")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + ("." if seeds > 1 else " (one seed: no spread).")


def _outcomes(found: Scores, met: Sequence[Duel]) -> str:
    groups: dict[str, list[str]] = {}
    for duel in met:
        groups.setdefault(duel.verdict.outcome, []).append(found.infos[duel.other[0]].label)
    words = ("wins", "ties", "loses") if groups.keys() <= {"wins", "ties", "loses"} else _ONE_SEED
    return ", ".join(
        f"{_VERBS[word]} {_listed(groups.get(word, []))}"
        for word in words
        if word in groups or word != "level"
    )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({'; '.join(names)})" if 0 < len(names) <= _MOST_NAMES else str(len(names))


def _against(found: Scores, met: Sequence[Duel]) -> str:
    """One other method under each of its settings."""
    name = found.infos[met[0].other[0]].label
    parts = []
    for place, duel in enumerate(met):
        how = f" {_SHORT[duel.other[1]]}" if len(met) > 1 or duel.other[1] == "tuned" else ""
        who = "it" if place else f"the {name}" if found.group(duel.other) == "control" else name
        parts.append(f"{duel.verdict.lies} {who}{how}{duel.verdict.said}")
    return f"It lies {' and '.join(parts)}."


def forgetting_items(results: BenchmarkResults) -> tuple[Item, ...]:
    """What the pretrained model has, then each variant of STA against every other method."""
    target, control = scores(results, "target"), scores(results, "control")
    both = list(zip(duels(results, "target"), duels(results, "control"), strict=True))
    before = target.runs("reference")

    def averages(run: Run) -> str:
        return f"target {_value(target.spread(run))}, control {_value(control.spread(run))}"

    items = [
        Item(f"{averages(run)}, mean over the tasks.", f"{target.infos[run[0]].label}:") for run in before
    ]
    for run in target.runs("sta"):
        met = [pair for pair in both if pair[0].own == run and target.group(pair[0].other) != "sta"]
        children = tuple(
            Item(
                f"Against {target.named(lost.other)} ({averages(lost.other)}): "
                f"target {lost.verdict.lies}{lost.verdict.said}, "
                f"control {kept.verdict.lies}{kept.verdict.said}."
            )
            for lost, kept in met
            if target.group(lost.other) == "control" or lost.other[0] == _NEGATION
        )
        left = _left(control, run, before[0]) if before else ""
        text = f"{averages(run)}{left}."
        if met and len(results.seeds) > 1:
            text += f" {_trades(target, met)}"
        items.append(Item(text, f"{target.named(run)}:", children))
    return tuple(items)


def _trades(found: Scores, met: Sequence[tuple[Duel, Duel]]) -> str:
    """How often the two measures agree: a method can buy one with the other."""
    groups: dict[str, list[str]] = {}
    for lost, kept in met:
        words = {lost.verdict.outcome, kept.verdict.outcome}
        word = "trades" if {"wins", "loses"} <= words else next(iter(words - {"ties"}), "ties")
        groups.setdefault(word, []).append(found.named(lost.other))
    parts = [f"{phrase} {_listed(groups[word])}" for word, phrase in _TRADES.items() if word in groups]
    return f"Of the {len(met)} other methods and settings, it {'; it '.join(parts)}."


def _left(control: Scores, run: Run, before: Run) -> str:
    """Share of the pretrained model's accuracy on the control that is left."""
    bounds = control.values[before]
    shares = [100 * value / bounds[seed] for seed, value in control.values[run].items() if bounds.get(seed)]
    return f" ({fmean(shares):.1f}% of the {control.infos[before[0]].label} model's)" if shares else ""


def _value(found: Number | None) -> str:
    return "–" if found is None else f"{found}%"
