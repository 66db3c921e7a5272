"""The network: a coarse estimate by a transformer over all pictures, and steps of refinement.

After SparsePose (Sinha et al., CVPR 2023), whose sizes are not published; these are ours. One choice differs: cameras
are predicted in one frame that the network chooses, instead of the first camera's, so a turn between two views is a
product of two predictions. With the auxiliary loss of training, this frame is the family's own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Optional

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hashpose_ns.sparse.geometry import balls, left_update, project, project_seen, rotation_from_6d
from hashpose_ns.sparse.settings import NetworkConfig

SURFACE = 4
"""Channels of the map that say which point of the object is seen, and whether there is one."""
_SPREAD = 16
"""Channels that a token gives each of its cells."""


@dataclass
class Cameras:
    """Estimated cameras of scenes, see `geometry`. The unit of length is the first camera's distance."""

    rotations: Float[Tensor, "*scenes views 3 3"]
    centers: Float[Tensor, "*scenes views 3"]

    def detach(self) -> "Cameras":
        return Cameras(self.rotations.detach(), self.centers.detach())


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x + self.body(x))


def _down(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False),
        _norm(outputs),
        nn.ReLU(inplace=True),
    )


class Encoder(nn.Module):
    """Pictures to features of a half, a quarter, an eighth and a sixteenth of their size; the last are the tokens."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.early = nn.Sequential(_down(3, 32, 5), _down(32, 48), _Residual(48))
        self.late = nn.Sequential(
            _down(48, 80), _Residual(80), _Residual(80), _down(80, config.width), _Residual(config.width)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        finest = self.early[0]((images - 0.45) * 3)
        early = self.early[1:](finest)
        middle = self.late[:3](early)
        return finest, early, middle, self.late[3:](middle)


class _ToMap(nn.Module):
    """The feature map from the encoder's features of a half, a quarter and an eighth of the pictures' size.

    With `surface` it also gets the tokens that know of all pictures, each spread over the cells that it stands for:
    which point of the object is seen is known no better than how the object lies.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels = config.map_channels + (SURFACE if config.surface else 0)
        self.spread = nn.Linear(config.width, 16 * _SPREAD) if config.surface else None
        self.middle = nn.Sequential(*_normed(48 + 80 + (_SPREAD if config.surface else 0), 64), *_normed(64, 64))
        self.narrow = nn.Conv2d(64, 32, 1) if config.map_stride == 2 else None
        self.fine = _normed(32 + 32, 40) if config.map_stride == 2 else None
        self.last = nn.Conv2d(64 if self.fine is None else 40, channels, 1)

    def forward(self, finest: Tensor, early: Tensor, middle: Tensor, tokens: Tensor) -> Tensor:
        parts = [early, _doubled(middle)]
        if self.spread is not None:
            side = early.shape[-1] // 4
            spread = self.spread(tokens).transpose(1, 2).unflatten(2, (side, side))
            parts.append(nn.functional.pixel_shuffle(spread, 4))
        x = self.middle(torch.cat(parts, 1))
        if self.narrow is not None and self.fine is not None:
            x = self.fine(torch.cat([finest, _doubled(self.narrow(x))], 1))
        return self.last(x)


def _normed(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU())


def _doubled(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x.float(), scale_factor=2.0, mode="bilinear").to(x.dtype)


