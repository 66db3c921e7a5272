"""Errors a user can act on, and the one place where they become a sentence and an exit code."""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
from contextlib import contextmanager
from typing import Callable, Iterator, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable)

DEBUG = "HASHPOSE_DEBUG"
"""Environment variable that, when set, prints the traceback before the sentence."""
LONGEST = 300
"""Maximum number of characters quoted from a foreign message."""


class HashPoseError(ValueError):
    """Something in the input, the settings or the files is wrong; the message is one sentence for the user."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop; its class where it says nothing."""
    lines = re.sub(r"^\[Errno -?\d+\] ", "", str(error).strip()).splitlines()
    line = lines[0].rstrip(".") if lines else type(error).__name__
    return line if len(line) <= LONGEST else line[:LONGEST] + " ..."


def print_error(sentence: str) -> None:
    """Prints a sentence on the console in one line of letters that the console can print."""
    from rich.text import Text

    from nerfstudio.utils.rich_utils import CONSOLE

    sentence = " ".join(sentence.splitlines()).encode(CONSOLE.encoding, "backslashreplace").decode(CONSOLE.encoding)
    try:
        CONSOLE.print(Text(f"Error: {sentence}", style="bold red"), soft_wrap=True)
    except OSError:  # a pipe or a terminal that is closed
        print(f"Error: {sentence}", file=sys.stderr)


@contextmanager
def background_errors_in_a_line() -> Iterator[None]:
    """Within the block, a thread that the operating system refuses something, as TensorBoard's on a full disk, ends in
    a line on the console in place of a traceback. Code that needs its result finds out when it waits for it."""
    before = threading.excepthook

    def say(ended: threading.ExceptHookArgs) -> None:
        if not isinstance(ended.exc_value, OSError) or isinstance(ended.exc_value, ConnectionError):
            before(ended)
            return
        print(f"A file could not be written in the background: {one_line(ended.exc_value)}.", file=sys.stderr)

    threading.excepthook = say
    try:
        yield
    finally:
        threading.excepthook = before


def exits_on_user_error(function: FunctionT) -> FunctionT:
    """Turns a `HashPoseError`, or what the operating system refuses, into a sentence on the console and exit code 1.

    nerfstudio's scripts call into the plugin without catching anything, so the boundary methods they call carry this.
    Ctrl-C ends in exit code 130.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(130)
        except (HashPoseError, OSError) as error:
            if os.environ.get(DEBUG):
                import traceback

                traceback.print_exc()
            print_error(str(error) if isinstance(error, HashPoseError) else f"{one_line(error)}.")
            sys.exit(1)

    return wrapper  # type: ignore
