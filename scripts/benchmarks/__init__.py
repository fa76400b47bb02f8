"""One file for each thing that is measured; ``scripts/benchmark.py`` runs them."""
