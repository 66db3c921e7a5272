"""Training never dies of its viewer: the one place where what goes wrong there ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Callable, Optional, Set

from hashpose_ns.errors import HashPoseError, one_line
from nerfstudio.utils.rich_utils import CONSOLE

MAX_REPORTS = 10
"""Different failures that are reported."""


class Boundary:
    """A context that no exception leaves. A user error is told to the person at the browser; any other exception is
    told there and reported on the console, once.

    Args:
        tell: takes a sentence for the person at the browser.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._reported: Set[str] = set()

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error: Optional[BaseException], traceback) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        if isinstance(error, HashPoseError):
            self.tell(str(error))
            return True
        text = f"{type(error).__name__}: {one_line(error)}"
        if text not in self._reported and len(self._reported) < MAX_REPORTS:
            self._reported.add(text)
            self.tell(f"That failed: {text}.")
            place = traceback
            while place.tb_next is not None:
                place = place.tb_next
            where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
            CONSOLE.print(
                f"The viewer's pose panel failed; training continues ({text}, {where}).", markup=False, soft_wrap=True
            )
        return True


class RenderMachines(dict):
    """nerfstudio's render threads by client, in which those of a browser that left do nothing in place of raising.

    nerfstudio looks them up while it holds viser's lock on outgoing messages, which viser does not release when that
    raises: nobody would be shown anything any more, and the process could not end for all that waits.
    """

    def __missing__(self, client_id: int) -> SimpleNamespace:
        return SimpleNamespace(action=lambda action: None, running=False)

    def pop(self, client_id: int, *default):
        """As dict's, for a client that was forgotten already too."""
        return super().pop(client_id, *default or (None,))
