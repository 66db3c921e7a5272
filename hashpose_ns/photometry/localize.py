"""Where photographs were taken: iNeRF with several hypotheses, image pyramid and interest regions, against a trained
field.

After Yen-Chen et al., "iNeRF: Inverting Neural Radiance Fields for Pose Estimation", IROS 2021, and Lin et al.,
"Parallel Inversion of Neural Radiance Fields for Robust Pose Estimation", ICRA 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, List, NamedTuple, Optional, Protocol, Sequence, Tuple, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.recovery import focus, turned
from hashpose_ns.errors import HashPoseError
from hashpose_ns.photometry.align import optimize_cameras
from hashpose_ns.photometry.interest import interest_region
from hashpose_ns.photometry.pixels import ImagePixels, Pixels, evenly_spaced, posed_cameras, shrunk
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.scores import unexplained
from hashpose_ns.photometry.search_config import SearchConfig
from nerfstudio.data.datasets.base_dataset import InputDataset


class Round(NamedTuple):
    """One round of a search: survivors of the last one are optimised, and the best of them stay."""

    divisor: int
    """The hypotheses of the first round, over this, take part."""
    share: float
    """Of all rays."""
    reduction: int
    """Pixels of the image along an edge of those that are compared."""
    rate: float
    """Factor on the learning rate."""
    steps: int
    """Adam's, where that leaves each hypothesis enough rays and not too many."""
    jitter: float
    """Half of the hypotheses are the best of the last round, and the other half these once more, turned by up to this
    angle in degrees: optima that are close to the right one are left that way. 0 takes the best only."""


ROUNDS = (
    Round(1, 0.18, 4, 1.0, 20, 0.0),
    Round(2, 0.18, 4, 0.8, 20, 25.0),
    Round(4, 0.18, 4, 0.6, 30, 15.0),
    Round(16, 0.18, 2, 0.5, 40, 10.0),
    Round(64, 0.28, 1, 0.4, 100, 0.0),
)
"""64 hypotheses, then 32, 16, 4 and 1; from a small image to the whole one."""

LAST_ROUNDS = ROUNDS[-2:]
"""What poses that are proposed go through alone, before the whole search."""

COPIES_SHIFT = 0.25
"""Shifts of turned copies, over those of draws around a given pose."""

MOST_RAYS = 512
"""Rays of a hypothesis in a step, at most: where hypotheses are few, there are more steps instead."""

SMALLEST = 32
"""Shorter side, in pixels, that an image is not reduced below."""

LAST_RATE = 0.2
"""The rate at the end of a round, over that at its beginning."""

RANKING_RAYS, JUDGING_RAYS, FINAL_RAYS = 128, 128, 2048
"""Pixels that candidates are ranked by, that hypotheses are judged by after a round, and that a result is measured
on."""

DRAWS = 6
"""Poses that are drawn, over the hypotheses: the best of them, by a rendering without gradients, are hypotheses."""

BETWEEN = 25.0
"""Largest angle in degrees of draws around training poses, where no pose is given."""

ONE_COLOUR = 1e-4
"""Variance of the colours, in [0, 1], below which a photograph shows nothing."""


@runtime_checkable
class CandidateSource(Protocol):
    """Other evidence of where a photograph was taken than its colours."""

    def __call__(self, scene: PosedScene, dataset: InputDataset, index: int) -> Float[Tensor, "count 3 4"]:
        """Poses, in the learned frame, for an image of a dataset. They are ranked with all others."""
        ...

    def agreeing(self, scene: PosedScene, dataset: InputDataset, index: int, pose: Float[Tensor, "3 4"]) -> int:
        """How many observations agree with a pose of it."""
        ...


@dataclass(frozen=True, eq=False)
class Start:
    """What is known of a photograph's pose before the search."""

    pose: Optional[Float[Tensor, "3 4"]] = None
    """A rough pose in the learned frame."""
    candidates: Optional[Float[Tensor, "count 3 4"]] = None
    """Further poses to try, such as those from matches."""


