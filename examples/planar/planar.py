"""Planar alignment: pose recovery in two dimensions, BARF's experiment in the plane (Lin et al. 2021, section 4.1).

    python examples/planar/planar.py --image photo.jpg --seeds 5

Five patches are cut from a photograph under homographies or rigid motions; these and a neural picture are recovered
together from the patches' colours alone, with one warp per patch (BARF) or one per pixel that a registration ties
together (L2G-NeRF, Chen et al. 2023). Prints a table and writes planar.json and three figures. See docs/planar.md.

Image coordinates are BARF's: x to the right and y down, the image's centre at the origin, its longer side from -1 to 1.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Literal, Tuple, Union

import numpy as np
import pandas as pd
import roma
import torch
import tyro
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from hashpose_ns.bench.environment import command_line, environment
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.encoding.grid import READINGS
from hashpose_ns.errors import HashPoseError, exits_on_user_error
from hashpose_ns.optim.curriculum import Curriculum, CurriculumConfig
from hashpose_ns.plotting.axes import log_axis
from hashpose_ns.plotting.figures import COLORS

CAT = Path(__file__).parent / "chelsea.jpg"
"""Chelsea the cat, by Stefan van der Walt, who gave it to the public domain (CC0)."""
SUCCESS = 1.0
"""A patch, or the mean of a run's patches, is aligned below this corner error, in pixels."""
RECORDS = 60
"""How often in a run the corner error is measured."""
DEFAULT = ("hash/axis/lr", "hash/linear/lr", "hash/linear/none", "frequency/mask", "frequency/none")
L2G = "l2g/"
"""Before the name of a representation: warps of pixels, registered."""
OCTAVES = 8
"""Of BARF's frequency encoding, from wavelength 2 (the image's longer side) to 1/64."""


@dataclass
class Settings:
    """Align patches of a photograph; see docs/planar.md."""

    image: Path = CAT
    """Any photograph; by default a cat that comes with the example."""
    output_dir: Path = Path("planar_output")
    """Folder for planar.json and the figures."""
    representations: Tuple[str, ...] = DEFAULT
    """What to compare: hash/READING/CURRICULUM, frequency/mask (BARF), frequency/none, coordinates, gaussian (GARF).
    With l2g/ before the name every pixel has a warp of its own (L2G)."""
    motion: Literal["homography", "rigid"] = "homography"
    """What moves a patch: eight numbers or three."""
    protocol: Literal["barf", "l2g"] = "barf"
    """How patches are cut: moved towards the corners (BARF), or turned about the middle and moved anywhere (L2G)."""
    seeds: int = 1
    """Number of seeds of the warps, the weights and the pixels drawn."""
    size: int = 120
    """Pixels along the photograph's longer side, after resizing. Patches have half the shorter side."""
    noise: float = 0.05
    """Standard deviation of the patches' twists in sl(3) or se(2). BARF has 0.1, L2G 0.3 (homographies only)."""
    rotation: float = 1.0
    """Standard deviation of the turns in L2G's protocol, in radians."""
    translation: float = 0.1
    """How far four patches move along either axis, in halves of the longer side; in L2G's protocol the standard
    deviation of the shifts. BARF has 0.2, L2G 0.1."""
    steps: int = 1500
    """Steps of gradient descent."""
    batch: int = 1000
    """Pixels in a step, drawn from all patches alike."""
    levels: int = 8
    """Levels of the hash grid."""
    base_resolution: int = 2
    """Cells along the longer side of the coarsest level."""
    max_resolution: int = 128
    """Cells along the longer side of the finest level."""
    decoder_width: int = 64
    """Width of the two hidden layers behind the hash grid."""
    network_width: int = 128
    """Width of the four hidden layers of the other representations. BARF has 256."""
    hash_rate: float = 3e-2
    """Adam's learning rate for the hash grid and its decoder."""
    network_rate: float = 1e-3
    """Adam's learning rate for the other representations."""
    warp_rate: float = 3e-3
    """Adam's learning rate for the warps, where each patch has one."""
    local_width: int = 128
    """Width of the six hidden layers of L2G's warp network, and of its patch embeddings. L2G has 256 and 128."""
    local_rate: float = 1e-3
    """Adam's learning rate for L2G's warp network; it falls to a hundredth of itself."""
    local_weight: float = 100.0
    """Weight of the distance between L2G's local and registered points."""
    decay: float = 0.1
    """All learning rates fall exponentially to this fraction of themselves."""
    warp_start: float = 0.05
    """Warps are frozen until this fraction of training; over as long again their rate rises to its full value."""
    window: Tuple[float, float] = (0.0, 0.5)
    """Fractions of training between which levels or octaves open from coarse to fine."""


