"""The methods that are taken where none is asked for."""

DATA_FREE = "swudi_a"
"""To merge without importance: of those that need neither data nor a coefficient the best in this
project's benchmarks (docs/demo: 88.0%, TSV-M 86.0)."""

AUTO = "auto"
"""In place of a method's name: the candidate whose predictions are nearest to the fine-tuned
models', on images without labels; see :mod:`sta_lightning.modules.foretelling`."""

DISTILLED, REGMEAN_PLUS_PLUS = "distilled", "regmean_plus_plus"

BY_IMAGES = (AUTO, DISTILLED, REGMEAN_PLUS_PLUS)
"""The methods of a merge that look at images, and so at more than files."""

DATA_FREE_FORGETTING = "task_arithmetic"
"""To forget without importance: the benchmarks call it a draw, so the simplest, negation."""