class SparsePoseNet(nn.Module):
    """Cameras of a few pictures of one object.

    Args:
        config: sizes.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, tokens = config.width, (config.size // 16) ** 2
        self.encoder = Encoder(config)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.is_first = nn.Parameter(torch.randn(2, width) * 0.02)
        self.lens = nn.Linear(2, width)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, config.hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.joint = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.summary = nn.Sequential(nn.Linear(tokens * 32, width), nn.GELU())
        self.narrow = nn.Linear(width, 32)
        last = nn.Linear(width, 9)
        nn.init.zeros_(last.bias)
        self.coarse = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), last)
        self.to_map = _ToMap(config)
        self.refinement = Refinement(config)

    def as_config(self) -> dict[str, Any]:
        return asdict(self.config)

    def encode(
        self, images: Float[Tensor, "scenes views 3 size size"], tangents: Float[Tensor, "scenes views"]
    ) -> tuple[Float[Tensor, "images channels map map"], Float[Tensor, "scenes views width2"]]:
        """Feature maps of all pictures and one vector for each that knows of the others."""
        scenes, views = images.shape[:2]
        *features, tokens = self.encoder(images.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        tokens = tokens.flatten(2).transpose(1, 2) + self.position
        logs = tangents.log()
        lens = self.lens(torch.stack([logs - logs[:, :1], logs + 1.7], -1))
        first = torch.zeros(views, dtype=torch.long, device=images.device)
        first[0] = 1
        tokens = tokens.unflatten(0, (scenes, views)) + (lens + self.is_first[first])[:, :, None]
        tokens = self.joint(tokens.flatten(1, 2)).unflatten(1, (views, -1))
        maps = self.to_map(*features, tokens.flatten(0, 1))
        return maps, torch.cat([tokens.mean(2), self.summary(self.narrow(tokens).flatten(2))], -1)

    def guess(self, vectors: Tensor, tangents: Tensor) -> Cameras:
        """The coarse estimate. Its start is an object of equal size in every picture, in the middle of it."""
        out = self.coarse(vectors).float()
        rotations = rotation_from_6d(out[..., :6] + out.new_tensor([1.0, 0, 0, 0, 0, -1]))
        depth = tangents[:, :1] / tangents * (0.3 * out[..., 8]).exp()
        shift = 0.1 * out[..., 6:8] * (depth * tangents)[..., None]
        return Cameras(rotations, torch.cat([shift, depth[..., None]], -1))

    def forward(
        self,
        images: Float[Tensor, "scenes views 3 size size"],
        tangents: Float[Tensor, "scenes views"],
        start: Optional[Cameras] = None,
        steps: Optional[int] = None,
        generator: Optional[torch.Generator] = None,
        blind: Optional[Bool[Tensor, "scenes"]] = None,
    ) -> list[Cameras]:
        """The coarse estimate and the one after every step of refinement.

        Args:
            images: colours in [0, 1].
            tangents: of half the angle of view.
            start: what refinement starts from where its rotations are no NaN, in place of the coarse estimate.
            steps: of refinement, by default those of the configuration.
            generator: of the points.
            blind: scenes whose refinement does not get the pictures' vectors, only sampled features.
        """
        maps, vectors = self.encode(images, tangents)
        return self.stages(maps, vectors, tangents, start, steps, generator, blind)

    def stages(
        self,
        maps: Tensor,
        vectors: Tensor,
        tangents: Tensor,
        start: Optional[Cameras] = None,
        steps: Optional[int] = None,
        generator: Optional[torch.Generator] = None,
        blind: Optional[Tensor] = None,
    ) -> list[Cameras]:
        """`forward` from what `encode` returns."""
        estimates = [self.guess(vectors, tangents)]
        current = estimates[0].detach()
        if start is not None:
            given = ~start.rotations.isnan()[..., :1, :1]
            current = Cameras(
                torch.where(given, start.rotations, current.rotations),
                torch.where(given[..., 0], start.centers, current.centers),
            )
        state = None
        if blind is not None:
            vectors = vectors.masked_fill(blind[:, None, None], 0.0)
        for _ in range(self.config.steps if steps is None else steps):
            # Half precision is for the layers; poses and projections need single precision.
            half = torch.is_autocast_enabled(maps.device.type)
            with torch.autocast(maps.device.type, enabled=False):
                refined, state = self.refinement(
                    current, maps.float(), vectors.float(), tangents, state, generator, half
                )
            estimates.append(refined)
            current = refined.detach()
        return estimates


class Refinement(nn.Module):
    """One step: fresh points, their features in every view, a pooled vector, an LSTM, an update of every camera.

    With `surface` the LSTM also gets the least-squares step of every view, see `surface_step`, and its output scales
    that step.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.points, self.surface, width = config.points, config.surface, config.width
        channels = config.map_channels + (SURFACE if config.surface else 0)
        extra = 8 if config.surface else 0
        self.point_mlp = nn.Sequential(
            nn.Linear(3 * channels + 3 * 7 + 3 + 2 + 1 + extra, 96),
            nn.GELU(),
            nn.Linear(96, 96),
            nn.GELU(),
            nn.Linear(96, 96 + 4 + (1 if config.surface else 0)),
        )
        self.pooled = 96
        self.shrink = nn.Linear(2 * width, 64)
        updates = 2 if config.surface else 1
        self.lstm = nn.LSTMCell(self.pooled + 64 + 12 + 6 * (updates - 1), 128)
        last = nn.Linear(64, 6 * updates)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(128, 64), nn.GELU(), last)
        self.scale = nn.Parameter(torch.tensor(0.85)) if config.surface else None

    def forward(
        self, cameras: Cameras, maps: Tensor, vectors: Tensor, tangents: Tensor, state, generator, half: bool = False
    ) -> tuple[Cameras, tuple[Tensor, Tensor]]:
        scenes, views = tangents.shape
        unit = tangents[:, :1, None]
        points = balls(scenes, self.points, generator, tangents.device)
        seen, where = project(points * unit, cameras.rotations, cameras.centers, tangents)
        grid = where.flatten(0, 1)[:, :, None]
        sampled = nn.functional.grid_sample(maps, grid, align_corners=False, padding_mode="border")
        sampled = sampled[..., 0].transpose(1, 2).unflatten(0, (scenes, views))
        mean = sampled.mean(1, keepdim=True)
        spread = (sampled - mean).square().mean(1, keepdim=True)
        waves = torch.cat([points, *(f(k * torch.pi * points) for k in (1, 2, 4) for f in (torch.sin, torch.cos))], -1)
        inside = (where.abs() < 1).all(-1, keepdim=True)
        relative = torch.cat([seen[..., :2], seen[..., 2:] - cameras.centers[:, :, None, 2:]], -1) / unit[..., None]
        features = [sampled, sampled - mean, spread.expand_as(sampled), waves[:, None].expand(-1, views, -1, -1)]
        features += [relative, where.clamp(-2, 2), inside]
        if self.scale is not None:
            turned = torch.einsum("svij,svpj->svpi", cameras.rotations, sampled[..., :3]) * self.scale
            _, again = project_seen(turned * unit[..., None], cameras.centers, tangents)
            features += [turned, turned - relative, (3 * (again - where)).clamp(-3, 3)]
        with torch.autocast(maps.device.type, torch.bfloat16, enabled=half):
            values = self.point_mlp(torch.cat(features, -1)).float()
        # Four heads of softmax pooling, each over a quarter of the channels.
        scores = values[..., self.pooled : self.pooled + 4].softmax(-2)
        pooled = (values[..., : self.pooled].unflatten(-1, (4, -1)) * scores[..., None]).sum(2).flatten(-2)
        depth = (cameras.centers[..., 2:] * tangents[..., None] / unit).clamp_min(1e-3).log()
        shift = cameras.centers[..., :2] / (cameras.centers[..., 2:] * tangents[..., None])
        inputs = [pooled, self.shrink(vectors), cameras.rotations.flatten(-2), shift, depth]
        fit = None
        if self.scale is not None:
            weights = (sampled[..., 3] + values[..., -1]).sigmoid() * inside[..., 0]
            fit = surface_step(turned * unit[..., None], where, weights, cameras.centers, tangents)
            inputs.append(fit)
        state = self.lstm(torch.cat(inputs, -1).flatten(0, 1), state)
        raw = self.head(state[0]).unflatten(0, (scenes, views))
        if fit is not None:
            raw = raw[..., :6] + raw[..., 6:] * fit
        rotations, centers = left_update(cameras.rotations, cameras.centers, scaled_update(raw, cameras, tangents))
        return Cameras(rotations, centers), state