# -- warps -------------------------------------------------------------------------------------------------------------


def homographies(twists: Float[Tensor, "*batch 8"]) -> Float[Tensor, "*batch 3 3"]:
    """exp of sl(3) in the order of BARF: h1 .. h8 is ``[[h5, h3, h1], [h4, -h5 - h6, h2], [h7, h8, h6]]``."""
    h1, h2, h3, h4, h5, h6, h7, h8 = twists.unbind(-1)
    rows = torch.stack([h5, h3, h1, h4, -h5 - h6, h2, h7, h8, h6], dim=-1)
    return torch.linalg.matrix_exp(rows.unflatten(-1, (3, 3)))


def rigid_motions(twists: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """exp of se(2) in L2G's order, translation before angle; homogeneous matrices."""
    x, y, angle = twists.unbind(-1)
    sine, cosine, zero, one = angle.sin(), angle.cos(), torch.zeros_like(angle), torch.ones_like(angle)
    a, b = torch.sinc(angle / math.pi), torch.sinc(angle / (2 * math.pi)) * (angle / 2).sin()  # b = (1 - cos) / angle
    rows = [cosine, -sine, a * x - b * y, sine, cosine, b * x + a * y, zero, zero, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


MOTIONS = {"homography": (8, homographies), "rigid": (3, rigid_motions)}
"""Motion -> length of its twists, and their exponential. Twists of either begin with a shift."""


def register_rigid(
    source: Float[Tensor, "*batch num 2"], target: Float[Tensor, "*batch num 2"]
) -> Float[Tensor, "*batch 3 3"]:
    """The rigid motion of least squares from source to target; roma's derivative is finite on symmetric grids too."""
    rotation, shift = roma.rigid_points_registration(source, target)
    matrix = torch.eye(3, dtype=target.dtype).expand(*rotation.shape[:-2], 3, 3).clone()
    matrix[..., :2, :2], matrix[..., :2, 2] = rotation, shift
    return matrix


def register_homography(
    source: Float[Tensor, "*batch num 2"], target: Float[Tensor, "*batch num 2"]
) -> Float[Tensor, "*batch 3 3"]:
    """The homography of least algebraic error from source to target (four points or more, no three on a line).

    The direct linear transform in coordinates that are centred and scaled (Hartley 1997), with the last entry fixed at
    1: normal equations of 8 unknowns. The usual smallest eigenvector has no finite derivative where eigenvalues meet,
    as they do on a symmetric grid at the identity.
    """

    def normalised(points: Tensor) -> Tuple[Tensor, Tensor]:
        centre = points.mean(dim=-2, keepdim=True)
        scale = (points - centre).square().sum(dim=-1, keepdim=True).mean(dim=-2, keepdim=True).rsqrt()
        to_unit = torch.diag_embed(torch.cat([scale, scale, torch.ones_like(scale)], dim=-1).squeeze(-2))
        to_unit = to_unit + nn.functional.pad(-scale * centre, (0, 1)).transpose(-2, -1) * torch.eye(3)[2].to(points)
        return (points - centre) * scale, to_unit

    (p, from_source), (q, from_target) = normalised(source), normalised(target)
    one, zero = torch.ones_like(p[..., :1]), torch.zeros_like(p)
    zeros = torch.cat([zero, zero[..., :1]], dim=-1)
    equations = torch.cat(
        [
            torch.cat([p, one, zeros, -p * q[..., :1]], dim=-1),
            torch.cat([zeros, p, one, -p * q[..., 1:]], dim=-1),
        ],
        dim=-2,
    )
    sides = torch.cat([q[..., 0], q[..., 1]], dim=-1)[..., None]
    transposed = equations.transpose(-2, -1)
    entries = torch.linalg.solve(transposed @ equations, transposed @ sides).squeeze(-1)
    unit = torch.cat([entries, torch.ones_like(entries[..., :1])], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.inv(from_target) @ unit @ from_source


def warp_points(
    matrices: Float[Tensor, "*batch 3 3"], points: Float[Tensor, "*batch num 2"]
) -> Float[Tensor, "*batch num 2"]:
    """Points under homographies."""
    warped = points @ matrices[..., :, :2].transpose(-2, -1) + matrices[..., None, :, 2]
    return warped[..., :2] / warped[..., 2:]


def anchored(recovered: Float[Tensor, "n 3 3"], true: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n 3 3"]:
    """The recovered warps moved together, so that those of the first patch agree: colours say nothing about where the
    picture lies as a whole."""
    return true[0] @ torch.linalg.inv(recovered[0]) @ recovered


@dataclass
class Problem:
    """What a representation is given, the patches' colours, and what it is to find, their warps."""

    photograph: Float[Tensor, "height width 3"]
    side: int
    """Pixels along a patch's side."""
    grid: Float[Tensor, "pixels 2"]
    """Pixel centres of a patch in its own coordinates, those of the crop in the image's middle."""
    true: Float[Tensor, "patches 3 3"]
    """The warps the patches were cut with; the first one, the anchor's, is the identity."""
    colors: Float[Tensor, "patches pixels 3"]

    @property
    def longer(self) -> int:
        """Pixels along the photograph's longer side."""
        return max(self.photograph.shape[:2])

    @property
    def corners(self) -> Float[Tensor, "4 2"]:
        """Outer corners of a patch in its own coordinates, in turn."""
        return self.side / self.longer * torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])

    def errors(self, recovered: Float[Tensor, "patches 3 3"]) -> Float[Tensor, "others"]:
        """Mean distance in pixels of a patch's corners from where they belong, for every patch but the anchor."""
        recovered, true = recovered.double(), self.true.double()
        corners = self.corners.double().expand(len(true), 4, 2)
        gaps = warp_points(anchored(recovered, true), corners) - warp_points(true, corners)
        return gaps.norm(dim=-1).mean(dim=-1)[1:] * self.longer / 2


def read_photograph(path: Path, size: int) -> Float[Tensor, "height width 3"]:
    """A picture in [0, 1], on white where it has alpha, its longer side resized to ``size`` pixels."""
    try:
        picture = Image.open(path).convert("RGBA")
    except (OSError, ValueError) as error:
        raise HashPoseError(f"The picture {path} cannot be read ({error}).") from error
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    width, height = (round(size / max(picture.size) * length) for length in picture.size)
    if min(width, height) < 16:
        raise HashPoseError(f"{path} is {width}x{height} at --size {size}: patches need 16 pixels on the shorter side.")
    return torch.from_numpy(np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)) / np.float32(255))