@dataclass(frozen=True, eq=False)
class Localization:
    """Where a photograph was taken, in the learned frame."""

    pose: Float[Tensor, "3 4"]
    """Camera-to-world, OpenGL axes."""
    residual: float
    """Share of the photograph's variance that the field does not explain from there."""
    mse: float
    """Mean squared error of its colours."""
    start_residual: Optional[float]
    """The same share from the given start, if there was one."""
    agreement: float
    """Share of the last four hypotheses, weighted by how well they explain the photograph, that are where the best one
    is; 1 where there was one only."""
    kept_start: bool
    """Whether nothing was found that scores better than the given start."""
    matches: int = 0
    """Keypoints of the photograph that are where the pose sees what they match."""


# -- how well known photographs are explained --------------------------------------------------------------------------


@dataclass(frozen=True)
class Acceptance:
    """Which residuals photographs of this scene have, by those it was trained on."""

    typical: float
    """Median over training images."""
    limit: float
    """Above this, a photograph is not explained."""

    def found(self, localization: Localization) -> bool:
        """Whether a photograph's place was found: the field explains it about as well as what it was trained on, and
        no other hypothesis explains it as well from elsewhere, or it is explained better still. Where many matches say
        the same, it may be explained less well."""
        if localization.matches >= CONFIRMING:
            return localization.residual <= min(CONFIRMED * self.limit, LARGEST_CONFIRMED)
        limit = self.limit if localization.agreement >= AGREEMENT else self.limit * ALONE
        return localization.residual <= limit


SPREADS = 3.0
"""Deviations of the logarithm of the training images' residuals, above their median, up to which one is accepted."""

LEAST_RATIO, LEAST, LARGEST = 4.0, 0.02, 0.4
"""The limit is this many medians at least, and between these shares of the variance: a field of a few images fits these
much worse in one place than in another."""

AGREEMENT, ALONE = 0.5, 0.6
"""Agreement from which on the limit holds; below, it is this fraction of it."""

CONFIRMING, CONFIRMED, LARGEST_CONFIRMED = 12, 2.5, 0.5
"""Matches from which on a pose is confirmed, which pictures of other scenes do not have by far; the limit is so many
times larger then, up to that share of the variance, as for views that training images show little of."""

TRAINING_IMAGES = 24
"""Training images that the limit comes from."""


