"""Write what repeats itself in configs/paper: every run of the paper's experiment is a YAML file of its own.

    python scripts/make_paper_configs.py             # into configs/paper
    python scripts/make_paper_configs.py --folder F  # elsewhere

The files are committed; a test compares them with what this writes. What the runs of a command
share stands in configs/paper/common, written by hand, and the first lines of every file give the
command that stacks them.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

TASKS = {
    "mnist": "MNIST",
    "cars": "Stanford Cars",
    "svhn": "SVHN",
    "gtsrb": "GTSRB",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
}
"""The six tasks in the order of the paper's tables, and what their sets are called."""

EPOCHS = {"mnist": 5, "cars": 35, "svhn": 4, "gtsrb": 11, "dtd": 77, "eurosat": 12}

PAIRS = tuple(itertools.combinations(TASKS, 2))

FUSIONS = {
    "average": ("the plain average", "average", {}),
    "task_arithmetic": ("task arithmetic with λ = 0.4", "task_arithmetic", {"scale": "0.4"}),
    "ties": (
        "TIES with the top 20% and λ = 0.4",
        "ties",
        {"scale": "0.4", "settings": "{keep: 0.2, merge: mean}"},
    ),
    "dare_average": ("the plain average behind DARE", "average", {"dare": "0.5"}),
    "dare_task_arithmetic": (
        "task arithmetic with λ = 0.4 behind DARE",
        "task_arithmetic",
        {"scale": "0.4", "dare": "0.5"},
    ),
    "dare_ties": (
        "TIES behind DARE",
        "ties",
        {"scale": "0.4", "settings": "{keep: 0.2, merge: mean}", "dare": "0.5"},
    ),
    "pcb": (
        "PCB with the settings of its authors' vision script",
        "pcb",
        {"scale": "1.2", "settings": "{variant: vision, ratio: 0.05}"},
    ),
    "sta_amp": ("STA with importance by amplitude (θ²)", "sta", {"measure": "amp", "p": "0.7"}),
    "sta_lp_amp": (
        "STA with importance by loss preservation times amplitude",
        "sta",
        {"measure": "lp+amp", "p": "0.7"},
    ),
    "sta_lp": (
        "STA with importance by loss preservation, the paper's own",
        "sta",
        {"measure": "lp", "p": "0.7"},
    ),
    "random_mask": (
        "a random mask of STA's density, which the paper does not have",
        "random_mask",
        {"p": "0.7", "seed": "0"},
    ),
}
"""Rows of Table 2, by file: what it is, ``method``, and the method's settings."""

BASE = "configs/paper"
RUNS = "runs/paper"


def stack(command: str, *files: str) -> str:
    """The comment that gives a run's command."""
    return f"#   sta {command} " + " ".join(f"--config {BASE}/{file}.yaml" for file in files)


def loggers(folder: str) -> str:
    """TensorBoard and CSV logs in a run's own folder, as the lines of a trainer's section."""
    place, version = folder.rsplit("/", 1)
    return f"""\
  logger:
    - class_path: TensorBoardLogger
      init_args: {{save_dir: {RUNS}, name: {place}, version: {version}, default_hp_metric: false}}
    - class_path: CSVLogger
      init_args: {{save_dir: {RUNS}/{folder}, name: csv}}
"""


def files_of(task: str) -> str:
    """The files that a fine-tuning and its scoring leave, as the lines of one of a merge's tasks."""
    folder = f"{RUNS}/finetune/{task}"
    return f"""\
    {task}:
      finetuned: {folder}/encoder.safetensors
      importance: {folder}/importance.safetensors
      head: {folder}/head.safetensors
"""


def finetune(task: str) -> str:
    """Fine-tuning on one task."""
    folder = f"{RUNS}/finetune/{task}"
    return f"""\
# Fine-tune CLIP ViT-B/16 on {TASKS[task]} for {EPOCHS[task]} epochs; the recipe is in common/fit.yaml.
{stack("fit", "common/fit", f"finetune/{task}")}
# Leaves {folder}: encoder.safetensors, head.safetensors, checkpoints, TensorBoard and CSV logs.
model:
  init_args:
    task: {task}

trainer:
  max_epochs: {EPOCHS[task]}
{loggers(f"finetune/{task}")}\
  callbacks:
    - class_path: ExportWeights
      init_args: {{directory: {folder}}}
    # Interrupted? The same command with --ckpt_path={folder}/checkpoints/last.ckpt goes on.
    - class_path: ModelCheckpoint
      init_args: {{dirpath: {folder}/checkpoints, filename: last, enable_version_counter: false}}
    - class_path: LearningRateMonitor
      init_args: {{logging_interval: step}}
"""


