"""Files of the Hugging Face hub: from the local cache without a network call, else fetched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sta_lightning.documents import read_json
from sta_lightning.errors import StaError, listed

HUB_PREFIX = "hf-hub:"
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of weights in a repository of open_clip, the preferred one first."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub at one of its revisions.

    Attributes:
        name: ``org/name``.
        revision: A commit's hash, a tag or a branch; ``None`` for the main branch.
    """

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, encoder: str) -> Repository:
        """Read an encoder's name, ``hf-hub:org/name`` or ``hf-hub:org/name@revision``.

        Raises:
            StaError: if it is not of that form.
        """
        name, at, revision = encoder.removeprefix(HUB_PREFIX).partition("@")
        parts = name.split("/")
        if len(parts) != 2 or not all(parts) or (at and not revision):
            raise StaError(
                f"The encoder '{encoder}' was asked for. A repository of the hub is named hf-hub:org/name, or "
                "hf-hub:org/name@revision with a commit's hash, a tag or a branch."
            )
        return cls(name, revision or None)

    def file(self, *names: str) -> Path:
        """Return one of its files: the first that the cache has, else the first that the hub has.

        A cached file is used as it is, without asking whether there is a newer one.

        Args:
            names: File names, the preferred one first.

        Raises:
            StaError: if it is neither in the cache nor to be had.
        """
        from huggingface_hub import try_to_load_from_cache

        for name in names:
            found = try_to_load_from_cache(self.name, name, revision=self.revision)
            if isinstance(found, (str, os.PathLike)):
                return Path(found)
        return self._fetched(names)

    def config(self) -> dict[str, Any]:
        """What ``open_clip_config.json`` says: ``model_cfg`` and, perhaps, ``preprocess_cfg``.

        Raises:
            StaError: if there is no such file, or it says something else.
        """
        path = self.file(CONFIG_FILE)
        try:
            content = read_json(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise StaError(
                f"{path} of the repository '{self}' cannot be read: {error}. Remove it and fetch it again."
            ) from error
        model = content.get("model_cfg") if isinstance(content, dict) else None
        if not isinstance(model, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model.keys():
            raise StaError(
                f"{path} of the repository '{self}' describes no model of open_clip (a 'model_cfg' with embed_dim, "
                "vision_cfg and text_cfg). Choose another repository, or name an architecture and a weights file."
            )
        return dict(content)

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def _fetched(self, names: Sequence[str]) -> Path:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if constants.HF_HUB_OFFLINE:
            raise self._missing(names, "the network is switched off (HF_HUB_OFFLINE)")
        for name in names:
            try:
                # One question without repetition first: a download would try for half a minute.
                get_hf_file_metadata(hf_hub_url(self.name, name, revision=self.revision))
                return Path(hf_hub_download(self.name, name, revision=self.revision))
            except RevisionNotFoundError as error:
                raise StaError(
                    f"The repository '{self.name}' of the hub has no revision '{self.revision}'. Give a commit's hash, a tag "
                    "or a branch of it."
                ) from error
            except RepositoryNotFoundError as error:  # which a gated repository is a kind of
                gated = isinstance(error, GatedRepoError)
                raise StaError(
                    f"The repository '{self.name}' of the hub {'is gated' if gated else 'does not exist, or is private'}. "
                    f"{'Accept its terms on its page, and' if gated else 'Check the name, or'} log in with `hf auth login`."
                ) from error
            except EntryNotFoundError:
                continue
            except Exception as error:  # whatever a network can fail with
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise self._missing(names, f"the hub cannot be reached ({reason})") from error
        raise StaError(
            f"The repository '{self}' of the hub has no file {listed(names)}: it is no repository of open_clip. Name an "
            "architecture of open_clip, and give the path of a weights file."
        )

    def _missing(self, names: Sequence[str], why: str) -> StaError:
        from huggingface_hub import constants

        chosen = '--include "open_clip*"' if names[0].startswith("open_clip") else names[0]
        revision = "" if self.revision is None else f" --revision {self.revision}"
        return StaError(
            f"The file {' or '.join(repr(name) for name in names)} of the repository '{self}' is not in the cache "
            f"{constants.HF_HUB_CACHE}, and {why}. Where there is a network, run `hf download {self.name} {chosen}{revision}`, "
            f"and copy the folder models--{self.name.replace('/', '--')} of its cache into this one."
        )
