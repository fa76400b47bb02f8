"""Lightning is imported before any test: its log handler keeps the stderr that it finds then."""

import lightning.pytorch  # noqa: F401
