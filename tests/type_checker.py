"""The suite's type checker, as jaxtyping's import hook names it: beartype, with ints where floats are expected."""

from contextlib import contextmanager
from typing import Callable, Iterator

import jaxtyping
from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """The function with checks of its arguments and its result. Functions within functions get none: they would be
    made anew at every call of the outer one."""
    return function if "<locals>" in function.__qualname__ else _check(function)


@contextmanager
def unchecked() -> Iterator[None]:
    """No checks meanwhile."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
