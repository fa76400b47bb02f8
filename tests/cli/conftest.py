"""Lightning is imported here, before any test: its log handler keeps the stderr that it finds at import."""

import lightning.pytorch  # noqa: F401
