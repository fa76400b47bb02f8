"""Made-up results of a benchmark, of the size and shape of real ones."""

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

from sta_lightning.benchmark.results import (
    BenchmarkResults,
    CurvePoint,
    ForgettingResult,
    FusionResult,
    MethodInfo,
    Setting,
    TradeOffPoint,
)

EMBEDDED = ("digits", "vehicles", "street_numbers", "traffic_signs", "textures", "land_cover")
PAPER = ("mnist", "stanford_cars", "svhn", "gtsrb", "dtd", "eurosat")

# key, label, group, data, coefficient, paper, level of its average, its setting
ROWS: tuple[tuple[str, str, Any, str, bool, str | None, float, dict[str, Any]], ...] = (
    ("zero_shot", "zero-shot", "reference", "nothing", False, None, 64.0, {}),
    (
        "fine_tuned",
        "fine-tuned, each on its own task",
        "reference",
        "labelled samples",
        False,
        None,
        95.5,
        {},
    ),
    ("sta_lp", "STA LP", "sta", "labelled samples", False, "sta_lp", 77.9, {"p": 0.7}),
    ("sta_lp_amp", "STA LP+Amp", "sta", "labelled samples", False, "sta_lp_amp", 80.7, {"p": 0.7}),
    ("sta_amp", "STA Amp", "sta", "nothing", False, "sta_amp", 80.5, {"p": 0.7}),
    ("random_mask", "random mask", "control", "nothing", False, None, 81.0, {"p": 0.7}),
    ("average", "simple average", "data-free", "nothing", False, "average", 78.6, {}),
    (
        "task_arithmetic",
        "task arithmetic",
        "data-free",
        "nothing",
        True,
        "task_arithmetic",
        79.4,
        {"scale": 0.4},
    ),
    ("ties", "TIES", "data-free", "nothing", True, "ties", 76.0, {"keep": 0.2, "scale": 0.4}),
    ("ties_sum", "TIES, sum", "data-free", "nothing", True, None, 80.0, {"keep": 0.2, "scale": 0.3}),
    ("dare_average", "DARE + average", "data-free", "nothing", False, "dare+average", 78.4, {"drop": 0.5}),
    (
        "dare_task_arithmetic",
        "DARE + task arithmetic",
        "data-free",
        "nothing",
        True,
        "dare+task_arithmetic",
        78.9,
        {},
    ),
    (
        "dare_ties",
        "DARE + TIES",
        "data-free",
        "nothing",
        True,
        "dare+ties",
        75.5,
        {"drop": 0.5, "scale": 0.4},
    ),
    ("pcb", "PCB", "data-free", "nothing", True, "pcb", 82.0, {"keep": 0.05, "scale": 1.2}),
    ("tsv", "TSV-M", "data-free", "nothing", True, None, 88.0, {"scale": 1.0}),
    ("iso_c", "Iso-C", "data-free", "nothing", True, None, 87.0, {"scale": 1.0}),
    ("iso_cts", "Iso-CTS", "data-free", "nothing", True, None, 87.4, {"common": 0.8, "scale": 1.0}),
    ("consensus", "Consensus TALL", "data-free", "nothing", True, None, 82.3, {"mask": 0.4, "scale": 0.3}),
    ("lines", "LiNeS", "data-free", "nothing", True, None, 81.0, {"beta": 0.3}),
    ("fisher", "Fisher", "data", "labelled samples", False, None, 79.0, {"samples": 256}),
    ("regmean", "RegMean", "data", "unlabelled samples", False, None, 88.2, {"samples": 256, "ratio": 0.95}),
    (
        "adamerging",
        "AdaMerging, layer-wise",
        "data",
        "unlabelled test images",
        False,
        None,
        86.1,
        {"steps": 500},
    ),
)


def methods() -> tuple[MethodInfo, ...]:
    return tuple(
        MethodInfo(key, label, f"what {label} does", data, coefficient, "Someone et al. 2024", group, paper)
        for key, label, group, data, coefficient, paper, _, _ in ROWS
    )


