"""What a benchmark says, in sentences: where STA wins, where it ties, where it loses, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from sta_lightning.benchmark.report.numbers import (
    SETTINGS,
    Duel,
    Run,
    duels,
    forget_duels,
    forget_runs,
    forgotten,
    kept_accuracy,
    label,
    named,
    references,
    runs,
    spread,
)
from sta_lightning.benchmark.report.verdict import ONE_SEED, RULE, Verdict
from sta_lightning.benchmark.results import BenchmarkResults, Setting, Spread
from sta_lightning.report.document import Item

_MOST_NAMES = 3
_NEGATION = "task_arithmetic"
_PHRASES: dict[Setting, str] = {"published": "as published", "tuned": "tuned, where they can be,"}
_SHORT: dict[Setting, str] = {"published": "as published", "tuned": "tuned"}
_SAID = ("wins", "ties", "loses", "above", "below")
_ONE_SEED = ("above", "level", "below")
_VERBS = {
    "wins": "wins",
    "ties": "ties",
    "loses": "loses",
    "above": "lies above",
    "level": "is level with",
    "below": "lies below",
}


def fusion_items(results: BenchmarkResults) -> tuple[Item, ...]:
    """The best model, then each variant of STA."""
    if not results.fusion:
        return ()
    found = duels(results)
    items = [_best(results, found)] if any(info.group != "reference" for info, _ in runs(results)) else []
    for info, setting in runs(results):
        if info.group == "sta":
            items.append(_variant(results, (info.key, setting), found))
    return tuple(items)


def _best(results: BenchmarkResults, found: Sequence[Duel]) -> Item:
    merges: list[Run] = [(info.key, setting) for info, setting in runs(results) if info.group != "reference"]
    best = max(merges, key=lambda run: results.spread(*run).mean)
    bounds = [
        f"{label(results, key)}: {_value(results.spread(key, results.settings_of(key)[0]))}"
        for key in references(results)
        if key is not None
    ]
    text = f"{named(results, best)}, {_value(results.spread(*best))} on average"
    text += f" ({'; '.join(bounds)})." if bounds else "."
    own = [run for run in merges if results.method(run[0]).group == "sta"]
    if own and results.method(best[0]).group != "sta":
        first = max(own, key=lambda run: results.spread(*run).mean)
        text += f" The best variant of STA is {named(results, first)}, {_value(results.spread(*first))}."
        duel = next((duel for duel in found if (duel.own, duel.other) == (first, best)), None)
        if duel is not None:
            text += f" {duel.verdict.sentence('It', named(results, best))}"
    return Item(text, lead="The best fused model:")


def _variant(results: BenchmarkResults, run: Run, found: Sequence[Duel]) -> Item:
    share = kept_accuracy(results, run)
    text = f"{_value(results.spread(*run))} on average"
    if share is not None:
        text += f", {_value(share)} of the fine-tuned models' accuracy (mean over the tasks)"
    own = [duel for duel in found if duel.own == run and results.method(duel.other[0]).group != "sta"]
    text += f". {tally(results, own)}" if own else "."
    controls = dict.fromkeys(
        duel.other[0] for duel in own if results.method(duel.other[0]).group == "control"
    )
    for key in controls:
        text += f" {_against(results, [duel for duel in own if duel.other[0] == key])}"
    return Item(text, lead=f"{named(results, run)}:")


def _counts(results: BenchmarkResults, other: Run, setting: Setting) -> bool:
    """Whether a run stands for its method among those of a setting: the only one it has counts in both."""
    settings = results.settings_of(other[0])
    return other[1] == setting or (setting not in settings and len(settings) == 1)


def tally(results: BenchmarkResults, found: Sequence[Duel]) -> str:
    """Against how many methods it wins, ties and loses: as published, and where they were tuned."""
    parts = []
    for setting in SETTINGS:
        group = [duel for duel in found if _counts(results, duel.other, setting)]
        if group and (setting == "published" or any(duel.other[1] == setting for duel in group)):
            parts.append(
                f"against the {len(group)} other methods {_PHRASES[setting]} it {_outcomes(results, group)}"
            )
    text = "; ".join(parts)
    tail = "." if len(results.seeds) > 1 else " (one seed: no spread)."
    return text[:1].upper() + text[1:] + tail


def _outcomes(results: BenchmarkResults, found: Sequence[Duel]) -> str:
    groups: dict[str, list[str]] = {}
    for duel in found:
        groups.setdefault(duel.verdict.outcome, []).append(label(results, duel.other[0]))
    words = (
        ("wins", "ties", "loses") if any(word in groups for word in ("wins", "ties", "loses")) else _ONE_SEED
    )
    return ", ".join(
        f"{_VERBS[word]} {_listed(groups.get(word, []))}" for word in words if word in groups or word in _SAID
    )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({'; '.join(names)})" if 0 < len(names) <= _MOST_NAMES else str(len(names))


def _against(results: BenchmarkResults, found: Sequence[Duel]) -> str:
    name = label(results, found[0].other[0])
    parts = []
    for place, duel in enumerate(found):
        several = len(found) > 1 or duel.other[1] == "tuned"
        how = f" {_SHORT[duel.other[1]]}" if several else ""
        who = f"the {name}" if place == 0 else "it"
        parts.append(f"{lies(duel.verdict)} {who}{how} ({outcome(duel.verdict)})")
    return f"It lies {' and '.join(parts)}."


def lies(verdict: Verdict) -> str:
    """``3.2 ± 0.4 points below``."""
    side = "above" if verdict.difference.mean >= 0 else "below"
    return f"{verdict.size} points {side}"


def outcome(verdict: Verdict) -> str:
    """``loses``, or that there is one seed."""
    return "one seed: no spread" if verdict.error is None else verdict.outcome


def forgetting_items(results: BenchmarkResults) -> tuple[Item, ...]:
    """What the pretrained model has, then each variant of STA against every other method."""
    if not results.forgetting:
        return ()
    items = []
    for info, setting in forget_runs(results):
        if info.group == "reference":
            target, control = _both(results, (info.key, setting))
            items.append(
                Item(
                    f"target {_value(target)}, control {_value(control)}, mean over the tasks.",
                    lead=f"{info.label}:",
                )
            )
    targets, controls = forget_duels(results, "target"), forget_duels(results, "control")
    infos = {info.key: info for info in results.forget_methods}
    for info, setting in forget_runs(results):
        if info.group != "sta":
            continue
        run: Run = (info.key, setting)
        target, control = _both(results, run)
        both = [
            (one, two)
            for one in targets
            for two in controls
            if one.own == two.own == run and one.other == two.other and infos[one.other[0]].group != "sta"
        ]
        children = [
            Item(
                f"Against {named(results, one.other, forgetting=True)}: target {lies(one.verdict)} "
                f"({outcome(one.verdict)}), control {lies(two.verdict)} ({outcome(two.verdict)})."
            )
            for one, two in both
            if infos[one.other[0]].group == "control" or one.other[0] == _NEGATION
        ]
        text = f"target {_value(target)}, control {_value(control)}{_reached(results, run)}."
        if both and len(results.seeds) > 1:
            text += f" {_trades(results, both)}"
        items.append(Item(text, f"{named(results, run, forgetting=True)}:", tuple(children)))
    return tuple(items)


def _trades(results: BenchmarkResults, both: Sequence[tuple[Duel, Duel]]) -> str:
    """How often the two measures agree: a method can buy one with the other."""
    groups: dict[str, list[str]] = {}
    for one, two in both:
        words = {one.verdict.outcome, two.verdict.outcome}
        word = "trades" if {"wins", "loses"} <= words else next(iter(words - {"ties"}), "ties")
        groups.setdefault(word, []).append(named(results, one.other, forgetting=True))
    parts = [
        f"{phrase} {_listed(groups[word])}"
        for word, phrase in (
            ("wins", "is better in one measure and no worse in the other than"),
            ("ties", "ties in both with"),
            ("trades", "is better in one and worse in the other than"),
            ("loses", "is worse in one and no better in the other than"),
        )
        if word in groups
    ]
    return f"Of the {len(both)} other methods and settings, it {'; it '.join(parts)}."


def _both(results: BenchmarkResults, run: Run) -> tuple[Spread | None, Spread | None]:
    return spread(forgotten(results, run, "target")), spread(forgotten(results, run, "control"))


def _reached(results: BenchmarkResults, run: Run) -> str:
    """Share of the pretrained model's control accuracy that is left."""
    for info in results.forget_methods:
        if info.group == "reference":
            before, after = (forgotten(results, one, "control") for one in ((info.key, "published"), run))
            shares = [100 * value / before[seed] for seed, value in after.items() if before.get(seed)]
            if shares:
                return f" ({fmean(shares):.1f}% of the {info.label} model's)"
    return ""


def _value(found: Spread | None) -> str:
    if found is None:
        return "–"
    return f"{found.mean:.1f}%" if found.std is None else f"{found.mean:.1f} ± {found.std:.1f}%"


def reading(results: BenchmarkResults) -> str:
    """How the numbers of the summary are to be read."""
    if len(results.seeds) < 2:
        return f"All numbers are of one seed of fine-tuning ({results.seeds[0]}). {ONE_SEED}"
    return (
        f"All numbers are means over {len(results.seeds)} seeds of fine-tuning. After ± stands the standard deviation over "
        f"the seeds for an accuracy, and the standard error for a difference. {RULE}"
    )
