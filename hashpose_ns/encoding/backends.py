"""The seam between the encoding and the code that computes it.

A backend is one module of this package with an attribute ``BACKEND``, an instance of :class:`Backend`. To add one,
write the module, name it in :data:`MODULES` and, if ``auto`` should pick it, in :data:`AUTO_ORDER`; the tests then run
on it too. A module is imported when first asked for, and must be importable everywhere: what may be missing (a
compiler, Triton) it looks for in :meth:`Backend.unsupported`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import ClassVar, Dict, List, Optional, Sequence, Set, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.encoding.grid import Grid
from hashpose_ns.errors import HashPoseError
from nerfstudio.utils.rich_utils import CONSOLE

MODULES: Dict[str, str] = {
    "reference": "hashpose_ns.encoding.reference",
    "eager": "hashpose_ns.encoding.eager",
    "cpp": "hashpose_ns.encoding.cpu",
    "triton": "hashpose_ns.encoding.triton",
}
"""Name of every backend -> module that holds it."""

AUTO_ORDER: Tuple[str, ...] = ("triton", "cpp", "eager")
"""What ``auto`` tries, fastest first; eager supports everything."""


class Backend(ABC):
    """Computes the encoding and its gradients; holds no state about any particular grid.

    Points come as one batch [B, d], contiguous, and *not* clamped: a backend clamps them to the unit box and gives zero
    x-gradient along every axis on which a point is outside (on the box' faces the gradient is the inner one). Points
    and tables have the same dtype and device. Neither method is ever called under autocast or with autograd recording.
    """

    name: ClassVar[str]
    device_types: ClassVar[Tuple[str, ...]] = ()
    """``torch.device.type`` of the devices it was written for, empty for any."""

    @abstractmethod
    def unsupported(self, device: torch.device, dtype: torch.dtype, grid: Grid) -> Optional[str]:
        """Returns None if the backend can do this, otherwise why not, as a clause that follows "because"."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch d"], tables: Sequence[Tensor], grid: Grid) -> Float[Tensor, "batch out"]:
        """Features of all levels, level-major: column ``l * F + f``."""

    @abstractmethod
    def backward(
        self,
        grad_output: Float[Tensor, "batch out"],
        x: Float[Tensor, "batch d"],
        tables: Sequence[Tensor],
        grid: Grid,
        x_needs_grad: bool,
        table_needs_grad: Sequence[bool],
    ) -> Tuple[Optional[Float[Tensor, "batch d"]], List[Optional[Tensor]]]:
        """Gradients with respect to the points and every table, None where not needed. ``grad_output`` is contiguous.

        The x-gradient sums all levels, whichever tables need a gradient.
        """


def get_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        HashPoseError: If there is none.
    """
    if name not in MODULES:
        raise HashPoseError(
            f"The encoding backend '{name}' is not part of this installation; "
            f"choose auto or one of {', '.join(MODULES)}."
        )
    return importlib.import_module(MODULES[name]).BACKEND


def choose_backend(name: str, device: torch.device, dtype: torch.dtype, grid: Grid) -> Backend:
    """Resolves the setting ``backend`` for a device, a dtype and a grid, and names the choice once in the log.

    Raises:
        HashPoseError: If a backend was forced that does not exist or cannot do this.
    """
    if name != "auto":
        backend = get_backend(name)
        reason = backend.unsupported(device, dtype, grid)
        if reason is not None:
            raise HashPoseError(f"The encoding backend '{name}' cannot be used because {reason}.")
        _log_once(f"Hash encoding backend: {backend.name} on {device.type}.")
        return backend

    passed_over: List[str] = []
    for candidate in AUTO_ORDER:
        backend = get_backend(candidate)
        if backend.device_types and device.type not in backend.device_types:
            continue
        reason = backend.unsupported(device, dtype, grid)
        if reason is None:
            note = f" (not {'; not '.join(passed_over)})" if passed_over else ""
            _log_once(f"Hash encoding backend: {backend.name} on {device.type}{note}.")
            return backend
        passed_over.append(f"{candidate}, because {reason}")
    raise HashPoseError(f"No encoding backend works on {device.type} with {dtype}: {'; '.join(passed_over)}.")


_logged: Set[str] = set()


def _log_once(line: str) -> None:
    """Prints a line the first time it comes up in this process."""
    if line not in _logged:
        _logged.add(line)
        CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)