def forget_methods() -> tuple[MethodInfo, ...]:
    made = {info.key: info for info in methods()}
    return (
        MethodInfo("pretrained", "pretrained", "as it was", "nothing", False, "", "reference", "pretrained"),
        replace(made["sta_lp"], label="STA LP"),
        replace(made["sta_amp"], paper=None),
        replace(made["random_mask"], label="random mask"),
        replace(made["task_arithmetic"], label="task arithmetic (negation)"),
        MethodInfo(
            "negmerge", "NegMerge", "mean where signs agree", "nothing", True, "Kim 2024", "data-free"
        ),
    )


def made_up(tasks: tuple[str, ...] = EMBEDDED, seeds: tuple[int, ...] = (0, 1, 2)) -> BenchmarkResults:
    """Every section filled, with numbers that are the same in every process."""
    draw = random.Random(7)
    ease = {task: draw.uniform(-8, 8) for task in tasks}
    kept = {
        f"transformer.resblocks.{layer}.{kind}": {task: draw.uniform(0.05, 0.5) for task in tasks}
        for layer in range(6)
        for kind in (
            "ln_1.weight",
            "ln_1.bias",
            "attn.in_proj_weight",
            "attn.in_proj_bias",
            "attn.out_proj.weight",
            "attn.out_proj.bias",
            "ln_2.weight",
            "ln_2.bias",
            "mlp.c_fc.weight",
            "mlp.c_fc.bias",
            "mlp.c_proj.weight",
            "mlp.c_proj.bias",
        )
    }
    kept |= {
        name: {task: draw.uniform(0.05, 0.5) for task in tasks}
        for name in (
            "class_embedding",
            "positional_embedding",
            "proj",
            "conv1.weight",
            "ln_pre.weight",
            "ln_post.weight",
        )
    }
    return BenchmarkResults(
        title="Benchmark of Selective Task Arithmetic",
        encoder="miniature" if tasks == EMBEDDED else "ViT-B-16",
        tasks=tasks,
        control="objects" if tasks == EMBEDDED else "imagenet",
        seeds=seeds,
        methods=methods(),
        forget_methods=forget_methods(),
        images={
            split: dict.fromkeys((*tasks, "objects"), count)
            for split, count in (("train", 4000), ("validation", 250), ("test", 1000))
        },
        fusion=_fusion(draw, tasks, seeds, ease),
        pairs=_pairs(draw, tasks, seeds, ease),
        forgetting=_forgetting(draw, tasks, seeds),
        curves=_curves(draw, seeds),
        trade_off=_trade_off(draw, seeds),
        kept=kept,
        conflict={a: {b: draw.uniform(0.4, 0.52) for b in tasks if b != a} for a in tasks},
        record={
            "command": "sta benchmark --seeds=3",
            "date": "2026-11-23 07:28 UTC",
            "hardware": "a processor, 2 cores, 2 threads",
            "versions": {"sta_lightning": "0.1.0", "torch": "2.15.0"},
            "settings": {
                "encoder": "miniature",
                "seeds": list(seeds),
                "p": 0.7,
                "grid": {"scale": [0.1, 0.2]},
            },
            "hashes": {"finetune/digits.safetensors": "0f" * 32, "finetune/vehicles.safetensors": "1e" * 32},
            "seconds": 4321.5,
        },
    )


def _clip(value: float) -> float:
    return round(min(99.9, max(1.0, value)), 2)


def _fusion(
    draw: random.Random, tasks: tuple[str, ...], seeds: tuple[int, ...], ease: dict[str, float]
) -> Any:
    found = []
    for key, _, group, _, coefficient, _, level, settings in ROWS:
        which: tuple[Setting, ...] = (
            ("published", "tuned") if coefficient or "p" in settings else ("published",)
        )
        for setting in which:
            gain = 1.5 if setting == "tuned" else 0.0
            for seed in seeds:
                chosen = {
                    name: value * (0.75 if setting == "tuned" and seed else 1)
                    for name, value in settings.items()
                }
                spread = 0.2 if group == "reference" else 1.0
                accuracy = {
                    task: _clip(
                        level + gain + (ease[task] if level < 90 else ease[task] / 4) + draw.gauss(0, spread)
                    )
                    for task in tasks
                }
                validation = level + gain if setting == "tuned" else None
                found.append(FusionResult(key, setting, seed, tasks, accuracy, chosen, validation))
    return tuple(found)


