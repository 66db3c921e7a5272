"""The radiance field: hash encoding, decoder, density and colour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Literal, Optional, Sequence, Tuple, Type

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.host import has_native_bfloat16
from hashpose_ns.optim.curriculum import Curriculum
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.configs.base_config import InstantiateConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.activations import trunc_exp
from nerfstudio.field_components.encodings import NeRFEncoding
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.mlp import MLP
from nerfstudio.fields.base_field import Field

SceneWarp = Literal["none", "contraction", "forward-facing"]
DENSITY_ACTIVATIONS = {"softplus": nn.functional.softplus, "exp": trunc_exp, "relu": nn.functional.relu}


@dataclass
class DecoderConfig:
    """The network from features to density and colour. The paper's "4-layer MLP, density and colour branches
    included" is read as 2 + 2 hidden layers."""

    density_layers: int = 2
    """Hidden layers of the density branch."""
    color_layers: int = 2
    """Hidden layers of the colour branch."""
    width: int = 256
    """Width of all hidden layers."""
    geometry_features: int = 15
    """Features the density branch hands to the colour branch."""
    direction_frequencies: int = 4
    """Frequencies of the view direction's sinusoidal encoding.
    -1 makes colour independent of the direction."""
    direction_start: float = 0.0
    """Fraction of training before which colour ignores the view direction.
    While poses are wrong, a colour per direction lets every camera keep its own picture of the scene."""
    density_activation: Literal["softplus", "exp", "relu"] = "softplus"
    """Maps the density branch's output to a density."""
    appearance_dim: int = 0
    """Size of a learned embedding per training image, for changing exposure or weather.
    0 leaves it out. Images that were not trained on get the mean embedding."""
    implementation: Literal["torch", "tcnn"] = "torch"
    """`tcnn` uses tinycudann (a CUDA GPU, half precision) where it is installed."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the decoder's matrix products.
    auto takes bfloat16 if the hardware multiplies it natively."""


@dataclass
class FieldConfig(InstantiateConfig):
    """Configuration of a field that :class:`~hashpose_ns.model.HashPoseModel` trains. Its field is made by
    ``setup(warp, aabb, num_images, curriculum)``, see :class:`HashPoseField`, and offers ``aabb``, ``step`` (set by the
    model) and ``get_param_groups()``; it is a :class:`RenderedField`."""

    @property
    def num_levels(self) -> int:
        """Number of levels that the curriculum opens."""
        raise NotImplementedError


@dataclass
class HashPoseFieldConfig(FieldConfig):
    """Configuration of the field."""

    _target: Type = field(default_factory=lambda: HashPoseField)
    encoding: HashEncodingConfig = field(default_factory=HashEncodingConfig)
    """The hash grid."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The network behind it."""

    @property
    def num_levels(self) -> int:
        """Levels of the grid."""
        return self.encoding.num_levels


def warp_positions(positions: Float[Tensor, "*batch 3"], warp: SceneWarp) -> Float[Tensor, "*batch 3"]:
    """Maps scene coordinates to where the grid's box lives.

    `none`: as they are. `contraction`: all of space to the cube [-2, 2]^3 (mip-NeRF 360's contraction in the maximum
    norm). `forward-facing`: (x / -z, y / -z, 1 / -z), the space seen by cameras that look down -z from near the
    origin, where equal cells are equal pixels and equal disparities.
    """
    if warp == "contraction":
        # nerfstudio's SceneContraction(order=inf), whose gradient at the origin is NaN.
        magnitude = positions.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
        return (2.0 - 1.0 / magnitude) * (positions / magnitude)
    if warp == "forward-facing":
        disparity = 1.0 / (-positions[..., 2:]).clamp(min=1e-2)
        return torch.cat([positions[..., :2] * disparity, disparity], dim=-1)
    return positions


class RenderedField(Field):
    """A field that a model renders with these options. They have no effect on fields that have no appearance embeddings
    and no smoothed gradient."""

    def forward(
        self,
        ray_samples: RaySamples,
        compute_normals: bool = False,
        own_appearance: Optional[bool] = None,
        smoothed: bool = True,
    ) -> Dict[FieldHeadNames, Tensor]:
        """Densities and colours of samples.

        Args:
            ray_samples: samples along rays.
            compute_normals: as nerfstudio's.
            own_appearance: whether colours use the embedding of each ray's training image, or the mean one; by default
                the former in training and the latter elsewhere.
            smoothed: whether positions get the smoothed gradient, or the derivative of the interpolation.
        """
        return super().forward(ray_samples, compute_normals)


