"""Write configs/paper: every run of the paper's experiment as a YAML file of its own.

    python scripts/make_paper_configs.py             # into configs/paper
    python scripts/make_paper_configs.py --folder F  # elsewhere

The files are committed; a test compares them with what this writes. What several runs share stands in configs/paper/common,
and the first lines of every file give the command that stacks them.
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
    "sta_amp": ("STA by amplitude (θ²)", "sta", {"measure": "amp", "p": "0.7"}),
    "sta_lp_amp": ("STA by loss preservation times amplitude", "sta", {"measure": "lp+amp", "p": "0.7"}),
    "sta_lp": ("STA by loss preservation, the paper's own", "sta", {"measure": "lp", "p": "0.7"}),
    "random_mask": (
        "a random mask of STA's density, which the paper does not have",
        "random_mask",
        {"p": "0.7", "seed": "0"},
    ),
}
"""Rows of Table 2, by file: what it is, ``method``, and the method's settings."""

BASE = "configs/paper"
RUNS = "runs/paper"

COMMON = {
    "fit": """\
# The paper's recipe for fine-tuning, without the task: a file of configs/paper/finetune follows it.
#   sta fit --config configs/paper/common/fit.yaml --config configs/paper/finetune/mnist.yaml
seed_everything: 0

# encoder, pretrained, image_size and task are stated once, here: the data follow.
model:
  class_path: CLIPClassifier
  init_args:
    encoder: ViT-B-16
    pretrained: openai  # the tag brings QuickGELU with it; for a file of these weights: encoder: ViT-B-16-quickgelu
    trainable: encoder  # the head is zero-shot and frozen
    learning_rate: 1.0e-5
    weight_decay: 0.1
    warmup_steps: 500  # then a cosine to zero
    label_smoothing: 0.0

data:
  class_path: TaskDataModule
  init_args:
    batch_size: 128
    global_batch: true  # 128 images a step on any number of processes that divides it
    num_workers: 4
    augment: true  # random crops of 90 to 100% of the area

trainer:
  gradient_clip_val: 1.0
  log_every_n_steps: 10
""",
    "score": """\
# How the paper scores, without the task: a file of configs/paper/score follows it.
#   sta score --config configs/paper/common/score.yaml --config configs/paper/score/mnist.yaml
model:
  encoder: ViT-B-16
  pretrained: openai

measure: lp  # Eq. 10; the merges make lp+amp of it, and amp needs no file
samples: 32
seed: 0
precision: float32
""",
    "merge": """\
# What the paper's fusions share: a file of configs/paper/figure_3 follows it, or common/six_tasks.yaml and a file of table_2.
#   sta merge --config configs/paper/common/merge.yaml --config configs/paper/figure_3/sta/mnist_cars.yaml
model:
  encoder: ViT-B-16
  pretrained: openai

# The tasks to evaluate are the model's.
data:
  batch_size: 128
  num_workers: 4

evaluate: true
""",
    "forget": """\
# What the paper's forgettings share: a file of configs/paper/table_3 follows it.
#   sta forget --config configs/paper/common/forget.yaml --config configs/paper/table_3/sta/mnist.yaml
model:
  encoder: ViT-B-16
  pretrained: openai  # the model that forgets
  control: imagenet

# The images follow the model: of the target, and of the control that must not be hurt.
data:
  batch_size: 128
  num_workers: 4

evaluate: true
""",
}


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


def pretrained() -> str:
    """The evaluation of the pretrained encoder."""
    return f"""\
# Table 3, rows "pretrained": zero-shot accuracy on the six tasks and on ImageNet. Nothing is trained or written but logs.
{stack("test", "table_3/pretrained")}
# Leaves {RUNS}/table_3/pretrained: TensorBoard and CSV logs.
seed_everything: 0

model:
  class_path: MultiTaskEvaluation
  init_args:
    encoder: ViT-B-16
    pretrained: openai

data:
  class_path: MultiTaskDataModule
  init_args:
    tasks: [{", ".join(TASKS)}]
    control: imagenet
    batch_size: 128
    num_workers: 4

trainer:
{loggers("table_3/pretrained")}"""


def configs() -> dict[str, str]:
    """The text of every file, by its path below ``configs/paper``."""
    found = {f"common/{name}": text for name, text in COMMON.items()}
    found["common/six_tasks"] = six_tasks()
    for task in TASKS:
        found[f"finetune/{task}"] = finetune(task)
        found[f"score/{task}"] = score(task)
        for method in ("sta", "task_arithmetic"):
            found[f"table_3/{method}/{task}"] = table_3(method, task)
    found["table_3/pretrained"] = pretrained()
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
