"""Decoder and rendering of training batches through `torch.compile`, and without it wherever that does not work."""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch
from torch import Tensor

from hashpose_ns.errors import one_line
from nerfstudio.utils.rich_utils import CONSOLE

TOLERANCE = {True: 2e-2, False: 1e-4}
"""How far results may be apart, relative to their size, with and without bfloat16: a compiled decoder does not round
between operations."""


SCALES = (1.0, 0.9, 0.8)
"""Factors on the arguments of the calls that are compared: a graph that replays old numbers would be noticed."""


class CompiledForTraining:
    """A function of tensors that is compiled for the shapes of its first call, those of training. Calls with other
    shapes (the last batch of something, another number of rays) take the function as it is.

    The first call compiles, which takes up to a minute, and compares results and gradients with those of the function:
    of several calls with other numbers, for a CUDA graph is recorded in the second one and replayed from the third on.
    Where there is no compiler, compiling fails or the results differ, one line says so and nothing is compiled.

    Args:
        function: takes tensors by position and constants by keyword; returns tensors.
        parameters: what else it differentiates with respect to.
    """

    def __init__(self, function: Callable[..., Tuple[Tensor, ...]], parameters: Callable[[], list]) -> None:
        self.function, self.parameters = function, parameters
        self.compiled: Optional[Callable[..., Tuple[Tensor, ...]]] = None
        self.shapes: Optional[Tuple[Any, ...]] = None

    def __call__(self, *tensors: Optional[Tensor], **constants: Any) -> Tuple[Tensor, ...]:
        """The function's results."""
        shapes = tuple(None if tensor is None else (tensor.shape, tensor.device) for tensor in tensors)
        if self.shapes is None:
            self.shapes = shapes
            self._compile(tensors, constants)
        if self.compiled is None or shapes != self.shapes:
            return self.function(*tensors, **constants)
        if tensors[0].is_cuda:  # type: ignore
            torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(*tensors, **constants)

    def _compile(self, tensors: Tuple[Optional[Tensor], ...], constants: Any) -> None:
        mode = "reduce-overhead" if tensors[0].is_cuda else "default"  # type: ignore
        CONSOLE.print("Compiling decoder and rendering, which may take a minute ...")
        try:
            compiled = torch.compile(self.function, mode=mode, dynamic=False, fullgraph=True)
            compared = [
                tuple(self._results(each, tensors, constants, scale) for each in (compiled, self.function))
                for scale in SCALES
            ]
        except Exception as error:  # of the compilers, of which there are several
            # Their messages are pages long, and the first line often says only where.
            reason = f"it failed ({type(error).__name__}: {one_line(error)[:200]})"
        else:
            tolerance = TOLERANCE[bool(constants.get("bfloat16"))]
            apart = [
                float((a - b).norm()) > tolerance * float(b.norm()) + 1e-6
                for actual, expected in compared
                for a, b in zip(actual, expected)
            ]
            reason = "the results differ" if any(apart) else None
        if reason is None:
            self.compiled = compiled
        else:
            CONSOLE.print(f"Decoder and rendering are not compiled, because {reason}; training continues without.")

    def _results(self, function: Callable, tensors: Tuple[Optional[Tensor], ...], constants: Any, scale: float) -> list:
        """Outputs, and gradients of a mixture of them; leaves the gradients of a training step alone.

        Args:
            function: what to call.
            tensors: its arguments, of which those of floats are scaled.
            constants: its other arguments.
            scale: factor on the arguments.
        """
        inputs: list = []
        for tensor in tensors:
            if tensor is not None:
                scaled = tensor.detach() * scale if tensor.is_floating_point() else tensor.detach().clone()
                tensor = scaled.requires_grad_(tensor.requires_grad)
            inputs.append(tensor)
        if inputs[0].is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        wanted = [*(i for i in inputs if i is not None and i.requires_grad), *self.parameters()]
        outputs = [output.clone() for output in function(*inputs, **constants)]
        generator = torch.Generator().manual_seed(0)
        mixture = sum((output * torch.randn(output.shape, generator=generator).to(output)).sum() for output in outputs)
        gradients = torch.autograd.grad(mixture, wanted, allow_unused=True)
        # The next replay writes where this one's gradients are.
        return [value.detach().float().clone() for value in (*outputs, *gradients) if value is not None]
