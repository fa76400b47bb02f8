"""The first calls of ``fuse`` in a process, and later ones beside busy processes."""

from __future__ import annotations

import argparse
import tempfile

from scripts.benchmarks.commands import ROOT, probed
from scripts.benchmarks.inputs import Inputs
from scripts.benchmarks.table import Section, verdict

FASTER, BUSY = 30, 2
CALLS = {
    "first": "the first call, where no loop is kept: the eager form, the loop is built beside it",
    "second": "the second call, which waits for the loop",
    "third": "the third",
    "quiet": "later ones, median of 20",
    "beside one": "the same beside one busy process",
    "beside four": "the same beside four",
}


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """In one process with an empty cache, then in one that finds the loop there."""
    section = Section(
        "fuse() in memory, one tensor of 3072 × 768, N = 6",
        ("call", "no loop kept (ms)", "kept (ms)", "torch.quantile : kept", "kept : quiet", "asked"),
    )
    with tempfile.TemporaryDirectory(dir=inputs.folder) as cache:
        own = {"PYTHONPATH": str(ROOT), "STA_CACHE": cache}
        cold, warm = probed("calls", environment=own), probed("calls", environment=own)
    for name, what in CALLS.items():
        ratio, slower = warm["quantile"] / warm[name], warm[name] / warm["quiet"]
        asked = ""
        if name in ("second", "third", "quiet"):
            asked = f"at least {FASTER} times torch.quantile: {verdict(ratio, FASTER, most=False)}"
        elif name == "beside one":
            asked = f"at most {BUSY} times quiet: {verdict(slower, BUSY, most=True)}"
        section.add(
            what, f"{1e3 * cold[name]:.1f}", f"{1e3 * warm[name]:.1f}", f"{ratio:.1f}", f"{slower:.2f}", asked
        )
    section.notes = [
        f"torch.quantile: {1e3 * warm['quantile']:.0f} ms. A loop that was built once is kept for every later process."
    ]
    return section
