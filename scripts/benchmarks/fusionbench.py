"""TIES by FusionBench, files to file: ``fusionbench.py OUTPUT PRETRAINED FINETUNED...``.

For the Python that FusionBench is installed in; it imports nothing of this checkout.
"""

from __future__ import annotations

import importlib
import sys

from safetensors.torch import load_file, save_file
from torch import nn


class Weights(nn.Module):
    """A model that is nothing but the tensors of a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        for name, tensor in load_file(path).items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor))


def main(output: str, pretrained: str, *finetuned: str) -> None:
    """Merge, with the settings of the other rows."""
    ties = importlib.import_module("fusion_bench.method.ties_merging.ties_merging")
    models: dict[str, nn.Module] = {"_pretrained_": Weights(pretrained)}
    models |= {f"task{number:02d}": Weights(path) for number, path in enumerate(finetuned)}
    algorithm = ties.TiesMergingAlgorithm(scaling_factor=0.4, threshold=20, remove_keys=[], merge_func="mean")
    merged = algorithm.run(models).state_dict()
    save_file({name.replace("/", "."): tensor.contiguous() for name, tensor in merged.items()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
