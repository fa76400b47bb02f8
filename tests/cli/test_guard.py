"""Exit statuses and the one message."""

import errno
import types
import warnings

import pytest

from sta_lightning.cli.guard import guarded
from sta_lightning.errors import StaError, StaWarning


class MisconfigurationException(Exception):
    """Bears the name of Lightning's."""


def raise_(error: BaseException) -> None:
    raise error


def wrapped(error: Exception) -> None:
    try:
        raise error
    except Exception as inner:
        raise ValueError("a library's long wrapping text") from inner


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (StaError("asked, found, mend"), 2, "asked, found, mend"),
        (FileNotFoundError(2, "No such file or directory", "weights.safetensors"), 2, "weights.safetensors"),
        (PermissionError(13, "Permission denied", "runs/x"), 2, "runs/x"),
        (MisconfigurationException("no such device"), 2, "no such device"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 300), 2, "File name too long: 'nnn"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "Make room"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 2, "Address already in use"),
        (MemoryError(), 2, "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "smaller batches"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError("disk full"), 1, "internal error: OSError: disk full"),
        (ZeroDivisionError("by zero"), 1, "internal error: ZeroDivisionError: by zero"),
        (ValueError("two\nlines"), 1, "ValueError: two lines"),
    ],
)
def test_one_message_and_the_status(
    error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: raise_(error), debug=False) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert ("--debug" in err) == (status == 1)


def test_a_mistake_in_a_loaders_process_comes_without_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (
        "Caught StaError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "  File \"worker.py\", line 1, in loop\nsta_lightning.errors.StaError: 'a.png' is no image. Mend it.\n"
    )
    assert guarded(lambda: raise_(StaError(text)), debug=False) == 2
    assert capsys.readouterr().err == "sta: error: 'a.png' is no image. Mend it.\n"


def test_success_and_exit_codes_pass() -> None:
    assert guarded(lambda: None, debug=False) == 0
    assert guarded(lambda: raise_(SystemExit(0)), debug=False) == 0
    assert guarded(lambda: raise_(SystemExit(None)), debug=False) == 0
    assert guarded(lambda: raise_(SystemExit(7)), debug=False) == 7


def test_a_wrapped_mistake_is_unwrapped(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: wrapped(StaError("the real reason")), debug=False) == 2
    err = capsys.readouterr().err
    assert "the real reason" in err
    assert "wrapping" not in err


def test_lightnings_answer_to_ctrl_c_is_an_interruption() -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904  # as Lightning does it

    assert guarded(interrupted, debug=False) == 130


@pytest.mark.filterwarnings("default")
def test_a_warning_of_ours_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def call() -> None:
        warnings.warn("the masks\nkeep nothing\x1b[2J", StaWarning, stacklevel=1)
        warnings.warn("of someone else", UserWarning, stacklevel=1)
        warnings.warn("the masks\nkeep nothing\x1b[2J", StaWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as others:
        assert guarded(call, debug=False) == 0
        warnings.warn("outside of a command", StaWarning, stacklevel=1)
    assert [str(found.message) for found in others] == ["of someone else", "outside of a command"]
    assert capfd.readouterr().err == "sta: warning: the masks keep nothing\\u001b[2J\n"


@pytest.mark.parametrize("error", [StaError("mine"), KeyboardInterrupt()])
def test_only_the_first_process_speaks(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert guarded(lambda: raise_(error), debug=False) in (2, 130)
    assert capsys.readouterr().err == ""


def test_an_internal_error_of_another_process_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert guarded(lambda: raise_(OSError("disk full")), debug=False) == 1
    assert "process 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "error", "status"),
    [
        ("lightning.pytorch.trainer.trainer", "ValueError", 2),
        ("lightning.pytorch.callbacks.early_stopping", "RuntimeError", 2),
        ("torch.optim.sgd", "ValueError", 2),
        ("lightning.pytorch.trainer.trainer", "KeyError", 1),
        ("lightning_of_mine", "ValueError", 1),
        ("torch.nn.functional", "RuntimeError", 1),
        ("sta_lightning.modules.classifier", "ValueError", 1),
    ],
)
def test_what_lightning_itself_raises_about_settings_is_a_refusal(
    module: str, error: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    library = types.ModuleType(module)
    exec(f"def refuse():\n    raise {error}('monitor is not\\nknown')", library.__dict__)
    assert guarded(library.refuse, debug=False) == status
    assert ("refuses this: monitor is not known" in capsys.readouterr().err) == (status == 2)
