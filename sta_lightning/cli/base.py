"""What the Trainer's subcommands share: one ``LightningCLI``, built for that subcommand alone."""

import inspect
import logging
import pydoc
import re
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.seed import max_seed_value
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn

from sta_lightning.callbacks.progress import PlainProgress, redraws
from sta_lightning.callbacks.trial import leave_no_trace, trial
from sta_lightning.cli.checks import add_timeout, check_checkpoint
from sta_lightning.cli.configs import asked_for
from sta_lightning.cli.explain import explain
from sta_lightning.cli.parser import RaisingParser, RejectedError
from sta_lightning.cli.placeholders import fill_placeholders
from sta_lightning.cli.screen import say
from sta_lightning.engine import ForgettingOptions, FusionOptions, TaskSource
from sta_lightning.errors import StaError, printable
from sta_lightning.modules.learned import LearnedMerging
from sta_lightning.modules.stored import stored_settings
from sta_lightning.weights.atomic import atomic_path

# What a subcommand runs, where it is no test.
_VERBS = {
    "fit": TrainerFn.FITTING,
    "validate": TrainerFn.VALIDATING,
    "score": TrainerFn.VALIDATING,
    "probabilities": TrainerFn.PREDICTING,
}
_NO_LAST = "there is no last checkpoint available"
# Words that Lightning understands in place of a checkpoint's path.
_CHECKPOINT_WORDS = {"best", "last", "hpc", "registry"}


class StaParser(RaisingParser, LightningArgumentParser):
    """A ``LightningArgumentParser`` that raises and whose help lists the trainer's options last.

    Attributes:
        complete: Fills in, in place, what a parsed configuration leaves to be worked out.
    """

    complete: Callable[[Namespace], None] = staticmethod(lambda config: None)

    def dump(self, cfg: Namespace, *args: Any, **kwargs: Any) -> str:
        """The configuration as ``--print_config`` shows it: completed."""
        self.complete(cfg)
        if "skip_none" in kwargs:  # as Lightning 2.6 says it, which jsonargparse 4.49 has deprecated
            kwargs["skip_unset"] = kwargs.pop("skip_none")
        text: str = super().dump(cfg, *args, **kwargs)
        return text

    def format_help(self, formatter: Any = None) -> str:
        """The help, what is this project's own first."""
        groups = re.split(r"\n\n(?=\S)", super().format_help(formatter).rstrip("\n"))
        return "\n\n".join(sorted(groups, key=lambda group: "\n  --trainer." in group)) + "\n"


class SaveConfig(SaveConfigCallback):
    """Writes the configuration into the run's log folder, whole; a folder's latest run wins.

    The file is named after the subcommand, so that testing a model leaves the configuration of its
    fit alone. It runs on rank 0 only, so it holds no collective operation.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once by Lightning at the first ``setup``."""
        folders = [logger.log_dir for logger in trainer.loggers if getattr(logger, "log_dir", None)]
        if not folders:
            return
        target = Path(str(folders[0])) / self.config_filename
        target.parent.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_unset=False, format="yaml")
        with atomic_path(target) as temporary:
            temporary.write_text(text, encoding="utf-8")


class Link(NamedTuple):
    """An option of the model that is handed to one of the data, by ``compute`` or as it is."""

    source: str
    target: str
    compute: Callable[[Any], Any] | None = None


def same(*names: str) -> tuple[Link, ...]:
    """Links between options of one name."""
    return tuple(Link(name, name) for name in names)


