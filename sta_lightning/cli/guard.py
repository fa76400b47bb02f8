import os
import sys
from collections.abc import Callable, Iterator

from sta_lightning.errors import StaError

EXIT_INTERNAL_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

# What the operating system says about a path that the user named.
_PATH_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


def process_rank() -> int:
    """Rank of this process by the variables that launchers set; 0 outside of distributed runs."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


def complain(message: str) -> None:
    """Print one error message on stderr; only the first process of a distributed run speaks."""
    if process_rank() == 0:
        print(f"sta: error: {message}", file=sys.stderr)


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
    if isinstance(error, _PATH_ERRORS) and error.filename is not None:
        return f"{error.strerror}: {error.filename!r}. Give a path that exists and that you may use."
    if type(error).__name__ == "MisconfigurationException":  # by name: importing Lightning here would be slow
        return str(error)
    return None


def guarded(call: Callable[[], None], *, debug: bool) -> int:
    """Run a subcommand; turn whatever it raises into one message, and return the exit status.

    A user's mistake is a message and status 2; an interruption 130; anything else is a bug of ours:
    one line and status 1. With ``debug`` that and the mistake go through untouched.
    """
    try:
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
        return stop.code or 0
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has had enough: nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        message = user_message(error)
        if message is not None:
            complain(message)
            return EXIT_USER_ERROR
        rank = process_rank()
        where = f" (process {rank})" if rank else ""
        text = f"internal error{where}: {type(error).__name__}: {' '.join(str(error).split())}"[:600]
        # Every process speaks here: the one that fails may be the only one that knows why.
        print(f"sta: {text} -- run again with --debug for the stack trace", file=sys.stderr)
        return EXIT_INTERNAL_ERROR
    return 0
