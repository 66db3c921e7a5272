"""Radiance fields that are one network of the coordinates, without tables: BARF's and GARF's.

Facts of layout and initialisation were read in the authors' code, github.com/chenhsuanlin/bundle-adjusting-NeRF
(model/nerf.py, model/barf.py) and github.com/sfchng/Gaussian-Activated-Radiance-Fields (model/nerf_gaussian.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple, Type

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hashpose_ns.errors import HashPoseError
from hashpose_ns.field import FieldConfig, RenderedField, SceneWarp, warp_positions
from hashpose_ns.optim.curriculum import Curriculum
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames


@dataclass
class BARFFieldConfig(FieldConfig):
    """Configuration of BARF's network: sinusoids of the coordinates that a curriculum opens, ReLU."""

    _target: Type = field(default_factory=lambda: BARFField)
    frequencies: int = 10
    """Frequencies 2^k pi of the positional encoding. Plain coordinates always pass beside it."""
    direction_frequencies: int = 4
    """Frequencies of the view direction's encoding, opened over the same window."""
    layers: int = 8
    """Layers from position to density; the last one gives the density and the features for colour."""
    width: int = 256
    """Width of these layers."""
    skip: int = 4
    """Layer, counted from 0, that sees the encoded position again; as many as there are layers leaves it out."""
    color_width: int = 128
    """Width of the colour branch's hidden layer."""

    @property
    def num_levels(self) -> int:
        """Frequencies."""
        return self.frequencies


@dataclass
class GARFFieldConfig(FieldConfig):
    """Configuration of GARF's network: Gaussian activations, plain coordinates."""

    _target: Type = field(default_factory=lambda: GARFField)
    sigma: float = 0.1
    """Width of the activation exp(-x^2 / (2 sigma^2))."""
    layers: int = 6
    """Hidden layers from position to density, behind the layer that takes the position."""
    width: int = 256
    """Width of these layers; the colour branch's hidden layer has half of it."""
    skip: int = 5
    """Hidden layer, counted from 0, that sees the first layer's output again; as many as there are layers leaves it
    out."""

    @property
    def num_levels(self) -> int:
        """One: there is nothing to open."""
        return 1


def frequency_encoding(values: Float[Tensor, "*batch dims"], count: int) -> Float[Tensor, "*batch count 2*dims"]:
    """Sines and then cosines of 2^k pi times each value, for k = 0 .. count-1."""
    frequencies = math.pi * 2.0 ** torch.arange(count, dtype=values.dtype, device=values.device)
    phases = values[..., None, :] * frequencies[:, None]
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


class CoordinateField(RenderedField):
    """A network of positions in scene units, as they are. Only unbounded captures are contracted, to [-2, 2]^3; there
    is no box outside of which space is empty.

    Args:
        config: settings.
        warp: how scene coordinates are mapped, see `hashpose_ns.field.warp_positions`; `forward-facing` maps nothing
            here.
        aabb: [2, 3] corners of the scene's box, for samplers that ask.
        num_images: not used.
        curriculum: weights of the frequencies over training.
    """

    def __init__(
        self,
        config: FieldConfig,
        warp: SceneWarp,
        aabb: Float[Tensor, "2 3"],
        num_images: int,
        curriculum: Curriculum,
    ) -> None:
        super().__init__()
        self.config = config
        self.warp: SceneWarp = "contraction" if warp == "contraction" else "none"
        self.register_buffer("aabb", aabb.clone().float())
        self.curriculum = curriculum
        self.step = 0

    def positions(self, ray_samples: RaySamples) -> Float[Tensor, "*batch 3"]:
        """What the network sees of samples' positions."""
        return warp_positions(ray_samples.frustums.get_positions(), self.warp)

    def get_param_groups(self) -> Dict[str, List]:
        """`decoder`, all of the network."""
        return {"decoder": list(self.parameters())}


