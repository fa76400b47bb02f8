"""Images per second of a fit beside a bare PyTorch loop."""

from __future__ import annotations

import argparse

from scripts.benchmarks import fit
from scripts.benchmarks.inputs import Inputs
from scripts.benchmarks.table import Section, verdict

# Encoder, weights, images in a batch, batches.
RUNS = (("miniature", None, 128, 30), ("ViT-B-32", "random", 8, 12))


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """The package's own encoder, and one of real size."""
    section = Section(
        "Fitting, beside a bare loop over the same model, batches and loader",
        ("encoder", "batch", "fit (images/s)", "bare loop (images/s)", "time, fit : bare", "asked"),
    )
    for encoder, pretrained, batch, batches in RUNS:
        found = fit.measure(
            batches, arguments.repetitions, encoder=encoder, pretrained=pretrained, batch_size=batch
        )
        section.add(
            encoder,
            str(batch),
            f"{batch / found['fit_seconds']:.1f}",
            f"{batch / found['bare_seconds']:.1f}",
            f"{found['ratio']:.3f} (computing time: {found['busy_ratio']:.3f})",
            f"at most 1.03: {verdict(found['ratio'], 1.03, most=True)}",
        )
    return section