def sample_colors(photograph: Float[Tensor, "h w 3"], points: Float[Tensor, "n p 2"]) -> Float[Tensor, "n p 3"]:
    """Bilinear interpolation between pixel centres; beyond the outermost ones colours continue as they end."""
    height, width, _ = photograph.shape
    scale = max(height, width) / torch.tensor([width, height])
    channels = photograph.permute(2, 0, 1)[None]
    points = (points * scale)[None]
    colors = nn.functional.grid_sample(channels, points, padding_mode="border", align_corners=False)
    return colors[0].permute(1, 2, 0)


def make_problem(photograph: Float[Tensor, "height width 3"], settings: Settings, seed: int) -> Problem:
    """Cuts the patches: an anchor and four that are moved.

    Warps that take a corner out of the image are drawn again, and in L2G's protocol those that bring one within an
    eighth of the patch's side of the image's axes.
    """
    height, width, _ = photograph.shape
    side, longer = min(height, width) // 2, max(height, width)
    line = (2 * torch.arange(side) + 1 - side) / longer
    y, x = torch.meshgrid(line, line, indexing="ij")
    problem = Problem(photograph, side, torch.stack([x, y], -1).reshape(-1, 2), torch.eye(3)[None], torch.empty(0))
    generator, limit = torch.Generator().manual_seed(seed), torch.tensor([width, height]) / longer
    length, exponential = MOTIONS[settings.motion]

    def draw(quadrant: List[int]) -> Tensor:
        twist = settings.noise * torch.randn(length, generator=generator)
        if settings.protocol == "barf":
            return exponential(
                twist + settings.translation * nn.functional.pad(torch.tensor(quadrant), (0, length - 2))
            )
        turn = settings.rotation * torch.randn(1, generator=generator)
        shift = settings.translation * torch.randn(2, generator=generator)
        twist[:2] = 0
        moved = rigid_motions(torch.cat([shift, torch.zeros(1)])) @ rigid_motions(torch.cat([torch.zeros(2), turn]))
        return moved @ homographies(twist) if settings.motion == "homography" else moved

    axes = side / 4 / longer if settings.protocol == "l2g" else 0.0
    for quadrant in ([-1, -1], [-1, 1], [1, -1], [1, 1]):
        for _ in range(2000):
            warp = draw(quadrant)
            corners = warp_points(warp, problem.corners).abs()
            if bool(((corners <= limit) & (corners >= axes)).all()):
                break
        else:
            raise HashPoseError("Such warps take patches out of the photograph; lower --noise or --translation.")
        problem.true = torch.cat([problem.true, warp[None]])
    problem.colors = sample_colors(photograph, warp_points(problem.true, problem.grid.expand(5, -1, -1)))
    return problem


# -- pictures as functions of the plane --------------------------------------------------------------------------------


