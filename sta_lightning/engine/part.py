"""Which tensors of a model are merged; the others stay those of the model that is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sta_lightning.arithmetic.sources import SourceDict
from sta_lightning.errors import StaError, listed
from sta_lightning.weights.encoder import dotted_ends


@dataclass(frozen=True)
class Part:
    """Tensors by patterns of their names, as a shell has them: ``*``, ``?``, ``[…]``.

    Args:
        only: what is merged; empty for everything.
        skip: what of it is not.
        resample: whether position embeddings of another resolution than the pretrained encoder's
            are resampled to its.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    resample: bool = False

    def __contains__(self, name: object) -> bool:
        """Whether a tensor of this name is merged."""
        return (not self.only or _fits(name, self.only)) and not _fits(name, self.skip)

    def of(
        self, tensors: SourceDict, wanted: Collection[str] = (), known: Collection[str] = ()
    ) -> SourceDict:
        """The tensors that are merged.

        Behind a prefix, names that end in a wanted one belong to them, and those that end in
        another ``known`` one do not.
        """
        ends, others = set(wanted), set(known) - set(wanted)
        return {
            name: source
            for name, source in tensors.items()
            if dotted_ends(name) & ends or (name in self and not dotted_ends(name) & others)
        }

    def outside(self, tensors: SourceDict) -> SourceDict:
        """The tensors that are not merged."""
        return {name: source for name, source in tensors.items() if name not in self}

    def check(self, names: Iterable[str]) -> None:
        """Refuse patterns that leave nothing to merge of the pretrained model's tensors.

        Raises:
            StaError: tells what there is.
        """
        known = list(names)
        if not any(name in self for name in known):
            raise StaError(
                f"only {listed(self.only)} and skip {listed(self.skip)} leave no tensor of the pretrained model to merge; it has "
                f"{listed(known)}. Patterns are of whole names: '*.bias', 'encoder.layer.0.*'."
            )


def skips(names: Iterable[str]) -> str:
    """The options that leave tensors out, module by module."""
    modules = dict.fromkeys(f"{name.rpartition('.')[0]}.*" if "." in name else name for name in names)
    return " ".join(f"--skip '{pattern}'" for pattern in modules)


def _fits(name: object, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(str(name), pattern) for pattern in patterns)
