"""``sta merge``: from files to a file, with Lightning only where the result is evaluated too."""

from collections.abc import Sequence


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta merge`` or ``sta forget``.

    Args:
        name: ``merge`` or ``forget``.
        words: The command line after it.
    """
    from sta_lightning.cli import alone

    if alone.suffices(words):
        alone.run(name, words)
    elif name == "merge":
        from sta_lightning.cli import merge_evaluated

        merge_evaluated.run(name, words)
    else:
        from sta_lightning.cli import forget_evaluated

        forget_evaluated.run(name, words)
