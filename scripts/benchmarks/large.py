"""A sharded model of any size and three fine-tuned from it: time, and what memory a merge takes."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

from scripts.benchmarks.commands import sta, watched
from scripts.benchmarks.inputs import Files, Inputs
from scripts.benchmarks.merging import LIMIT, NO_MERGEKIT, mergekit_command
from scripts.benchmarks.table import Section, verdict
from sta_lightning.arithmetic.workers import Alone
from sta_lightning.engine.options import bytes_of
from sta_lightning.weights import Planned, sharded

TASKS, LAYERS, VOCABULARY, SHARDS = 3, 32, 256, 4
METHODS: dict[str, tuple[str, ...]] = {
    "task arithmetic": ("--method=task_arithmetic", "--scale=0.4"),
    "TIES": ("--method=ties", "--keep=0.2"),
    "STA by Amp": ("--method=sta", "--measure=amp"),
}


def measure(inputs: Inputs, arguments: argparse.Namespace) -> Section:
    """Each method once: it is memory that is asked about."""
    size = bytes_of(arguments.size)
    files = models(inputs.folder / f"sharded-{size}", size)
    section = Section(
        f"A sharded model of {arguments.size} (bfloat16, {SHARDS} shards), {TASKS} fine-tuned: folders to folder",
        (
            "what",
            "whole process (s)",
            "processor time (s)",
            "private memory beyond torch's (MB)",
            "private memory (MB)",
            "resident at its peak, libraries included (MB)",
        ),
    )
    alone = watched([sys.executable, "-c", "import torch"])
    highest = 0.0
    with tempfile.TemporaryDirectory(dir=inputs.folder) as name:
        output = Path(name) / "merged"
        words = [str(files.pretrained), *map(str, files.finetuned), f"--output={output}"]
        commands = {
            what: sta("merge", *words, *options, f"--shard_size={size // SHARDS}")
            for what, options in METHODS.items()
        }
        if arguments.mergekit:
            # Models in folders are merged by another command of the same installation.
            program = str(Path(arguments.mergekit).with_name("mergekit-yaml"))
            for method in ("task_arithmetic", "ties"):
                command = mergekit_command(files, Path(name), method, output, program, "bfloat16")
                commands[f"mergekit {method}"] = [*command, "--no-copy-tokenizer"]
        for what, command in commands.items():
            found = watched(command)
            written = sum(path.stat().st_size for path in output.glob("*.safetensors"))
            if written < 0.8 * size:
                raise SystemExit(f"{what} has written {written} bytes of {size}")
            shutil.rmtree(output)
            beyond = found.private - alone.private
            highest = max(highest, beyond) if what in METHODS else highest
            seconds = (found.seconds, found.busy)
            memory = (beyond, found.private, found.peak)
            section.add(what, *(f"{one:.1f}" for one in seconds), *(f"{one:.0f}" for one in memory))
            print("  ".join(section.rows[-1]), flush=True)
    section.notes = [
        f"Asked: at most {LIMIT} MB beyond torch's own, {alone.private:.0f} MB ({verdict(highest, LIMIT, most=True)}: "
        f"{highest:.0f}). Private memory is RssAnon, looked at every few milliseconds. The first method hashes the "
        f"{TASKS + 1} models too.",
        *([] if arguments.mergekit else [NO_MERGEKIT]),
    ]
    return section


def models(place: Path, size: int) -> Files:
    """A Llama of random weights in shards and models near it, made if they are not there.

    Args:
        place: for the folders.
        size: bytes of each, about.
    """
    found = Files("", place / "base", [place / f"task{i}" for i in range(TASKS)], [], place / "gram")
    width = max(8, 8 * round(math.sqrt(size / torch.bfloat16.itemsize / (16 * LAYERS)) / 8))
    layer = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    layer |= {"mlp.gate_proj": (4 * width, width), "mlp.up_proj": (4 * width, width)}
    layer |= {"mlp.down_proj": (width, 4 * width)}
    layer |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (VOCABULARY, width), "norm": (width,)}
    shapes |= {f"layers.{number}.{name}": shape for number in range(LAYERS) for name, shape in layer.items()}
    planned: Planned = {
        f"model.{name}.weight": (torch.Size(shape), torch.bfloat16) for name, shape in shapes.items()
    }
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"},
        **{"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": LAYERS},
        **{"num_attention_heads": width // 8, "vocab_size": VOCABULARY, "tie_word_embeddings": True},
    }
    folders = [found.pretrained, *found.finetuned]
    if all((folder / "config.json").is_file() for folder in folders):
        return found
    print(f"(making {len(folders)} models in {place})", flush=True)
    generator = torch.Generator().manual_seed(0)
    # Every tensor is a stretch of one pool, from a place of its own: drawing all takes minutes.
    most = max(shape.numel() for shape, _ in planned.values())
    pool = torch.randn(2 * most, generator=generator)

    def drawn(shape: torch.Size) -> torch.Tensor:
        return pool[int(torch.randint(most, (), generator=generator)) :][: shape.numel()]

    with ExitStack() as stack:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        limit = math.ceil(size / SHARDS)
        base, *others = (
            stack.enter_context(sharded(folder, planned, {"format": "pt"}, Alone(), limit))
            for folder in folders
        )
        for name, (shape, dtype) in planned.items():
            entries = 0.02 * drawn(shape)
            base.write(name, 0, entries.to(dtype))
            for sink in others:
                sink.write(name, 0, torch.add(entries, drawn(shape), alpha=1e-3).to(dtype))
    for folder in folders:
        (folder / "config.json").write_text(f"{json.dumps(config, indent=2)}\n", encoding="utf-8")
    return found