class Gaussian(nn.Module):
    """GARF's activation, of deviation 0.1 (Chng et al. 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        """exp(-x^2 / (2 sigma^2))."""
        return torch.exp(-0.5 * (x / 0.1) ** 2)


class NeuralImage(nn.Module):
    """A picture: the package's hash grid with its curriculum, or a coordinate network of four hidden layers.

    Args:
        name: such as hash/axis/lr or frequency/mask.
        settings: sizes and rates.
        grid: changes of the hash grid's settings.
    """

    def __init__(self, name: str, settings: Settings, **grid: Any) -> None:
        super().__init__()
        kind, *parts = name.split("/")
        self.kind, self.octaves, self.mode = kind, 0, parts[-1] if parts else "none"
        if kind == "hash" and len(parts) == 2 and parts[0] in READINGS and parts[1] in ("lr", "mask", "repeat", "none"):
            sizes = {key: getattr(settings, key) for key in ("base_resolution", "max_resolution")}
            sizes = {"num_levels": settings.levels, **sizes, **grid}
            self.encoding = HashEncodingConfig(**sizes, gradient=parts[0]).setup(num_dims=2)  # type: ignore[arg-type]
            self.network = _network(self.encoding.out_dim, settings.decoder_width, 2, nn.ReLU)
            levels, adam = sizes["num_levels"], {"lr": settings.hash_rate, "betas": (0.9, 0.99), "eps": 1e-15}
            self.groups = [{"params": [t], **adam} for t in self.encoding.tables]
            self.groups.append({"params": list(self.network.parameters()), **adam})
            config = CurriculumConfig(mode=self.mode, window=settings.window)  # type: ignore[arg-type]
        elif name in ("frequency/mask", "frequency/none", "coordinates", "gaussian"):
            self.octaves = levels = OCTAVES if kind == "frequency" else 0
            inputs = 2 + 4 * self.octaves
            self.network = _network(inputs, settings.network_width, 4, Gaussian if kind == "gaussian" else nn.ReLU)
            self.groups = [{"params": list(self.network.parameters()), "lr": settings.network_rate}]
            config = CurriculumConfig(mode=self.mode, window=settings.window, indexing="barf")  # type: ignore[arg-type]
            if self.mode == "mask":  # BARF: initialised for all inputs, of which only the coordinates speak at first
                with torch.no_grad():
                    for parameter in self.network[0].parameters():
                        parameter.mul_(math.sqrt(inputs / 2))
        else:
            raise HashPoseError(
                f"There is no representation '{name}'; choose hash/READING/CURRICULUM (readings {', '.join(READINGS)}; "
                "curricula lr, mask, repeat, none), frequency/mask, frequency/none, coordinates or gaussian."
            )
        self.curriculum = Curriculum(config, max(levels, 1), settings.steps)

    def features(self, points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch levels features"]:
        """The encoding, by level."""
        if self.kind == "hash":
            return self.encoding((points + 1) / 2).unflatten(-1, (self.encoding.num_levels, -1))
        phases = points[..., None, :] * (math.pi * 2.0 ** torch.arange(self.octaves))[:, None]
        return torch.cat([phases.sin(), phases.cos()], dim=-1)

    def forward(self, points: Float[Tensor, "*batch 2"], step: int) -> Float[Tensor, "*batch 3"]:
        """Colours in [0, 1] at a step of training."""
        if self.kind != "hash" and not self.octaves:
            return self.network(points)
        inputs = self.curriculum.mask_features(self.features(points), step).flatten(-2)
        return self.network(inputs if self.kind == "hash" else torch.cat([points, inputs], dim=-1))

    def rates(self, step: int) -> List[float]:
        """Factors on the learning rates of `groups`."""
        return [*self.curriculum.learning_rate_weights(step), 1.0] if self.kind == "hash" else [1.0]


def _network(inputs: int, width: int, hidden: int, activation: type) -> nn.Sequential:
    layers: List[nn.Module] = []
    for _ in range(hidden):
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 3), nn.Sigmoid())


class PatchWarps(nn.Module):
    """A twist for every patch but the anchor, as BARF has it. Starts at the identity."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        super().__init__()
        length, self.exponential = MOTIONS[settings.motion]
        self.twists = nn.Parameter(torch.zeros(len(problem.true) - 1, length))
        self.rate, self.decay = settings.warp_rate, settings.decay

    def matrices(self) -> Float[Tensor, "patches 3 3"]:
        """The patches' warps; the anchor's is the identity."""
        return self.exponential(nn.functional.pad(self.twists, (0, 0, 1, 0)))

    def forward(self, points: Float[Tensor, "patches n 2"]) -> Tuple[Float[Tensor, "patches n 2"], Float[Tensor, ""]]:
        """Where points of the patches lie in the picture, and what is added to the loss: nothing."""
        return warp_points(self.matrices(), points), torch.zeros(())