@torch.no_grad()
def acceptance(scene: PosedScene) -> Acceptance:
    """Measures how well the field explains the images it was trained on, with the mean appearance.

    Raises:
        HashPoseError: no training image has a pixel outside of its mask.
    """
    poses = scene.poses.refined_camera_to_worlds().detach()
    residuals = []
    for index in evenly_spaced(len(poses), TRAINING_IMAGES):
        image = ImagePixels(scene.train, index)
        pixels = image.draw(FINAL_RAYS // 4, torch.Generator().manual_seed(index)).to(scene.device)
        if len(pixels) and float(scene.renderer.composite(pixels.colors).var(dim=0).mean()) > ONE_COLOUR:
            residuals.append(float(unexplained(scene.renderer, scene.train, pixels, poses[index : index + 1])))
    if not residuals:
        raise HashPoseError("Masks cover the training images, so there is no residual to compare photographs with.")
    logs = torch.tensor(residuals, dtype=torch.float64).clamp(min=1e-6).log()
    median = logs.median()
    spread = 1.4826 * float((logs - median).abs().median())
    ratio = max(math.exp(SPREADS * spread), LEAST_RATIO)
    typical = float(median.exp())
    return Acceptance(typical, min(max(typical * ratio, LEAST), LARGEST))


# -- the search --------------------------------------------------------------------------------------------------------


class _Query:
    """A photograph that is looked for, at several sizes."""

    def __init__(self, scene: PosedScene, dataset: InputDataset, index: int, config: SearchConfig) -> None:
        self.dataset, self.index = dataset, index
        self.whole = whole_image(scene, dataset, index, str(dataset.image_filenames[index]))
        self.region = interest_region(self.whole.image, self.whole.allowed, config.strategy)
        self.sources: dict[int, ImagePixels] = {}
        self.seed = config.seed

    def reduced(self, reduction: int) -> ImagePixels:
        """The photograph with that many pixels averaged along an edge, or fewer where it, or what its mask leaves, is
        small."""
        reduction = min(reduction, min(self.whole.image.shape[:2]) // SMALLEST)
        small = self.whole.reduced(reduction)
        return small if small.count else self.reduced(reduction // 2)

    def source(self, reduction: int, rays: int) -> ImagePixels:
        """What a round draws from."""
        if reduction not in self.sources:
            small = self.reduced(reduction)
            region = self.region if small.factor == 1 else shrunk(self.region, small.factor)
            self.sources[reduction] = small if bool(region.all()) else small.within(region, rays)
        return self.sources[reduction]

    def judged(self, reduction: int, rays: int, device: torch.device) -> Pixels:
        """Random pixels of the whole picture, always the same ones."""
        return self.reduced(reduction).draw(rays, torch.Generator().manual_seed(self.seed)).to(device)

    def losses(
        self, scene: PosedScene, poses: Float[Tensor, "count 3 4"], reduction: int, rays: int
    ) -> Float[Tensor, "count"]:
        """Share of the photograph's variance that each pose leaves unexplained, on `judged` pixels."""
        return unexplained(scene.renderer, self.dataset, self.judged(reduction, rays, scene.device), poses)


def whole_image(scene: PosedScene, dataset: InputDataset, index: int, name: str) -> ImagePixels:
    """A photograph on the field's background.

    Raises:
        HashPoseError: it cannot be read, or shows nothing outside of its mask.
    """
    read = ImagePixels(dataset, index)
    image = ImagePixels.of(index, scene.renderer.composite(read.image).cpu().contiguous(), read.mask)
    check_visible(image, name)
    return image


def check_visible(image: ImagePixels, name: str) -> None:
    """Raises HashPoseError if a photograph, without alpha, shows nothing outside of its mask."""
    if image.count == 0:
        raise HashPoseError(f"The mask of {name} leaves no pixel, so it cannot be located.")
    colors = image.image if image.mask is None else image.image[image.mask][None]
    if float(colors.flatten(0, 1).var(dim=0, correction=0).mean()) < ONE_COLOUR:
        raise HashPoseError(f"{name} has one colour only, so it cannot be located.")


class Localizer:
    """Looks for photographs in a trained field.

    Args:
        scene: the field, the training images and their poses.
        config: settings.
        sources: what proposes further candidates for an image.
        enough: whether what was made of proposed and given poses is not searched beyond; None always searches.

    Raises:
        HashPoseError: a setting is out of range.
    """

    def __init__(
        self,
        scene: PosedScene,
        config: Optional[SearchConfig] = None,
        sources: Sequence[CandidateSource] = (),
        enough: Optional[Callable[[Localization], bool]] = None,
    ) -> None:
        self.scene, self.config, self.sources = scene, config or SearchConfig(), tuple(sources)
        self.enough = enough
        self.config.validate()
        self.training = scene.poses.refined_camera_to_worlds().detach()
        self.focus = focus(self.training)
        self.distance = float((self.training[:, :, 3] - self.focus).norm(dim=-1).median().clamp(min=1e-6))

    def localize(
        self, dataset: InputDataset, indices: Sequence[int], starts: Optional[Sequence[Start]] = None
    ) -> List[Localization]:
        """Looks for photographs, all of them at once.

        Args:
            dataset: that holds them, with their intrinsics. Their poses are ignored.
            indices: which of its images.
            starts: what is known of each; nothing by default.

        Raises:
            HashPoseError: a mask leaves no pixel of an image, or it has one colour only.
        """
        queries = [_Query(self.scene, dataset, index, self.config) for index in indices]
        known = list(starts or [Start()] * len(queries))
        proposed = [self._proposed(query, start) for query, start in zip(queries, known)]
        results: List[Optional[Localization]] = [None] * len(queries)
        if self.enough is not None:
            some = [place for place, poses in enumerate(proposed) if len(poses)]
            first = self._searched(
                [queries[place] for place in some],
                [known[place] for place in some],
                [self._best(queries[place], proposed[place], self._count(LAST_ROUNDS[0])) for place in some],
                LAST_ROUNDS,
            )
            for place, result in zip(some, first):
                if self.enough(result):
                    results[place] = result
        left = [place for place, result in enumerate(results) if result is None]
        searched = self._searched(
            [queries[place] for place in left],
            [known[place] for place in left],
            [self._hypotheses(queries[place], known[place], proposed[place]) for place in left],
            ROUNDS,
        )
        for place, result in zip(left, searched):
            results[place] = result
        return [result for result in results if result is not None]

    def _searched(
        self,
        queries: Sequence[_Query],
        known: Sequence[Start],
        hypotheses: List[Float[Tensor, "_ 3 4"]],
        rounds: Sequence[Round],
    ) -> List[Localization]:
        """What rounds make of hypotheses."""
        if not queries:
            return []
        agreements = [1.0] * len(queries)
        for number, stage in enumerate(rounds):
            count = self._count(stage)
            if number:  # the best of the last round
                hypotheses = [self._survivors(query, poses, count, stage) for query, poses in zip(queries, hypotheses)]
            optimized = self._optimized(queries, hypotheses, stage)
            if count == 1:  # what did not get better stays
                optimized = [torch.cat(pair) for pair in zip(optimized, hypotheses)]
            hypotheses = optimized
            judged = [
                query.losses(self.scene, poses, stage.reduction, JUDGING_RAYS * (1 if count > 4 else 4))
                for query, poses in zip(queries, hypotheses)
            ]
            orders = [values.argsort() for values in judged]
            hypotheses = [poses[order] for poses, order in zip(hypotheses, orders)]
            losses = [values[order] for values, order in zip(judged, orders)]
            if 1 < count <= 4:
                agreements = [self._agreement(*pair) for pair in zip(hypotheses, losses)]
        return [
            self._result(query, poses[0], start.pose, agreement)
            for query, poses, start, agreement in zip(queries, hypotheses, known, agreements)
        ]

    # -- where to begin ------------------------------------------------------------------------------------------------

    def _count(self, stage: Round) -> int:
        """Hypotheses that take part in a round."""
        return max(self.config.hypotheses // stage.divisor, 1)

    def _proposed(self, query: _Query, start: Start) -> Float[Tensor, "count 3 4"]:
        """What is known and proposed for a photograph: the given pose first."""
        given = [] if start.pose is None else [start.pose.to(self.training)[None]]
        if given and self.config.hypotheses == 1:
            return given[0]
        if start.candidates is not None:
            given.append(start.candidates.to(self.training))
        given += [source(self.scene, query.dataset, query.index).to(self.training) for source in self.sources]
        return torch.cat([self.training[:0], *given])

    def _hypotheses(
        self, query: _Query, start: Start, proposed: Float[Tensor, "some 3 4"]
    ) -> Float[Tensor, "count 3 4"]:
        """Poses that the search for a photograph begins at: a given one, and of the training cameras' poses, what else
        is proposed, and draws around the given pose or else around all of these, those that explain it best."""
        wanted = self.config.hypotheses
        generator = torch.Generator().manual_seed(self.config.seed + 7919 * query.index)
        if start.pose is None:
            candidates = torch.cat([self.training, proposed])
            drawn = self._around(candidates, DRAWS * wanted, math.radians(BETWEEN), generator)
            return self._best(query, torch.cat([candidates, drawn]), wanted)
        given, others = proposed[:1], proposed[1:]
        if wanted == 1:
            return given
        drawn = self._around(given, DRAWS * wanted, math.radians(self.config.angle), generator)
        return torch.cat([given, self._best(query, torch.cat([self.training, others, drawn]), wanted - 1)])

    def _best(self, query: _Query, poses: Float[Tensor, "count 3 4"], wanted: int) -> Float[Tensor, "some 3 4"]:
        """The poses of the smallest residuals, the least first."""
        return poses[query.losses(self.scene, poses, ROUNDS[0].reduction, RANKING_RAYS).argsort()[:wanted]]

    def _survivors(
        self, query: _Query, poses: Float[Tensor, "some 3 4"], count: int, stage: Round
    ) -> Float[Tensor, "count 3 4"]:
        """What takes part in a round: the best of the last one, and copies of these that are turned."""
        copies = count // 2 if stage.jitter else 0
        best = poses[: count - copies]
        generator = torch.Generator().manual_seed(self.config.seed + 7919 * query.index + stage.divisor)
        return torch.cat(
            [best, self._around(best[:copies], copies, math.radians(stage.jitter), generator, COPIES_SHIFT)]
        )

    def _around(
        self,
        poses: Float[Tensor, "some 3 4"],
        count: int,
        angle: float,
        generator: torch.Generator,
        spread: float = 1.0,
    ) -> Float[Tensor, "count 3 4"]:
        """Draws about poses, each in turn: turned about the point that all cameras look at by up to an angle, and then
        shifted a little; `spread` says by how much less than usual."""
        if count == 0:
            return poses[:0]
        times = [count // len(poses) + (row < count % len(poses)) for row in range(len(poses))]
        drawn = torch.cat(
            [turned(pose, self.focus, some, angle, generator) for pose, some in zip(poses, times) if some]
        )
        shifts = 0.1 * spread * self.distance * (2 * torch.rand(count, 3, generator=generator) - 1)
        drawn[:, :, 3] += shifts.to(drawn)
        return drawn

    # -- rounds --------------------------------------------------------------------------------------------------------

    def schedule(self, stage: Round, count: int) -> Tuple[int, int]:
        """Steps of a round, and rays of each of its hypotheses in a step."""
        total = stage.share * self.config.rays / count
        rays = max(min(round(total / stage.steps), MOST_RAYS), 8)
        return max(round(total / rays), 1), rays

    def _optimized(
        self, queries: Sequence[_Query], hypotheses: Sequence[Float[Tensor, "_ 3 4"]], stage: Round
    ) -> List[Float[Tensor, "_ 3 4"]]:
        counts = [len(poses) for poses in hypotheses]
        steps, rays = self.schedule(stage, max(counts))
        images = [query.source(stage.reduction, rays) for query, count in zip(queries, counts) for _ in range(count)]
        indices = [query.index for query, count in zip(queries, counts) for _ in range(count)]
        found = optimize_cameras(
            self.scene.renderer,
            posed_cameras(queries[0].dataset, torch.cat(list(hypotheses)), self.scene.device, indices),
            images,
            self.config.side,
            steps,
            rays,
            self.config.lr * stage.rate,
            last_rate=LAST_RATE,
            loss=self.config.loss,
            pivot=self.focus,
            unit=self.distance,
        )
        return list(found.split(counts))

    def _agreement(self, poses: Float[Tensor, "count 3 4"], losses: Float[Tensor, "count"]) -> float:
        """Share of the weight, which falls with the fourth power of the loss (Loc-NeRF), that lies where the first pose
        is: within 10 degrees, by which copies are turned at most, and a tenth of the distance."""
        relative = poses[:, :, :3].mT @ poses[0, :, :3]
        cosines = (relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
        near = (poses[:, :, 3] - poses[0, :, 3]).norm(dim=-1) < 0.1 * self.distance
        near &= cosines > math.cos(math.radians(10.0))
        weights = (losses[0].clamp(min=1e-9) / losses.clamp(min=1e-9)) ** 4
        return float((weights * near).sum() / weights.sum())

    def _result(
        self, query: _Query, pose: Float[Tensor, "3 4"], start: Optional[Float[Tensor, "3 4"]], agreement: float
    ) -> Localization:
        """The better of what was found and the given start."""
        poses = pose[None] if start is None else torch.stack([pose, start.to(pose)])
        pixels = query.judged(1, FINAL_RAYS, self.scene.device)
        residuals = unexplained(self.scene.renderer, query.dataset, pixels, poses)
        variance = float(self.scene.renderer.composite(pixels.colors).var(dim=0).mean().clamp(min=1e-4))
        kept = start is not None and bool(residuals[1] <= residuals[0])
        residual = float(residuals[int(kept)])
        return Localization(
            pose=poses[int(kept)],
            residual=residual,
            mse=residual * variance,
            start_residual=None if start is None else float(residuals[1]),
            agreement=agreement,
            kept_start=kept,
            matches=max(
                (source.agreeing(self.scene, query.dataset, query.index, poses[int(kept)]) for source in self.sources),
                default=0,
            ),
        )