def scaled_update(
    raw: Float[Tensor, "scenes views 6"], cameras: Cameras, tangents: Float[Tensor, "scenes views"]
) -> Float[Tensor, "scenes views 6"]:
    """The left update of a step in units of what is seen: a turn in radians, shifts in parts of 0.3 of half the
    picture, and of depth in parts of 0.3 of it."""
    depth = cameras.centers[..., 2:]
    return torch.cat([raw[..., :3], 0.3 * raw[..., 3:5] * depth * tangents[..., None], 0.3 * raw[..., 5:] * depth], -1)


def surface_step(
    turned: Float[Tensor, "scenes views points 3"],
    where: Float[Tensor, "scenes views points 2"],
    weights: Float[Tensor, "scenes views points"],
    centers: Float[Tensor, "scenes views 3"],
    tangents: Float[Tensor, "scenes views"],
) -> Float[Tensor, "scenes views 6"]:
    """One damped Gauss-Newton step of a perspective-n-point problem in every view.

    Args:
        turned: points of the object, turned into the cameras' axes, from the object's centre.
        where: where the pictures show them, edges at -1 and 1.
        weights: of the points. Residuals count less, the larger they are (Cauchy's weights).
        centers: the object's centre in the cameras.
        tangents: of half the angles of view.

    Returns:
        The step in the units of `scaled_update`, each number within 0.7.
    """
    seen, again = project_seen(turned, centers, tangents)
    residuals = where - again
    weights = weights / (1 + residuals.detach().square().sum(-1) / 0.15**2)
    x, y, z = turned.unbind(-1)
    zero = torch.zeros_like(x)
    deep = centers[:, :, None, 2].expand_as(x)
    across = 0.3 * deep * tangents[..., None]
    rows = [
        torch.stack([zero, z, -y, across, zero, zero], -1),
        torch.stack([-z, zero, x, zero, across, zero], -1),
        torch.stack([y, -x, zero, zero, zero, 0.3 * deep], -1),
    ]
    depth = seen[..., 2:].clamp_min(0.1)
    slopes = torch.stack(rows[:2], -2) - (seen[..., :2] / depth)[..., None] * rows[2][..., None, :]
    slopes = slopes / (depth * tangents[..., None, None])[..., None]
    weighted = slopes * (weights / weights.sum(-1, keepdim=True).clamp_min(1.0))[..., None, None]
    normal = torch.einsum("svpij,svpik->svjk", weighted, slopes)
    damping = torch.diag(normal.new_tensor([1e-3, 1e-3, 1e-3, 3e-4, 3e-4, 1e-3]))
    gradient = torch.einsum("svpij,svpi->svj", weighted, residuals)
    step = torch.linalg.solve(normal + damping, gradient)
    return 0.7 * (step / 0.7).tanh()
