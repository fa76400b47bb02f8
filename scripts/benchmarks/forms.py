"""Fusion of one tensor in memory: as the equations read, eager, compiled; beside a copy."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from scripts.benchmarks.inputs import Inputs
from scripts.benchmarks.probe import SHAPE, TASKS, P, one_tensor
from scripts.benchmarks.table import Section, interleaved, verdict
from sta_lightning.arithmetic.fusion import Sta
from sta_lightning.arithmetic.memory import MemorySink, run_in_memory
from sta_lightning.arithmetic.problem import Problem
from sta_lightning.arithmetic.run import run
from sta_lightning.arithmetic.selection import rank
from sta_lightning.arithmetic.sources import in_memory
from sta_lightning.arithmetic.workers import Workers
from sta_lightning.kernels import fused

PIECE = 1 << 18  # divides the number of entries
LOOP = "the compiled loop alone"


def as_the_equations_read(base: Tensor, finetuned: list[Tensor], scores: list[Tensor]) -> Tensor:
    """Eq. 13 to 19, one after another, on whole tensors."""
    stack = torch.stack([(score - score.min()) / (score.max() - score.min()) for score in scores])
    threshold = torch.quantile(stack, P, dim=0)
    return base + ((stack > threshold) * (torch.stack(finetuned) - base)).sum(0)


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """Times, bytes per second and ratios."""
    *models, importance = one_tensor()
    base = models[0]["w"]
    finetuned, scores = ([state["w"] for state in states.values()] for states in (models[1], importance))
    everything = [base, *finetuned, *scores]
    copies = [torch.empty_like(tensor) for tensor in everything]
    # The bounds of importances come with their files; "none" leaves them out of the kernel's time.
    kernel = Sta(P, "none")
    wanted = run_in_memory(kernel, *models, importance, compiled=False).weights["w"]
    if not torch.equal(wanted, run_in_memory(kernel, *models, importance, compiled=True).weights["w"]):
        raise SystemExit("the compiled form differs from the eager one")
    problem = Problem(
        in_memory(models[0]),
        {task: in_memory(state) for task, state in models[1].items()},
        {task: in_memory(state) for task, state in importance.items()},
    )
    sink = MemorySink(models[0], None)
    loop, result = fused(TASKS, rank(TASKS, P)), torch.empty(base.numel())
    assert loop is not None
    plain = [None] * TASKS

    def alone(workers: Workers) -> None:
        """Nothing but the loop, over pieces of what is in memory."""

        def piece(start: int) -> None:
            at = 4 * start
            loop(
                base.data_ptr() + at,
                [tensor.data_ptr() + at for tensor in finetuned],
                [tensor.data_ptr() + at for tensor in scores],
                plain,
                result.data_ptr() + at,
                PIECE,
            )

        workers.map(piece, range(0, base.numel(), PIECE))

    def copy() -> None:
        for source, target in zip(everything, copies, strict=True):
            target.copy_(source)

    threads = Workers(torch.get_num_threads())
    threads.__enter__()
    quick = interleaved(
        {
            LOOP: lambda: alone(threads),
            "compiled, through the engine": lambda: run(kernel, problem, sink, compiled=True),
            "the same with the bounds of Eq. 13": lambda: run(Sta(P), problem, sink, compiled=True),
            "fuse(), all of it": lambda: run_in_memory(Sta(P), *models, importance, compiled=True),
            "eager": lambda: run(kernel, problem, sink, compiled=False),
            "copy of the inputs": copy,
        },
        4 * arguments.repetitions,
    )
    slow = interleaved(
        {"torch.quantile": lambda: as_the_equations_read(base, finetuned, scores)}, arguments.repetitions
    )
    times = quick | slow
    size = 4 * base.numel()
    streams = {name: 2 * (1 + 2 * TASKS) if name.startswith("copy") else 2 + 2 * TASKS for name in times}
    speed = {name: streams[name] * size / seconds / 1e9 for name, seconds in times.items()}
    section = Section(
        f"Fusion of one tensor in memory ({SHAPE[0]} × {SHAPE[1]}, N = {TASKS}, p = {P})",
        (
            "form",
            "time (ms)",
            "bytes read and written (GB/s)",
            "of the copy's",
            "times faster than torch.quantile",
        ),
    )
    for name in ("torch.quantile", "eager", *(name for name in quick if name != "eager")):
        section.add(
            name,
            f"{1e3 * times[name]:.1f}",
            f"{speed[name]:.1f}",
            f"{speed[name] / speed['copy of the inputs']:.0%}",
            f"{times['torch.quantile'] / times[name]:.1f}",
        )
    ratio, share = (
        times["torch.quantile"] / times[LOOP],
        speed[LOOP] / speed["copy of the inputs"],
    )
    section.notes = [
        f"Asked: at least 30 times torch.quantile ({verdict(ratio, 30, most=False)}: {ratio:.1f}) and 70% of the copy "
        f"({verdict(share, 0.7, most=False)}: {share:.0%}). Median of {4 * arguments.repetitions} rounds in turn "
        f"(torch.quantile: {arguments.repetitions}). All but torch.quantile and fuse() write into a tensor that is there "
        "already; the bounds of Eq. 13 take a pass over the importances where no file tells them. The compiled form is bit "
        "for bit the eager one.",
    ]
    return section
