"""Pictures as functions of the plane: the representations whose alignment is compared."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashpose_ns.bench.planar.settings import Planar, Representation
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.optim.curriculum import Curriculum, CurriculumConfig

FREQUENCIES = 8
"""Octaves of the frequency encoding, from wavelength 2 (the image's longer side) to 1/64; BARF's."""
GAUSSIAN_DEVIATION = 0.1
"""Deviation of the Gaussian activation; GARF's (Chng et al. 2022)."""
HASH_ADAM: Dict[str, Any] = {"betas": (0.9, 0.99), "eps": 1e-15}
"""As the package trains its grids."""


class NeuralImage(nn.Module):
    """Colours of points in BARF's image coordinates, the longer side from -1 to 1."""

    def forward(self, points: Float[Tensor, "*batch 2"], step: int) -> Float[Tensor, "*batch 3"]:
        """Colours in [0, 1] at a step of training."""
        raise NotImplementedError

    def param_groups(self) -> List[Dict[str, Any]]:
        """Parameter groups for Adam, with their learning rates."""
        raise NotImplementedError

    def rate_factors(self, step: int) -> List[float]:
        """Factors on the learning rates of these groups at a step."""
        raise NotImplementedError


class HashImage(NeuralImage):
    """The package's smoothed hash grid in two dimensions, its curriculum, and a small decoder.

    Args:
        encoding: the grid.
        curriculum: weights of its levels over training.
        width: width of the decoder's two hidden layers.
        rate: learning rate of tables and decoder.
    """

    def __init__(self, encoding: HashEncodingConfig, curriculum: Curriculum, width: int, rate: float) -> None:
        super().__init__()
        self.curriculum, self.rate = curriculum, rate
        self.encoding = encoding.setup(num_dims=2)
        self.decoder = _network(self.encoding.out_dim, width, 2, nn.ReLU)

    def forward(self, points: Float[Tensor, "*batch 2"], step: int) -> Float[Tensor, "*batch 3"]:
        train_levels = [factor > 0 for factor in self.curriculum.learning_rate_weights(step)]
        features = self.encoding((points + 1) / 2, train_levels)
        levels = features.unflatten(-1, (self.encoding.num_levels, -1))
        return self.decoder(self.curriculum.mask_features(levels, step).flatten(-2))

    def param_groups(self) -> List[Dict[str, Any]]:
        groups = [[table] for table in self.encoding.tables] + [list(self.decoder.parameters())]
        return [{"params": group, "lr": self.rate, **HASH_ADAM} for group in groups]

    def rate_factors(self, step: int) -> List[float]:
        return [*self.curriculum.learning_rate_weights(step), 1.0]


class NetworkImage(NeuralImage):
    """A coordinate network of four hidden layers: BARF's with or without its mask, on bare coordinates, or GARF's.

    BARF's weights of the octaves are 0-based and all zero at the window's start (Lin et al. 2021, Eq. 14); the bare
    coordinates are always there.

    Args:
        kind: mask, none (the full frequency encoding), coordinates (no encoding) or gaussian (no encoding, Gaussian
            activations).
        window: start and end of the mask's opening, in steps.
        width: width of the hidden layers.
        rate: learning rate.
    """

    def __init__(self, kind: str, window: Tuple[float, float], width: int, rate: float) -> None:
        super().__init__()
        self.kind, self.window, self.rate = kind, window, rate
        self.octaves = FREQUENCIES if kind in ("mask", "none") else 0
        inputs = 2 + 4 * self.octaves
        self.network = _network(inputs, width, 4, _Gaussian if kind == "gaussian" else nn.ReLU)
        if kind == "mask":
            # BARF: the layer is initialised for all its inputs, of which only the coordinates speak at first
            with torch.no_grad():
                for parameter in self.network[0].parameters():
                    parameter.mul_(math.sqrt(inputs / 2))

    def forward(self, points: Float[Tensor, "*batch 2"], step: int) -> Float[Tensor, "*batch 3"]:
        if self.octaves == 0:
            return self.network(points)
        octaves = torch.arange(self.octaves)
        phases = points[..., None] * (math.pi * 2.0**octaves)
        waves = torch.stack([phases.sin(), phases.cos()], dim=-2)
        if self.kind == "mask":
            start, end = self.window
            alpha = self.octaves * (step - start) / (end - start)
            waves = waves * (1 - (math.pi * (alpha - octaves).clamp(0, 1)).cos()) / 2
        return self.network(torch.cat([points, waves.flatten(-3)], dim=-1))

    def param_groups(self) -> List[Dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": self.rate}]

    def rate_factors(self, step: int) -> List[float]:
        return [1.0]


class _Gaussian(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-0.5 * (x / GAUSSIAN_DEVIATION) ** 2)


def _network(inputs: int, width: int, hidden: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """A multilayer perceptron that ends in colours."""
    layers: List[nn.Module] = []
    for _ in range(hidden):
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 3), nn.Sigmoid())


def encoding_config(settings: Planar, **changes: Any) -> HashEncodingConfig:
    """The hash grid that the settings ask for."""
    return HashEncodingConfig(
        **{
            "num_levels": settings.levels,
            "base_resolution": settings.base_resolution,
            "max_resolution": settings.max_resolution,
            **changes,
        }
    )


def make_image(representation: Representation, settings: Planar) -> NeuralImage:
    """An untrained picture; its weights are drawn from torch's global generator."""
    if representation.family == "hash":
        curriculum = CurriculumConfig(mode=representation.curriculum, window=settings.window)
        return HashImage(
            encoding_config(settings, gradient=representation.reading),
            Curriculum(curriculum, settings.levels, settings.steps),
            settings.decoder_width,
            settings.hash_rate,
        )
    start, end = (fraction * settings.steps for fraction in settings.window)
    kind = representation.curriculum if representation.family == "frequency" else representation.family
    return NetworkImage(kind, (start, end), settings.network_width, settings.network_rate)
