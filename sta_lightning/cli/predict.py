"""``sta predict``: pictures by a model in a file, or the test split of a datamodule."""

from collections.abc import Sequence

# What only a run through Lightning's trainer has.
_CONFIGURED = ("--config", "-c", "--print_config", "--data", "--trainer", "--ckpt_path", "--seed_everything")


def of_pictures(words: Sequence[str]) -> bool:
    """Whether a command line asks for pictures: it has no option of a configured run."""
    options = [word.split("=")[0] for word in words if word.startswith("-")]
    return not any(option.split(".")[0] in _CONFIGURED or option.startswith("--model.") for option in options)


def run(name: str, words: Sequence[str]) -> None:
    """Run ``sta predict``."""
    if of_pictures(words):
        from sta_lightning.cli import classify

        if not {"-h", "--help"} & set(words):
            classify.run(name, words)
            return
        print(classify.build_parser().format_help())
        print("With --config, or with options of a trainer and a datamodule, it is another command:\n")
    from sta_lightning.cli import predict_split

    predict_split.run(name, words)
