"""Learning-rate schedules over fractions of training, and Adam with per-level parameter groups.

Every lambda returns a Python float: a numpy one would enter the checkpoint and `torch.load` refuses it by default.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Tuple, Type

import torch
import tyro
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hashpose_ns.errors import HashPoseError
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig


@dataclass
class AdamConfig(OptimizerConfig):
    """Adam, fused where the device has it. Takes parameters, or parameter groups with rates of their own."""

    _target: Type = field(default_factory=lambda: GroupedAdam)
    lr: float = 5e-4
    """Learning rate at the start."""
    eps: float = 1e-15
    """Added to the root of the second moment. Small, because gradients of hash-table entries are small."""
    betas: Tuple[float, float] = (0.9, 0.99)
    """Decay rates of the moments."""

    def setup(self, params) -> Optimizer:
        """Builds the optimizer for parameters or parameter groups.

        Raises:
            HashPoseError: a setting is out of range.
        """
        try:
            return self._target(params, lr=self.lr, eps=self.eps, betas=tuple(self.betas), fused=True)
        except ValueError as error:
            raise HashPoseError(f"Adam's settings are out of range: {error}.") from error


def moments(optimizer: Optimizer, parameter: Tensor) -> List[Tensor]:
    """What Adam remembers of a parameter's elements, in its shape; nothing before its first step."""
    remembered = optimizer.state.get(parameter, {}).values()
    return [value for value in remembered if isinstance(value, Tensor) and value.shape == parameter.shape]


class GroupedAdam(torch.optim.Adam):
    """Adam that takes all parameter groups with the same settings in one launch, to the same bits: a grid's levels
    have a group each, and most of the time all of them that train have the same learning rate."""

    def step(self, closure: Optional[Callable[[], float]] = None) -> Optional[float]:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        groups = self.param_groups
        together: Dict[tuple, dict] = {}
        for group in groups:
            settings = tuple(group[name] for name in self.defaults)
            together.setdefault(settings, {**group, "params": []})["params"] += group["params"]
        self.param_groups = list(together.values())
        # Once a plain Adam exists, its class' step runs the hooks, and ours has run them already.
        step: Callable = torch.optim.Adam.step
        step = step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]
        try:
            return step(self, closure)
        finally:
            self.param_groups = groups


@dataclass
class ScheduleConfig(SchedulerConfig):
    """Exponential decay over training, times the model's own factors (curriculum, delayed poses)."""

    _target: Type = field(default_factory=lambda: Schedule)
    lr_final: Optional[float] = None
    """Learning rate at the end of the decay; None keeps the initial one."""
    decay_until: float = 1.0
    """Fraction of training at which the decay has reached `lr_final`, where the rate then stays."""
    cooldown: float = 0.0
    """Last fraction of training, in which the rate also falls linearly to 0.
    With it rates may stay high for longer, and parameters still come to rest in the end."""
    total_steps: tyro.conf.Suppress[Optional[int]] = None
    """Length of training; the trainer fills it in with max_num_iterations."""
    factors: tyro.conf.Suppress[Optional[Callable[[int], List[float]]]] = None
    """Factor of each parameter group at a step; the trainer fills it in from the model."""


class Schedule(Scheduler):
    """lr_g(t) = lr_0 * (lr_final / lr_0)^min(t / (u T), 1) * min((T - t) / (c T), 1) * factor_g(t) for each parameter
    group g of one optimizer, with the fraction u of training at which the decay ends and the cooldown c."""

    config: ScheduleConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """One LambdaLR with a lambda per parameter group.

        Raises:
            HashPoseError: used outside the hashpose trainer, or a rate that no exponential decay ends at.
        """
        total, factors, lr_final = self.config.total_steps, self.config.factors, self.config.lr_final
        if total is None:
            raise HashPoseError("This schedule needs the hashpose trainer, which tells it how long training is.")
        if lr_final is not None and not lr_final > 0:
            raise HashPoseError(f"A scheduler's lr-final must be above 0, not {lr_final}; None keeps the rate.")
        if not 0 < self.config.decay_until <= 1:
            raise HashPoseError(f"A scheduler's decay-until is a fraction of training, not {self.config.decay_until}.")
        cooldown = self.config.cooldown * total
        if not 0 <= self.config.cooldown <= 1:
            raise HashPoseError(f"A scheduler's cooldown is a fraction of training, not {self.config.cooldown}.")
        decay_steps = total * self.config.decay_until
        ratio = lr_final / lr_init if lr_final is not None and lr_init > 0 else 1.0

        if factors is not None:
            factors = functools.lru_cache(maxsize=1)(factors)  # all groups ask for the same step

        def rate(group: int) -> Callable[[int], float]:
            def at(step: int) -> float:
                decay = ratio ** min(step / decay_steps, 1.0)
                if cooldown > 0:
                    decay *= min(max(total - step, 0) / cooldown, 1.0)
                return float(decay * factors(step)[group]) if factors else float(decay)

            return at

        return LambdaLR(optimizer, [rate(group) for group in range(len(optimizer.param_groups))])