class HashPoseField(RenderedField):
    """Density and colour of points, from a smoothed-gradient hash encoding and a decoder.

    Args:
        config: settings.
        warp: how scene coordinates become coordinates of the grid's box, see `warp_positions`.
        aabb: [2, 3] corners of the grid's box, in warped coordinates.
        num_images: number of training images, for the appearance embedding.
        curriculum: weights of the grid's levels over training.
    """

    def __init__(
        self,
        config: HashPoseFieldConfig,
        warp: SceneWarp,
        aabb: Float[Tensor, "2 3"],
        num_images: int,
        curriculum: Curriculum,
    ) -> None:
        super().__init__()
        self.config = config
        self.curriculum = curriculum
        self.step = 0
        self.direction_start = config.decoder.direction_start
        """Fraction of training before which colour does not depend on the view direction."""
        self.register_buffer("aabb", aabb.clone().float())
        self.warp = warp
        decoder = config.decoder
        self.encoding = config.encoding.setup(num_dims=3)
        if decoder.implementation == "tcnn":
            _require_tinycudann()
        self.density_network = MLP(
            in_dim=self.encoding.out_dim,
            num_layers=decoder.density_layers + 1,
            layer_width=decoder.width,
            out_dim=1 + decoder.geometry_features,
            activation=nn.ReLU(),
            implementation=decoder.implementation,
        )
        self.direction_encoding: Optional[NeRFEncoding] = None
        color_inputs = decoder.geometry_features + decoder.appearance_dim
        if decoder.direction_frequencies >= 0:
            self.direction_encoding = NeRFEncoding(
                in_dim=3,
                num_frequencies=decoder.direction_frequencies,
                min_freq_exp=0.0,
                max_freq_exp=max(decoder.direction_frequencies - 1.0, 0.0),
                include_input=True,
                implementation="torch",
            )
            color_inputs += self.direction_encoding.get_out_dim()
        self.appearance = nn.Embedding(num_images, decoder.appearance_dim) if decoder.appearance_dim else None
        self.color_network = MLP(
            in_dim=color_inputs,
            num_layers=decoder.color_layers + 1,
            layer_width=decoder.width,
            out_dim=3,
            activation=nn.ReLU(),
            out_activation=nn.Sigmoid(),
            implementation=decoder.implementation,
        )
        self.density_activation = DENSITY_ACTIVATIONS[decoder.density_activation]

    def to_grid(self, positions: Float[Tensor, "*batch 3"]) -> Tuple[Float[Tensor, "*batch 3"], Bool[Tensor, "*batch"]]:
        """Scene coordinates to the grid's unit cube, and whether they lie inside it; outside of it space is empty."""
        unit = SceneBox.get_normalized_positions(warp_positions(positions, self.warp), self.aabb)
        return unit, ((unit > 0.0) & (unit < 1.0)).all(dim=-1)

    def uses_bfloat16(self, device: torch.device) -> bool:
        """Whether the decoder multiplies in bfloat16 there."""
        precision = self.config.decoder.precision
        return precision == "bfloat16" or (precision == "auto" and has_native_bfloat16(device))

    def forward(
        self,
        ray_samples: RaySamples,
        compute_normals: bool = False,
        own_appearance: Optional[bool] = None,
        smoothed: bool = True,
    ) -> Dict[FieldHeadNames, Tensor]:
        """Densities and colours of samples, see `RenderedField`; normals are not computed."""
        density, geometry = self.get_density(ray_samples, smoothed)
        colors = self.get_outputs(ray_samples, geometry, own_appearance)
        return {**colors, FieldHeadNames.DENSITY: density}

    def encode(
        self, ray_samples: RaySamples, smoothed: bool = True
    ) -> Tuple[Float[Tensor, "*batch features"], Bool[Tensor, "*batch"]]:
        """Features of samples as they are at this step of training, and whether the samples are inside the box.

        Args:
            ray_samples: the samples.
            smoothed: as in `RenderedField`.
        """
        frustums = ray_samples.frustums
        # nerfstudio's positions to the bit, with one operation less on every sample.
        positions = frustums.origins + frustums.directions * ((frustums.starts + frustums.ends) / 2)
        unit, inside = self.to_grid(positions)
        return self._features(unit, smoothed), inside

    def density_at(self, unit: Float[Tensor, "points 3"]) -> Float[Tensor, "points"]:
        """Densities (per scene unit) at points of the grid's unit cube."""
        inside = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
        return self.decode_density(self._features(unit), inside, self.uses_bfloat16(unit.device))[0][..., 0]

    def _features(self, unit: Float[Tensor, "*batch 3"], smoothed: bool = True) -> Float[Tensor, "*batch features"]:
        train_levels = None
        if self.training:
            train_levels = [factor > 0 for factor in self.curriculum.learning_rate_weights(self.step)]
        features = self.encoding(unit, train_levels, None if smoothed else "linear")
        levels = features.unflatten(-1, (self.encoding.num_levels, -1))
        return self.curriculum.mask_features(levels, self.step).flatten(-2)

    def decode_density(
        self, features: Float[Tensor, "*batch features"], inside: Bool[Tensor, "*batch"], bfloat16: bool
    ) -> Tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch geometry"]]:
        """Densities (per scene unit) and geometry features. Depends on its arguments and on parameters alone."""
        with torch.autocast(features.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            density, geometry = self.density_network(features).split([1, self.config.decoder.geometry_features], dim=-1)
        return self.density_activation(density.float()) * inside[..., None], geometry

    def decode_color(
        self,
        geometry: Float[Tensor, "*batch samples geometry"],
        directions: Optional[Float[Tensor, "*batch 1 3"]],
        appearance: Optional[Float[Tensor, "*images appearance"]],
        see_directions: bool,
        bfloat16: bool,
    ) -> Float[Tensor, "*batch samples 3"]:
        """Colours in [0, 1]. Depends on its arguments and on parameters alone.

        Args:
            geometry: of samples along rays, from `decode_density`.
            directions: of the rays.
            appearance: embeddings of the rays' images, or one for all rays [appearance].
            see_directions: whether colour may depend on the direction yet.
            bfloat16: whether to multiply in bfloat16.
        """

        def per_sample(values: Tensor) -> Tensor:
            """Rows of rays [*, 1, C] to rows of samples."""
            return values.expand(*geometry.shape[:-1], -1).to(geometry.dtype)

        inputs = [geometry]
        if self.direction_encoding is not None:
            # Encoded once a ray: all samples of a ray share its direction.
            encoded = self.direction_encoding(directions)
            inputs.append(per_sample(encoded if see_directions else torch.zeros_like(encoded)))
        if appearance is not None:
            inputs.append(per_sample(appearance))
        with torch.autocast(geometry.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            color = self.color_network(torch.cat(inputs, dim=-1))
        return color.float()

    def get_density(
        self, ray_samples: RaySamples, smoothed: bool = True
    ) -> Tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch geometry"]]:
        """Densities (per scene unit) and geometry features of samples, see `RenderedField` for `smoothed`."""
        features, inside = self.encode(ray_samples, smoothed)
        return self.decode_density(features, inside, self.uses_bfloat16(features.device))

    def get_outputs(
        self,
        ray_samples: RaySamples,
        density_embedding: Optional[Tensor] = None,
        own_appearance: Optional[bool] = None,
    ) -> Dict[FieldHeadNames, Tensor]:
        """Colours in [0, 1] of samples, from their geometry features."""
        assert density_embedding is not None
        directions = ray_samples.frustums.directions[..., :1, :]
        bfloat16 = self.uses_bfloat16(density_embedding.device)
        appearance = self.appearance_of(ray_samples, own_appearance)
        color = self.decode_color(density_embedding, directions, appearance, self.sees_directions, bfloat16)
        return {FieldHeadNames.RGB: color}

    @property
    def sees_directions(self) -> bool:
        """Whether colour may depend on the direction at this step of training."""
        return self.step >= self.direction_start * self.curriculum.total_steps

    def appearance_of(self, ray_samples: RaySamples, own: Optional[bool] = None) -> Optional[Tensor]:
        """Embeddings [*, 1, appearance] of the rays' images, or the mean one [appearance]; None without any.

        Args:
            ray_samples: samples along the rays.
            own: which of them; by default those of the images in training and the mean elsewhere.
        """
        if self.appearance is None:
            return None
        if self.training if own is None else own:
            assert ray_samples.camera_indices is not None
            return self.appearance(ray_samples.camera_indices[..., :1, 0])
        return self.appearance.weight.mean(dim=0)

    def get_param_groups(self) -> Dict[str, List]:
        """`encoding`, with a torch parameter group per level, and `decoder`."""
        return {
            "encoding": [{"params": [table], "level": level} for level, table in enumerate(self.encoding.tables)],
            "decoder": list(self.decoder_parameters()),
        }

    def decoder_parameters(self) -> Sequence[nn.Parameter]:
        """All parameters but the grid's tables."""
        tables = {id(table) for table in self.encoding.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in tables]


def _require_tinycudann() -> None:
    try:
        import tinycudann  # noqa: F401
    except Exception as error:  # tinycudann raises OSError without a GPU
        raise HashPoseError(
            f"The decoder was set to tcnn, but tinycudann cannot be used here ({error}); leave "
            "--pipeline.model.field.decoder.implementation at torch, which needs nothing else."
        ) from error