class StaCLI(LightningCLI):
    """``LightningCLI`` for one subcommand, with links from model to data and errors in plain words.

    Args:
        subcommand: The trainer's method to run.
        words: The command line after the subcommand.
        model_class: The model, or the base class of those to choose from.
        datamodule_class: The datamodule, or the base class of those to choose from.
        trainer_class: The trainer that has ``subcommand`` as a method.
        links: What is stated once, in the model, and handed to the data.
        choose_classes: Whether model and data are chosen by class name.
        trainer_defaults: Defaults of the trainer's options.
    """

    def __init__(
        self,
        subcommand: str,
        words: Sequence[str],
        *,
        model_class: type[LightningModule],
        datamodule_class: type[LightningDataModule],
        trainer_class: type[Trainer] = Trainer,
        links: Sequence[Link] = (),
        choose_classes: bool = False,
        trainer_defaults: dict[str, Any] | None = None,
    ) -> None:
        self._name, self._words = subcommand, list(words)
        self._links, self._choose_classes = links, choose_classes
        super().__init__(
            model_class=model_class,
            datamodule_class=datamodule_class,
            trainer_class=trainer_class,
            trainer_defaults=trainer_defaults,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False, "config_filename": f"{subcommand}.yaml"},
            seed_everything_default=0,
            parser_class=StaParser,
            parser_kwargs={"prog": f"sta {subcommand}"},
            subclass_mode_model=choose_classes,
            subclass_mode_data=choose_classes,
            # The modules of this project make their own optimisers.
            auto_configure_optimizers=False,
            args=[subcommand, *words],
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # one parser costs a quarter of four
        """The one subcommand, and the arguments of its method that Lightning fills in."""
        known = LightningCLI.subcommands()
        return {self._name: known.get(self._name, set()) | {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make the parser of the command line, then that of its one subcommand."""
        header = [f"lightning.pytorch=={lightning.__version__}"]
        self._inner = StaParser(**{"prog": f"sta {self._name}", "dump_header": header, **kwargs})
        self._inner.add_config()
        return self._inner

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Hand what the model states to the data, so that the user states it once."""
        # Lightning's usage line would name every option of the trainer, over fifty lines.
        parser.usage = f"sta {self._name} [--config FILE ...] [--option=value ...] [--print_config]"
        add_timeout(parser)
        inner = ".init_args." if self._choose_classes else "."
        for link in self._links:
            if not self._choose_classes:
                self._inner.linked.append(f"data.{link.target}")
            parser.link_arguments(
                f"model{inner}{link.source}", f"data{inner}{link.target}", link.compute, apply_on="parse"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; the parent's version warns whenever Python was started with arguments."""
        self._inner.complete = self.complete
        if "weights_only" in self._inner.options():
            self._inner.set_defaults(weights_only=True)
        try:
            self.config = parser.parse_args(cast(Sequence[str], args))
        except RejectedError as error:
            raise StaError(self._explained(str(error))) from error
        self.complete(self.config[self._name])
        seed = self._setting("seed_everything")
        if type(seed) is int and not 0 <= seed <= max_seed_value:
            raise StaError(
                f"--seed_everything={seed} was asked for: give a number from 0 to {max_seed_value}."
            )
        self._check_links()

    def complete(self, config: Namespace) -> None:
        """Work out, in place, what the configuration leaves open: the texts with placeholders."""
        fill_placeholders(config)

    def _explained(self, message: str) -> str:
        options, members = [*self._class_options(), *self._inner.options()], _members(message)
        return explain(message, self._words, command=self._name, options=options, members=members)

    def _class_options(self) -> list[str]:
        """Options of this package's models and datamodules, where these are chosen by name."""
        if not self._choose_classes:
            return []
        parts = {"model": LightningModule, "data": LightningDataModule}
        return [
            f"{part}.{name}"
            for part, base in parts.items()
            for found in _descendants(base)
            if found.__module__.startswith("sta_lightning.")
            for name in inspect.signature(found).parameters
        ]

    def _check_links(self) -> None:
        """Refuse a value in ``data`` that the link from ``model`` has overwritten."""
        inner = "init_args." if self._choose_classes else ""
        for source, target, _ in self._links:
            asked = asked_for(self._words, self._inner.configs, "data", target)
            used = self._setting(f"data.{inner}{target}")
            if asked is not None and asked != used:
                raise StaError(
                    f"data.{target} was asked to be {asked!r}, but it follows model.{source}, which makes it {used!r}. "
                    f"Say it once, as model.{source}."
                )

    def _setting(self, key: str) -> Any:
        return self.config[self._name].get(key)

    def _parse_ckpt_path(self) -> None:
        """Take from the checkpoint what the model's class lists; Lightning would take code too."""
        asked = self._setting("ckpt_path")
        if asked == "best":
            raise StaError(
                "--ckpt_path=best is the best checkpoint of a fit in the same process, and none has run. Give its path."
            )
        if not asked or str(asked) in _CHECKPOINT_WORDS or "://" in str(asked):
            return
        checkpoint = check_checkpoint(Path(asked))
        chosen = self._setting("model")["class_path"] if self._choose_classes else ""
        model = pydoc.locate(chosen) if chosen else self._model_class
        stored = stored_settings(checkpoint, getattr(model, "from_checkpoint", ()), asked)
        if not stored:
            return
        found = {"class_path": chosen, "init_args": stored} if self._choose_classes else stored
        try:
            self.config = self.parser.parse_object({self._name: {"model": found}}, self.config)
        except RejectedError as error:
            raise StaError(
                f"the settings stored in the checkpoint {str(asked)!r} do not fit: {self._explained(str(error))}"
            ) from error

    def before_instantiate_classes(self) -> None:
        """Remember what callbacks and loggers refuse, as is done for models and data."""
        for kind in (Callback, Logger):
            self.parser.add_instantiator(lambda kind, *args, **kwargs: kind(*args, **kwargs), kind)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a mistake that one of them finds comes out as raised."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            faults = cast(StaParser, self.parser).faults
            if not faults:
                raise
            kind, fault = faults[-1]
            if isinstance(fault, StaError):
                raise fault from error
            raise StaError(f"{kind.__name__} refuses its settings: {' '.join(str(fault).split())}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what it refuses is the user's setting.

        For a trial it logs nothing and keeps no checkpoint.
        """
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except StaError:
            raise
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise StaError(
                f"the trainer refuses its settings: {' '.join(str(error).split())} "
                f"See the options --trainer.* in `sta {self._name} --help`."
            ) from error
        steps = trainer.accumulate_grad_batches  # which Lightning divides by
        if steps < 1:
            raise StaError(f"--trainer.accumulate_grad_batches={steps} was asked for: give 1 or more.")
        strategy: Any = trainer.strategy
        timeout = self._setting("timeout")
        if timeout is not None and hasattr(strategy, "_timeout"):
            strategy._timeout = timedelta(seconds=timeout)
        verb = _VERBS.get(self._name, TrainerFn.TESTING)
        if (flag := trial(trainer, verb)) is not None:
            leave_no_trace(trainer, verb)
            if trainer.is_global_zero:
                say(f"a trial ({flag}): nothing is logged, and no result is written")
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Lightning's own, told to show progress as lines where no bar can be redrawn.

        What the configuration says of it, by ``enable_progress_bar`` or a callback, goes first.
        """
        given = config.get("callbacks") or []
        own = [*(given if isinstance(given, list) else [given]), *callbacks]
        left_open = config.get("enable_progress_bar") is None
        if left_open and not redraws() and not any(isinstance(found, ProgressBar) for found in own):
            callbacks = [*callbacks, PlainProgress()]
        return super()._instantiate_trainer(config, callbacks)

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand != "fit":
            # It would evaluate the model as configured, which nobody asked for.
            warnings.filterwarnings("error", message=f".*{_NO_LAST}")
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            text = str(error)
            if text.startswith("Error(s) in loading state_dict"):
                raise StaError(
                    f"the checkpoint {str(self._setting('ckpt_path'))!r} belongs to another model than "
                    f"{type(self.model).__name__} as configured: {' '.join(text.split())[:400]} "
                    "Give the checkpoint of this architecture, or the --config it was trained with."
                ) from error
            raise
        except UserWarning as error:
            if _NO_LAST not in str(error):
                raise
            raise StaError(
                "--ckpt_path=last: there is no last checkpoint where the configuration's ModelCheckpoint would leave one. Give "
                "the path of a checkpoint."
            ) from error


def _members(message: str) -> list[str]:
    """Option names of the classes that a message is about; of all if it names none."""
    bases = (LightningModule, LightningDataModule, Callback)
    known = {found.__name__: found for base in bases for found in _descendants(base)}
    named = [known[name] for name in known if f"'{name}'" in message or f".{name}'" in message]
    ours = [found for found in known.values() if found.__module__.startswith("sta_lightning.")]
    # The options of a merge and the files of its tasks are handed on: no signature has them.
    handed_on = (FusionOptions, ForgettingOptions, TaskSource, LearnedMerging)
    names = {name for found in (*(named or ours), *handed_on) for name in inspect.signature(found).parameters}
    return sorted({*names, *known} - {"self", "args", "kwargs"})


def _descendants(base: type) -> list[type]:
    found: list[type] = base.__subclasses__()
    return found + [deeper for child in found for deeper in _descendants(child)]


def _is_wanted(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    record.msg, record.args = printable(text), ()
    return "litlogger" not in text and "litmodels" not in text and "Seed set to" not in text


# Lightning prints advertisements with every Trainer, and the seed, which the configuration shows:
# they would stand between the user and the one message that matters.
for _name in (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
):
    logging.getLogger(_name).addFilter(_is_wanted)
_format_warning = warnings.formatwarning
warnings.formatwarning = lambda *args, **settings: printable(_format_warning(*args, **settings))
# Lightning's own use of an older PyTorch interface: nothing that a user could mend.
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
