"""``sta score``: a fine-tuned encoder's importances, or Gram matrices, in one file."""

import json
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.trainer.states import TrainerFn

from sta_lightning.arithmetic import MEASURES
from sta_lightning.arithmetic.gradients import Precision
from sta_lightning.callbacks.score import score as score_alone
from sta_lightning.callbacks.trial import trial
from sta_lightning.cli.base import StaCLI, same
from sta_lightning.cli.checks import check_checkpoint
from sta_lightning.cli.screen import say
from sta_lightning.engine.files import GRAM
from sta_lightning.errors import StaError, listed
from sta_lightning.modules import CLIPClassifier
from sta_lightning.modules.parts import QUIET
from sta_lightning.tasks import TaskDataModule
from sta_lightning.weights import read_metadata

LINKS = same("encoder", "pretrained", "image_size", "task")
CHECKPOINT_SUFFIX = ".ckpt"


class ScoreTrainer(Trainer):
    """A trainer that scores."""

    def score(
        self,
        model: CLIPClassifier,
        datamodule: TaskDataModule,
        weights: Path,
        output: Path,
        measure: str = "lp",
        samples: int = 32,
        seed: int = 0,
        precision: Precision = "float32",
        report_agreement: bool = False,
    ) -> None:
        """Write the importance of every weight of a fine-tuned encoder (Eq. 10 to 12 of the paper).

        Args:
            model: The classifier that the weights belong to.
            datamodule: The task that it was fine-tuned on.
            weights: The fine-tuned encoder: a safetensors file, or a Lightning checkpoint (.ckpt)
                with encoder and head.
            output: File for the importances (safetensors, one float32 tensor per weight tensor); it
                is replaced whole.
            measure: What importance is: "lp" sums over samples the loss that a weight preserves,
                weight · gradient without its sign; "amp" is the squared weight and reads no
                images; "lp+amp" is their product; "delta-lp" and "delta-amp" have the change by
                fine-tuning in place of the weight; "fisher" sums gradient², the Fisher information,
                for Fisher merging.
                "gram" is no importance: the file gets the mean of x·xᵀ over the inputs x of every
                linear layer, for methods that need Gram matrices (RegMean); it takes no gradient.
            samples: Number of training images, each differentiated by itself; the paper takes 32
                for "lp". The Fisher information and the Gram matrices want more, 256 say.
            seed: Which training images: the same seed draws the same ones everywhere.
            precision: Numbers of the forward and backward pass: "float32", or "bf16" (bfloat16
                autocast, added up in float32), which is quicker where the device computes in it.
                The trainer's precision has no effect here.
            report_agreement: With "bf16", score in float32 too, at that pass's cost, and print and
                record how far the two agree: in rank, and in which entries a mask would keep.
        """
        written = score_alone(
            self,
            model,
            datamodule,
            output=output,
            measure=measure,
            samples=samples,
            seed=seed,
            precision=precision,
            report_agreement=report_agreement,
            ckpt_path=weights if weights.suffix == CHECKPOINT_SUFFIX else None,
        )
        if self.is_global_zero and trial(self, TrainerFn.VALIDATING) is None:
            say(f"written: {written}")
            if report_agreement:
                say(_agreement(read_metadata(written)["agreement"]))


def _agreement(text: str) -> str:
    """The recorded agreement as a line to read."""
    found = json.loads(text)
    rank, kept = found["spearman"], found["kept"]
    return (
        f"agreement of bf16 with {found['with']}: rank correlation {rank['mean']:.4f} (least {rank['least']:.4f}, in "
        f"{rank['tensor']}); kept or dropped alike at p = {found['p']}: {kept['mean']:.2%} of the entries (least "
        f"{kept['least']:.2%}, in {kept['tensor']})"
    )


class ScoreCLI(StaCLI):
    """Hands ``--weights`` to the model, which builds its encoder from them."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Check the file that was given, and tell the model of it."""
        super().parse_arguments(parser, args)
        config = self.config["score"]
        if config["measure"] not in (*MEASURES, GRAM):
            raise StaError(
                f"--measure={config['measure']!r} was asked for; choose one of {listed([*MEASURES, GRAM], 9)}."
            )
        weights = Path(config["weights"])
        if not weights.is_file():
            raise StaError(
                f"--weights: there is no file {str(weights)!r} (looked from {Path.cwd()}). Give the encoder.safetensors or "
                "the .ckpt that a fine-tuning (`sta fit`) has left."
            )
        if config["model"]["weights"] is not None:
            raise StaError(
                f"--model.weights was given ({config['model']['weights']!r}) beside --weights ({str(weights)!r}). "
                "Give --weights alone."
            )
        if weights.suffix == CHECKPOINT_SUFFIX:
            check_checkpoint(weights, "--weights")
        else:
            config["model"]["weights"] = str(weights)


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta score``."""
    ScoreCLI(
        name,
        words,
        model_class=CLIPClassifier,
        datamodule_class=TaskDataModule,
        trainer_class=ScoreTrainer,
        links=LINKS,
        # Nothing is logged or trained while scoring; the trainer would leave empty folders.
        trainer_defaults=QUIET,
    )