class LocalWarps(nn.Module):
    """L2G: a network gives every pixel a rigid motion of its own, and a registration ties a patch's pixels together.

    The picture is asked at the local points. A patch's warp is the motion of least squares that takes its pixels there;
    the distance between the two is added to the loss. A rigid registration minimises that very distance, so that its
    derivative is zero and it is detached. A homography's minimises an algebraic error, so that its derivative counts.
    """

    def __init__(self, problem: Problem, settings: Settings) -> None:
        super().__init__()
        width, self.motion = settings.local_width, settings.motion
        self.rate, self.decay, self.weight = settings.local_rate, 0.01, settings.local_weight
        self.embedding = nn.Parameter(torch.randn(len(problem.true), width))
        sizes = [2 + width, *[width] * 6]
        sizes[4] += 2 + width  # the inputs once more
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes[:6])
        self.output = nn.Linear(width, 3)
        line = torch.linspace(-1, 1, 8) * problem.side / problem.longer
        self.lattice = torch.cartesian_prod(line, line)
        """The fixed points whose registration is a patch's warp, so that it depends on no draw of pixels."""

    def local(self, points: Float[Tensor, "patches n 2"]) -> Float[Tensor, "patches n 2"]:
        """Points under motions of their own; the anchor's stay."""
        embedding = self.embedding[:, None].expand(-1, points.shape[1], -1)
        x = inputs = torch.cat([points, embedding], dim=-1)
        for index, layer in enumerate(self.layers):
            x = nn.functional.relu(layer(torch.cat([x, inputs], dim=-1) if index == 4 else x))
        twists = self.output(x) * (torch.arange(len(points)) > 0)[:, None, None]
        return warp_points(rigid_motions(twists), points[..., None, :]).squeeze(-2)

    def register(self, points: Tensor, moved: Tensor) -> Float[Tensor, "patches 3 3"]:
        """The patches' warps from pixels and where these went."""
        if self.motion == "homography":
            return register_homography(points, moved)
        return register_rigid(points, moved.detach())

    def matrices(self) -> Float[Tensor, "patches 3 3"]:
        """The patches' warps; the anchor's is the identity."""
        points = self.lattice.expand(len(self.embedding), -1, -1)
        return self.register(points, self.local(points))

    def forward(self, points: Float[Tensor, "patches n 2"]) -> Tuple[Float[Tensor, "patches n 2"], Float[Tensor, ""]]:
        """Where points of the patches lie in the picture, and what is added to the loss."""
        moved = self.local(points)
        registered = warp_points(self.register(points, moved), points)
        return moved, self.weight * nn.functional.mse_loss(moved, registered)


# -- alignment ---------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """How one representation did with one seed."""

    representation: str
    seed: int
    curve: Dict[Literal["step", "seconds", "error"], List[float]]
    """Steps, processor time until then, and mean corner error in pixels."""
    patch_errors: List[float]
    psnr: float
    warps: Float[Tensor, "patches 3 3"]
    image: NeuralImage


