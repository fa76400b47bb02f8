"""The methods that are taken where none is asked for."""

DATA_FREE = "tsv"
"""To merge without importance: of those that need neither data nor a coefficient the best in this
project's benchmarks (docs/benchmark), at scale 1."""

DATA_FREE_FORGETTING = "task_arithmetic"
"""To forget without importance: the benchmarks call it a draw, so the simplest, negation."""
