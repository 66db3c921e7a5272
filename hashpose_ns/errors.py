"""Errors a user can act on, and the one place where they become a sentence and an exit code."""

from __future__ import annotations

import functools
import sys
from typing import Callable, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable)


class HashPoseError(ValueError):
    """Something in the input, the settings or the files is wrong; the message is one sentence for the user."""


def one_line(error: Exception) -> str:
    """The first line of an error's message, without its full stop; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def exits_on_user_error(function: FunctionT) -> FunctionT:
    """Turns a `HashPoseError` into its sentence on the console and exit code 1.

    nerfstudio's scripts call into the plugin without catching anything, so the boundary methods they call carry this.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except HashPoseError as error:
            from rich.text import Text

            from nerfstudio.utils.rich_utils import CONSOLE

            CONSOLE.print(Text(f"Error: {error}", style="bold red"), soft_wrap=True)
            sys.exit(1)

    return wrapper  # type: ignore