def align(problem: Problem, representation: str, settings: Settings, seed: int) -> Run:
    """Recovers warps and picture by Adam on the mean squared error of random pixels of all patches.

    Every warp starts as the identity and the anchor stays there. Warps are frozen while the picture begins to form:
    gradients of an untrained picture are noise, which Adam would follow at full speed.
    """
    torch.manual_seed(seed)
    image = NeuralImage(representation.removeprefix(L2G), settings)
    num_patches, num_pixels, _ = problem.colors.shape
    warps: Union[PatchWarps, LocalWarps]
    warps = LocalWarps(problem, settings) if representation.startswith(L2G) else PatchWarps(problem, settings)
    groups = [*image.groups, {"params": list(warps.parameters()), "lr": warps.rate}]
    optimizer = torch.optim.Adam(groups, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    decays = [settings.decay] * len(image.groups) + [warps.decay]
    pixels, patches = torch.Generator().manual_seed(seed), torch.arange(num_patches)[:, None]

    curve: Dict[Any, List[float]] = {"step": [], "seconds": [], "error": []}

    def record(step: int, seconds: float) -> None:
        with torch.no_grad():
            error = float(problem.errors(warps.matrices()).mean())
        for key, value in zip(curve, (step, round(seconds, 3), error)):
            curve[key].append(value)
        if not math.isfinite(error):
            raise HashPoseError(f"{representation} diverged with seed {seed}; lower the learning rates.")

    record(0, 0.0)
    marks, spent = {round((i + 1) * settings.steps / RECORDS) for i in range(RECORDS)}, 0.0
    for step in range(settings.steps):
        began, progress = time.process_time(), step / settings.steps
        start = settings.warp_start
        moving = 1.0 if start == 0 else min(max(progress / start - 1, 0.0), 1.0)
        for group, rate, decay, factor in zip(optimizer.param_groups, rates, decays, [*image.rates(step), moving]):
            group["lr"] = rate * factor * decay**progress
        chosen = torch.randint(num_pixels, (num_patches, settings.batch // num_patches), generator=pixels)
        with torch.set_grad_enabled(moving > 0):
            points, penalty = warps(problem.grid[chosen])
        loss = nn.functional.mse_loss(image(points, step), problem.colors[patches, chosen]) + penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        spent += time.process_time() - began
        if step + 1 in marks:
            record(step + 1, spent)
    with torch.no_grad():
        found = warps.matrices()
        colors = image(warps(problem.grid.expand(num_patches, -1, -1))[0], settings.steps)
        psnr = -10 * math.log10(float(nn.functional.mse_loss(colors, problem.colors)))
    return Run(representation, seed, curve, problem.errors(found).tolist(), psnr, found, image)


def summarise(runs: List[Run]) -> pd.DataFrame:
    """Per representation, over its seeds: how often it succeeded, and medians."""
    frame = pd.DataFrame(
        [
            {
                "representation": run.representation,
                "aligned": run.curve["error"][-1] < SUCCESS,
                "patches": sum(error < SUCCESS for error in run.patch_errors),
                "before": run.curve["error"][0],
                "after": run.curve["error"][-1],
                "PSNR": run.psnr,
                "seconds": run.curve["seconds"][-1],
            }
            for run in runs
        ]
    )
    groups = frame.groupby("representation", sort=False)
    counts = groups[["aligned", "patches"]].sum().assign(runs=groups.size())
    return counts.join(groups[["before", "after", "PSNR", "seconds"]].median())


# -- what a patch feels when it is moved across a picture that is known ------------------------------------------------


@dataclass
class Sweep:
    """Displacements along x across one hash grid that was fitted to the photograph; gradients are per pixel."""

    name: str
    cell: float
    """Pixels along a cell of the finest level."""
    close: Float[Tensor, "steps"]
    """Displacements of a single pixel, in pixels."""
    faces: Float[Tensor, "faces"]
    """Where it crosses a face of a cell of the finest level."""
    brightness: Dict[str, Float[Tensor, "steps"]]
    """Reading -> gradient of the brightness there, with the decoder replaced by its linear part at displacement 0."""
    displacements: Float[Tensor, "num"]
    losses: Float[Tensor, "num"]
    """Mean squared error of the second patch."""
    gradients: Dict[str, Float[Tensor, "num pixels"]]
    """Reading -> gradient of each of its pixels' squared error."""

    def roughness(self, reading: str, count: int) -> float:
        """RMS change over 0.1 pixels of the gradient that `count` pixels share, over its own RMS; mean of 20 draws."""
        generator, values = torch.Generator().manual_seed(0), []  # the same pixels for every reading
        for _ in range(20):
            chosen = torch.randperm(self.gradients[reading].shape[-1], generator=generator)[:count]
            common = self.gradients[reading][:, chosen].mean(-1)
            values.append(float((common.diff().square().mean() / common.square().mean()).sqrt()))
        return sum(values) / len(values)

    @property
    def counts(self) -> List[int]:
        """Numbers of pixels that share a displacement."""
        return [4**k for k in range(6) if 4**k <= self.gradients["linear"].shape[-1]]


def sweep(name: str, grid: Dict[str, int], problem: Problem, settings: Settings) -> Sweep:
    """Fits a grid to the photograph and moves a patch across it under each reading, which differ in gradients alone."""
    torch.manual_seed(0)
    image, generator = NeuralImage("hash/linear/none", settings, **grid), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(image.groups, fused=True)
    height, width, _ = problem.photograph.shape
    limits, unit = torch.tensor([width, height]) / problem.longer, 2 / problem.longer
    for step in range(min(300, settings.steps)):
        points = (2 * torch.rand(2048, 2, generator=generator) - 1) * limits
        loss = nn.functional.mse_loss(image(points, step), sample_colors(problem.photograph, points[None])[0])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    cells = image.encoding.config.max_resolution
    cell = problem.longer / cells

    def by_reading(points: Tensor, feature_gradients: Tensor) -> Dict[str, Tensor]:
        points, found = points.detach().requires_grad_(), {}
        for reading in READINGS:
            image.encoding.config.gradient = reading
            (gradient,) = torch.autograd.grad(image.encoding((points + 1) / 2), points, feature_gradients)
            found[reading] = gradient[..., 0] * unit
        return found

    # a pixel next to the strongest edge of the middle row, so that there is something to see
    row = problem.photograph[height // 2].mean(-1)
    column = int((row[2:] - row[:-2])[width // 4 : -width // 4].abs().argmax()) + width // 4 + 1
    point = torch.tensor([[(2 * column + 1 - width) / problem.longer, 0.01]])
    close = torch.arange(-2.5 * cell, 2.5 * cell, 0.01 * cell)
    features = image.encoding((point + 1) / 2).detach().requires_grad_()
    (direction,) = torch.autograd.grad(image.network(features).mean(), features)
    moved = point + torch.stack([close * unit, torch.zeros_like(close)], dim=-1)
    brightness = by_reading(moved, direction.expand(len(moved), -1))
    faces = torch.arange(cells + 1) * cell - float(point[0, 0] + 1) / unit

    displacements, losses = torch.arange(-12, 12.05, 0.1), []
    gradients: Dict[str, List[Tensor]] = {reading: [] for reading in READINGS}
    points = warp_points(problem.true[1], problem.grid)
    for part in displacements.split(max(1, 65536 // len(points))):
        moved = points.expand(len(part), -1, -1).clone()
        moved[..., 0] += part[:, None] * unit
        features = image.encoding((moved + 1) / 2).detach().requires_grad_()
        errors = (image.network(features) - problem.colors[1]).square().mean(dim=-1)
        (feature_gradients,) = torch.autograd.grad(errors.sum(), features)
        losses.append(errors.mean(dim=1).detach())
        for reading, gradient in by_reading(moved, feature_gradients).items():
            gradients[reading].append(gradient)
    faces = faces[(faces > close[0]) & (faces < close[-1])]
    joined = {reading: torch.cat(parts) for reading, parts in gradients.items()}
    return Sweep(name, cell, close, faces, brightness, displacements, torch.cat(losses), joined)


# -- figures -----------------------------------------------------------------------------------------------------------


def plot_patches(problem: Problem, runs: List[Run], step: int, path: Path) -> None:
    """The photograph with patches where they are, where they start and where every representation put them, and the
    picture that it recovered."""
    height, width, _ = problem.photograph.shape
    figure = Figure(figsize=(2.3 * (len(runs) + 1), 4.6 * height / width + 1.0), layout="constrained")
    grid = figure.subplots(2, len(runs) + 1, subplot_kw={"xticks": [], "yticks": []})
    photograph, middle = problem.photograph.numpy(), np.array([width - 1, height - 1]) / 2

    def show(axis: Axes, picture: np.ndarray, title: str, *outlines: Tuple[Tensor, Dict[str, Any]]) -> None:
        axis.imshow(picture.clip(0, 1), interpolation="bicubic")
        axis.set_title(title, fontsize=9)
        for warps, style in outlines:
            corners = warp_points(warps, problem.corners.expand(len(warps), 4, 2)).numpy() * problem.longer / 2 + middle
            for outline, color in zip(corners, COLORS):
                axis.plot(*np.vstack([outline, outline[:1]]).T, **{"color": color, "linewidth": 1.5, **style})
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))

    show(grid[0, 0], photograph, "true patches", (problem.true, {}))
    show(grid[1, 0], photograph, "start: all in the middle", (torch.eye(3).expand(5, 3, 3), {}))
    y, x = ((2 * torch.arange(length) + 1 - length) / problem.longer for length in (height, width))
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    for run, (above, below) in zip(runs, grid[:, 1:].T):
        true, found = (problem.true, {"color": "black", "linewidth": 2.6}), (anchored(run.warps, problem.true), {})
        title = f"{run.representation}\n{run.curve['error'][-1]:.2f} pixels"
        show(above, 0.35 + 0.65 * photograph, title, true, found)
        with torch.no_grad():
            show(below, run.image(points, step).numpy(), f"recovered, {run.psnr:.1f} dB")
    figure.suptitle("black: true patches; coloured: recovered", fontsize=9, y=0.02, va="bottom")
    figure.savefig(path, dpi=140)


def plot_errors(runs: List[Run], path: Path) -> None:
    """Mean corner error against steps and against processor time: thin lines are runs, thick ones medians."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for name, color in zip(dict.fromkeys(run.representation for run in runs), COLORS):
        mine = [run.curve for run in runs if run.representation == name]
        for axis, key in zip(axes, ("step", "seconds")):
            x, y = (np.array([curve[what] for curve in mine]) for what in (key, "error"))
            if len(mine) > 1:
                axis.plot(x.T, y.T, linewidth=0.6, alpha=0.35, color=color)
            axis.plot(np.median(x, 0), np.median(y, 0), linewidth=2.0, label=name, color=color)
    for axis, label in zip(axes, ("step", "processor time [s]")):
        axis.axhline(SUCCESS, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axis.set(xlabel=label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean corner error [pixels]")
    log_axis(axes[0])
    axes[1].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=140)


def plot_gradients(sweeps: List[Sweep], path: Path) -> None:
    """What one pixel and a whole patch feel across each fitted grid, and how rough a common gradient is, by reading."""
    figure = Figure(figsize=(12, 2.6 * len(sweeps) + 0.6), layout="constrained")
    grid = figure.subplots(len(sweeps), 3, squeeze=False)

    def over_rms(gradient: Tensor) -> Tensor:  # Adam does not feel a gradient's size
        return gradient / gradient.square().mean().sqrt()

    for (pixel, patch, rough), swept in zip(grid, sweeps):
        for face in swept.faces:
            pixel.axvline(face, color="#777777", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        for reading, color in zip(READINGS, COLORS):
            style = {"color": color, "linewidth": 1.3, "label": reading}
            if reading == "product_norm":  # hardly apart from axis
                style.update(linestyle=(0, (4, 2)), zorder=4)
            pixel.plot(swept.close, over_rms(swept.brightness[reading]), **style)
            patch.plot(swept.displacements, over_rms(swept.gradients[reading].mean(-1)), **style)
            rough.plot(
                swept.counts, [swept.roughness(reading, count) for count in swept.counts], marker="o", ms=3, **style
            )
        loss = patch.twinx()
        loss.fill_between(swept.displacements, swept.losses, color="#dddddd", linewidth=0)
        loss.set(ylim=(0, 1.05 * float(swept.losses.max())), yticks=[])
        patch.set(zorder=1, frame_on=False)
        pixel.set_title(f"{swept.name}: cells of {swept.cell:.2g} pixels", fontsize=9, loc="left")
        pixel.set_ylabel("gradient / rms")
        rough.set_ylabel("change over 0.1 pixel / rms")
        log_axis(rough, "x")
        log_axis(rough)
        rough.grid(alpha=0.25)
    titles = [
        "one pixel: the encoding alone\n(dotted: faces of the finest cells)",
        "a whole patch: d loss / d displacement\n(grey: the loss, the same for all)",
        "roughness of the gradient that\na number of pixels share",
    ]
    for axis, title in zip(grid[0], titles):
        axis.annotate(title, (0.5, 1.17), xycoords="axes fraction", ha="center", va="bottom", fontsize=10)
    for axis, label in zip(grid[-1], ("displacement [pixels]", "displacement [pixels]", "pixels")):
        axis.set_xlabel(label)
    grid[0, 2].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=140)


@exits_on_user_error
def main(settings: Settings) -> None:
    """Runs the experiment, prints a table and writes numbers and figures."""
    torch.set_num_threads(1)  # steps this small gain nothing from more
    console, photograph = Console(), read_photograph(settings.image, settings.size)
    for name in settings.representations:
        NeuralImage(name.removeprefix(L2G), settings)  # an unknown one is said before any work
    problems = [make_problem(photograph, settings, seed) for seed in range(settings.seeds)]
    runs = []
    for seed, problem in enumerate(problems):
        for name in settings.representations:
            runs.append(align(problem, name, settings, seed))
            first, last = (runs[-1].curve["error"][index] for index in (0, -1))
            console.print(f"seed {seed}  {name}: corner error {first:.2f} -> {last:.2f} pixels", highlight=False)
    grids: Dict[str, Dict[str, int]] = {
        name: {"num_levels": 1, "base_resolution": cells, "max_resolution": cells}
        for name, cells in (("coarse level", 8), ("fine level", 64))
    }
    sweeps = [sweep(name, grid, problems[0], settings) for name, grid in {**grids, "all levels": {}}.items()]
    summary = summarise(runs)
    console.print(summary.round(2).to_string(), highlight=False)
    console.print(
        f"Aligned: runs, and patches (of 4), with a corner error below {SUCCESS:g} pixel. Medians over seeds."
    )
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    plot_patches(
        problems[0], runs[: len(settings.representations)], settings.steps, settings.output_dir / "patches.png"
    )
    plot_errors(runs, settings.output_dir / "errors.png")
    plot_gradients(sweeps, settings.output_dir / "gradients.png")
    results = {
        "command": command_line(),
        **environment(),
        "settings": {**asdict(settings), "image": settings.image.name, "output_dir": settings.output_dir.name},
        "summary": summary.reset_index().to_dict("records"),
        "roughness": {s.name: {r: [s.roughness(r, n) for n in s.counts] for r in READINGS} for s in sweeps},
        "runs": [{k: v for k, v in vars(run).items() if k not in ("image", "warps")} for run in runs],
    }
    (settings.output_dir / "planar.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(f"Numbers and figures: {settings.output_dir}", highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Settings))