class BARFField(CoordinateField):
    """BARF's network. Both encodings are masked by the curriculum, each over its own number of frequencies."""

    config: BARFFieldConfig

    def __init__(self, config: BARFFieldConfig, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        if self.curriculum.config.mode not in ("mask", "none"):
            raise HashPoseError(
                f"The curriculum's mode {self.curriculum.config.mode} is made for a hash grid; BARF has "
                "--pipeline.model.curriculum.mode mask, or none."
            )
        encoded = 3 + 6 * config.frequencies
        inputs = [encoded] + [config.width] * (config.layers - 1)
        outputs = [config.width] * (config.layers - 1) + [config.width + 1]
        if 0 < config.skip < config.layers:
            inputs[config.skip] += encoded
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in zip(inputs, outputs))
        self.color_hidden = nn.Linear(config.width + 3 + 6 * config.direction_frequencies, config.color_width)
        self.color_out = nn.Linear(config.color_width, 3)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier with ReLU's gain; the rows of densities and colours, which no ReLU follows, with gain 1; no biases."""
        gain = nn.init.calculate_gain("relu")
        for layer in (*self.layers, self.color_hidden):
            nn.init.xavier_uniform_(layer.weight, gain=gain)
            nn.init.zeros_(layer.bias)
        density, features = self.layers[-1].weight.data.split([1, self.config.width])
        nn.init.xavier_uniform_(density)
        nn.init.xavier_uniform_(features, gain=gain)
        nn.init.xavier_uniform_(self.color_out.weight)
        nn.init.zeros_(self.color_out.bias)

    def _encode(self, values: Float[Tensor, "*batch 3"], count: int) -> Float[Tensor, "*batch out"]:
        levels = self.curriculum.mask_features(frequency_encoding(values, count), self.step)
        return torch.cat([values, levels.flatten(-2)], dim=-1)

    def get_density(self, ray_samples: RaySamples) -> Tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch width"]]:
        """Densities (per scene unit) and features of samples."""
        encoded = self._encode(self.positions(ray_samples), self.config.frequencies)
        features = encoded
        for index, layer in enumerate(self.layers):
            if index > 0:
                features = features.relu()
            if index == self.config.skip:
                features = torch.cat([features, encoded], dim=-1)
            features = layer(features)
        density, features = features.split([1, self.config.width], dim=-1)
        return nn.functional.softplus(density), features.relu()

    def get_outputs(
        self, ray_samples: RaySamples, density_embedding: Optional[Tensor] = None
    ) -> Dict[FieldHeadNames, Tensor]:
        """Colours in [0, 1] of samples, from their features and view directions."""
        assert density_embedding is not None
        # Encoded once a ray: all samples of a ray share its direction.
        directions = self._encode(ray_samples.frustums.directions[..., :1, :], self.config.direction_frequencies)
        directions = directions.expand(*density_embedding.shape[:-1], -1)
        hidden = self.color_hidden(torch.cat([density_embedding, directions], dim=-1)).relu()
        return {FieldHeadNames.RGB: self.color_out(hidden).sigmoid()}


class GARFField(CoordinateField):
    """GARF's network. As in the released code, the layers that take positions and directions subtract the mean over
    their outputs before the activation, and all layers keep torch's initialisation, U(-1, 1) / sqrt(inputs)."""

    config: GARFFieldConfig

    def __init__(self, config: GARFFieldConfig, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        if self.curriculum.config.mode != "none":
            raise HashPoseError("GARF has no levels to open; set --pipeline.model.curriculum.mode none.")
        if not config.sigma > 0:
            raise HashPoseError(f"The Gaussian activation's sigma must be above 0, not {config.sigma}.")
        width = config.width
        self.position_in = nn.Linear(3, width)
        self.layers = nn.ModuleList(
            nn.Linear(2 * width if index == config.skip else width, width) for index in range(config.layers)
        )
        self.density_out = nn.Linear(width, 1)
        self.features_out = nn.Linear(width, width)
        self.direction_in = nn.Linear(3, width)
        self.color_hidden = nn.Linear(2 * width, width // 2)
        self.color_out = nn.Linear(width // 2, 3)

    def _activate(self, values: Tensor) -> Tensor:
        return torch.exp(values.square() * (-0.5 / self.config.sigma**2))

    def _take_in(self, layer: nn.Linear, values: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch width"]:
        outputs = layer(values)
        return self._activate(outputs - outputs.mean(dim=-1, keepdim=True))

    def get_density(self, ray_samples: RaySamples) -> Tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch width"]]:
        """Densities (per scene unit) and features of samples."""
        first = self._take_in(self.position_in, self.positions(ray_samples))
        hidden = first
        for index, layer in enumerate(self.layers):
            if index == self.config.skip:
                hidden = torch.cat([first, hidden], dim=-1)
            hidden = self._activate(layer(hidden))
        return nn.functional.softplus(self.density_out(hidden)), self.features_out(hidden)

    def get_outputs(
        self, ray_samples: RaySamples, density_embedding: Optional[Tensor] = None
    ) -> Dict[FieldHeadNames, Tensor]:
        """Colours in [0, 1] of samples, from their features and view directions."""
        assert density_embedding is not None
        # Once a ray: all samples of a ray share its direction.
        directions = self._take_in(self.direction_in, ray_samples.frustums.directions[..., :1, :])
        directions = directions.expand(*density_embedding.shape[:-1], -1)
        hidden = self._activate(self.color_hidden(torch.cat([density_embedding, directions], dim=-1)))
        return {FieldHeadNames.RGB: self.color_out(hidden).sigmoid()}