def score(task: str) -> str:
    """Scoring of one fine-tuned encoder."""
    folder = f"{RUNS}/finetune/{task}"
    return f"""\
# Importance of every weight of the encoder fine-tuned on {TASKS[task]}; the measure is in common/score.yaml.
{stack("score", "common/score", f"score/{task}")}
# Needs configs/paper/finetune/{task}.yaml; leaves {folder}/importance.safetensors.
model:
  task: {task}
  head: {folder}/head.safetensors

weights: {folder}/encoder.safetensors
output: {folder}/importance.safetensors
"""


def six_tasks() -> str:
    """The files of all six tasks, for Table 2."""
    return f"""\
# The six tasks that Table 2 fuses, and their files (configs/paper/finetune, then configs/paper/score).
{stack("merge", "common/merge", "common/six_tasks", "table_2/sta_lp")}
model:
  tasks:
{"".join(map(files_of, TASKS))}"""


def table_2(row: str) -> str:
    """A fusion of all six tasks."""
    what, method, settings = FUSIONS[row]
    lines = "".join(f"  {name}: {value}\n" for name, value in settings.items())
    return f"""\
# Table 2: six encoders fused into one by {what}.
{stack("merge", "common/merge", "common/six_tasks", f"table_2/{row}")}
# Leaves {RUNS}/table_2/{row}: fused.safetensors, TensorBoard and CSV logs.
model:
  method: {method}
{lines}
trainer:
{loggers(f"table_2/{row}")}
output: {RUNS}/table_2/{row}/fused.safetensors
"""


def figure_3(method: str, pair: tuple[str, str]) -> str:
    """A fusion of two of the six tasks."""
    name = "_".join(pair)
    title, settings = {
        "sta": ("STA", "  method: sta\n  measure: lp\n  p: 0.7"),
        "task_arithmetic": ("task arithmetic", "  method: task_arithmetic\n  scale: 0.4"),
    }[method]
    return f"""\
# Figure 3: {TASKS[pair[0]]} and {TASKS[pair[1]]} fused by {title}.
{stack("merge", "common/merge", f"figure_3/{method}/{name}")}
# Leaves {RUNS}/figure_3/{method}/{name}: fused.safetensors, TensorBoard and CSV logs.
model:
{settings}
  tasks:
{"".join(map(files_of, pair))}
trainer:
{loggers(f"figure_3/{method}/{name}")}
output: {RUNS}/figure_3/{method}/{name}/fused.safetensors
"""


def table_3(method: str, task: str) -> str:
    """The pretrained encoder made to forget one task."""
    folder = f"{RUNS}/finetune/{task}"
    title, settings, needed = {
        "sta": (
            "STA",
            f"  method: sta\n  measure: lp\n  p: 0.7\n  importance: {folder}/importance.safetensors",
            f"{BASE}/finetune/{task}.yaml and {BASE}/score/{task}.yaml",
        ),
        "task_arithmetic": (
            "task arithmetic",
            "  method: task_arithmetic\n  scale: 1.0  # γ, which the paper does not state",
            f"{BASE}/finetune/{task}.yaml",
        ),
    }[method]
    return f"""\
# Table 3: the pretrained encoder made to forget {TASKS[task]} by {title}; ImageNet tells what it costs.
{stack("forget", "common/forget", f"table_3/{method}/{task}")}
# Needs {needed}.
# Leaves {RUNS}/table_3/{method}/{task}: forgotten.safetensors, TensorBoard and CSV logs.
model:
  target: {task}
{settings}
  finetuned: {folder}/encoder.safetensors
  target_head: {folder}/head.safetensors

trainer:
{loggers(f"table_3/{method}/{task}")}
output: {RUNS}/table_3/{method}/{task}/forgotten.safetensors
"""


def configs() -> dict[str, str]:
    """The text of every file that is written here, by its path below ``configs/paper``."""
    found = {"common/six_tasks": six_tasks()}
    for task in TASKS:
        found[f"finetune/{task}"] = finetune(task)
        found[f"score/{task}"] = score(task)
        for method in ("sta", "task_arithmetic"):
            found[f"table_3/{method}/{task}"] = table_3(method, task)
    found |= {f"table_2/{row}": table_2(row) for row in FUSIONS}
    for method, pair in itertools.product(("sta", "task_arithmetic"), PAIRS):
        found[f"figure_3/{method}/{'_'.join(pair)}"] = figure_3(method, pair)
    return {f"{name}.yaml": text for name, text in found.items()}


def write(folder: Path) -> None:
    """Write every file below a folder."""
    for name, text in configs().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the configurations of the paper's experiment.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent.parent / BASE)
    write(parser.parse_args().folder)