def _pairs(
    draw: random.Random, tasks: tuple[str, ...], seeds: tuple[int, ...], ease: dict[str, float]
) -> Any:
    levels = {"sta_lp": 86.0, "random_mask": 88.0, "average": 87.0, "task_arithmetic": 89.0, "tsv": 92.0}
    return tuple(
        FusionResult(
            key,
            "published",
            seed,
            pair,
            {task: _clip(level + ease[task] / 2 + draw.gauss(0, 0.8)) for task in pair},
        )
        for pair in combinations(tasks, 2)
        for key, level in levels.items()
        for seed in seeds
    )


def _forgetting(draw: random.Random, tasks: tuple[str, ...], seeds: tuple[int, ...]) -> Any:
    levels: dict[tuple[str, Setting], tuple[float, float]] = {
        ("pretrained", "published"): (64.0, 99.3),
        ("sta_lp", "published"): (39.0, 99.1),
        ("sta_lp", "tuned"): (25.0, 95.5),
        ("sta_amp", "published"): (41.0, 99.0),
        ("random_mask", "published"): (43.9, 99.1),
        ("task_arithmetic", "published"): (20.7, 94.5),
        ("task_arithmetic", "tuned"): (21.5, 95.1),
        ("negmerge", "published"): (30.0, 97.0),
        ("negmerge", "tuned"): (22.0, 95.3),
    }
    return tuple(
        ForgettingResult(
            key,
            setting,
            seed,
            task,
            _clip(target + draw.gauss(0, 1.5 if key != "pretrained" else 0)),
            _clip(control + draw.gauss(0, 0.2 if key != "pretrained" else 0)),
            {"scale": 1.0} if key == "task_arithmetic" else {},
        )
        for (key, setting), (target, control) in levels.items()
        for seed in seeds
        for task in tasks
    )


def _curves(draw: random.Random, seeds: tuple[int, ...]) -> Any:
    found = []
    for seed in seeds:
        for key, top in (("sta_lp", 78), ("sta_amp", 80), ("random_mask", 81)):
            found += [
                CurvePoint(
                    "p", key, seed, x / 10, top - 60 * (x / 10 - 0.6) ** 2 + draw.gauss(0, 0.4), "validation"
                )
                for x in range(11)
            ]
        for key, top in (("task_arithmetic", 81), ("ties", 79), ("tsv", 88)):
            found += [
                CurvePoint(
                    "scale",
                    key,
                    seed,
                    x / 10,
                    top - 20 * (x / 10 - 0.4) ** 2 + draw.gauss(0, 0.4),
                    "validation",
                )
                for x in range(1, 16)
            ]
        for key, top in (("sta_lp", 78), ("fisher", 79), ("regmean", 88)):
            found += [
                CurvePoint("samples", key, seed, 2.0**x, top - 6 / (1 + x) + draw.gauss(0, 0.4), "test")
                for x in range(9)
            ]
        for key, top in (
            ("sta_lp", 91),
            ("random_mask", 92),
            ("average", 91),
            ("task_arithmetic", 92),
            ("tsv", 94),
        ):
            found += [
                CurvePoint("tasks", key, seed, n, top - 2.2 * (n - 2) + draw.gauss(0, 0.4), "test")
                for n in range(2, 7)
            ]
    return tuple(found)


def _trade_off(draw: random.Random, seeds: tuple[int, ...]) -> Any:
    found = []
    for seed in seeds:
        for key, cost in (("sta_lp", 3.0), ("random_mask", 4.0), ("task_arithmetic", 6.0), ("negmerge", 4.5)):
            for step in range(8):
                done = step / 7
                x = 0.95 - 0.8 * done if key in ("sta_lp", "random_mask") else 0.2 + 1.4 * done
                target = 60 - 48 * done + draw.gauss(0, 0.5)
                found.append(
                    TradeOffPoint(
                        key, seed, round(x, 2), target, 99 - cost * 3 * done**2 + draw.gauss(0, 0.2)
                    )
                )
    return tuple(found)
