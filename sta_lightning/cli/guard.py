"""What a subcommand raises, as one message and an exit status."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator

from sta_lightning.cli.screen import complain, process_rank, warnings_in_a_line
from sta_lightning.errors import StaError
from sta_lightning.signals import ENDING, orderly_end

EXIT_INTERNAL_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

# What of the libraries looks at a user's settings, and the errors by which it refuses them.
_LIBRARIES = ("lightning", "torchmetrics", "torch.optim", "torch.utils.data", "torch.utils.tensorboard")
_REFUSALS = (ValueError, RuntimeError, ImportError, NotImplementedError, FileNotFoundError)


def chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from or while handling, nearest first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def user_message(error: BaseException) -> str | None:
    """The message for a user's mistake; None if the exception is not one.

    Libraries wrap what our classes raise, so the whole chain is searched for a ``StaError``.
    """
    for link in chain(error):
        if isinstance(link, StaError):
            text = str(link)
            # A loader's own process sends its traceback along, as text.
            return text.rsplit("StaError: ", 1)[-1].strip() if "Original Traceback" in text else text
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{text}. Make room, and run it again."
        if error.filename is not None:
            return f"{error.strerror}: {str(error.filename)!r}. Give a path that exists and that you may use."
        return f"the system refuses something that the run needs: {text}."
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return f"there is not enough memory. {text} Ask for less at once: smaller batches or images, fewer workers."
    library = _raised_in(error)
    # By name: importing Lightning here would be slow.
    if type(error).__name__ == "MisconfigurationException" or (library and isinstance(error, _REFUSALS)):
        return f"{library or 'lightning'} refuses this: {text}"
    return None


def _is_lost(error: Exception) -> bool:
    """Whether an error says that another process of the run does not answer."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__ in ("DistNetworkError", "DistStoreError") or "/gloo/" in str(error)
    )


def _lost(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (
        "another process of this run has ended, or did not answer in time (--timeout, in seconds). What ended it is in its "
        f"own output; then run all of them again. {text[:300]}"
    )


_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")


def _raised_in(error: BaseException) -> str | None:
    """The library whose own line has raised an error, of those that look at settings."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return next((library for library in _LIBRARIES if f"{name}.".startswith(f"{library}.")), None)


def guarded(call: Callable[[], None], *, debug: bool) -> int:
    """Run a subcommand; turn whatever it raises into one message, and return the exit status.

    A user's mistake is a message and status 2; an interruption 130; SIGTERM and SIGHUP 128 and
    their number; anything else is a bug of ours: one line and status 1. With ``debug`` that and the
    mistake go through untouched. A warning of ours is one line.
    """
    try:
        with orderly_end(), warnings_in_a_line():
            call()
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED
    except SystemExit as stop:
        # Lightning answers Ctrl+C with sys.exit(1) after tidying up.
        if any(isinstance(link, KeyboardInterrupt) for link in chain(stop)):
            complain("interrupted")
            return EXIT_INTERRUPTED
        if isinstance(stop.code, str):
            complain(stop.code)
            return EXIT_INTERNAL_ERROR
        status = stop.code or 0
        if status - 128 in ENDING:
            complain(f"ended by {ENDING[status - 128]}")
        return status
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has had enough: nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        rank = process_rank()
        where = f" (process {rank})" if rank else ""
        if _is_lost(error):
            # Perhaps it is the first process that is lost.
            complain(_lost(error), kind=f"error{where}", every_process=True)
            return EXIT_USER_ERROR
        message = user_message(error)
        if message is not None:
            complain(message)
            return EXIT_USER_ERROR
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        # Every process speaks here: the one that fails may be the only one that knows why.
        complain(
            f"{text} -- run again with --debug for the stack trace",
            kind=f"internal error{where}",
            every_process=True,
        )
        return EXIT_INTERNAL_ERROR
    return 0
