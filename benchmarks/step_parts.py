"""Splits a training step into its parts, by clocks around functions and modules of a trainer."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from typing import Any, Callable, Dict

import torch
import training


class Sections:
    """Seconds spent in parts of a program, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: Dict[str, float] = defaultdict(float)
        self.stack = ["rest of the loop"]
        self.since = time.perf_counter()

    def _lap(self) -> None:
        training.synchronize()
        now = time.perf_counter()
        self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    def enter(self, name: str) -> None:
        self._lap()
        self.stack.append(name)

    def leave(self) -> None:
        self._lap()
        self.stack.pop()

    def around(self, owner: Any, attribute: str, name: str) -> None:
        """Gives a function a section of its own."""
        function: Callable = getattr(owner, attribute)

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            self.enter(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        setattr(owner, attribute, wrapped)

    def around_module(self, module: torch.nn.Module, name: str) -> None:
        """Gives a module's forward and backward pass sections."""
        self.around(module, "forward", f"{name}, forward")
        module.register_full_backward_pre_hook(lambda *_: self.enter(f"{name}, backward"))
        module.register_full_backward_hook(lambda *_: self.leave())


def split_step(trainer: Any) -> Sections:
    """Sections of a step of this package's methods."""
    from nerfstudio.utils import writer

    sections, pipeline, model = Sections(), trainer.pipeline, trainer.pipeline.model
    encoding = model.field.encoding
    parts = [
        (pipeline.datamanager, "next_train", "data: pixels"),
        (pipeline.datamanager.train_ray_generator, "forward", "data: rays"),
        (model.camera_optimizer, "apply_to_raybundle", "poses"),
        (model.sampler, "forward", "samples along rays"),
        (model, "get_outputs", "rendering, positions"),
        (encoding, "forward", "encoding, forward"),
        *((backend, "backward", "encoding, backward") for backend in encoding._backends.values()),
        *((model, function, "loss and metrics") for function in ("get_loss_dict", "get_metrics_dict")),
        (torch.Tensor, "backward", "backward of the rest"),
        *((trainer.optimizers, f, "optimisers") for f in ("zero_grad_some", "optimizer_scaler_step_some")),
        (trainer.optimizers, "scheduler_step_all", "schedules"),
        *((writer, function, "logging") for function in ("write_out_storage", "put_scalar", "put_dict", "put_time")),
        *((trainer, f, "checks, poses' history") for f in ("_check_finite", "_record_poses", "_log_poses")),
    ]
    for owner, attribute, name in parts:
        sections.around(owner, attribute, name)
    for network in (model.field.density_network, model.field.color_network):
        sections.around_module(network, "decoder")
    return sections
