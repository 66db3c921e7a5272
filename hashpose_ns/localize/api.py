"""Where photographs were taken, in the frame of a run's input."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity, pose_errors
from hashpose_ns.errors import HashPoseError
from hashpose_ns.export.frame import GivenPoses, InputFrame, input_frame, rigid
from hashpose_ns.localize.foreign import scene_of
from hashpose_ns.localize.matching import MatchedPoses
from hashpose_ns.localize.photographs import Photographs, lens_of, photograph_files
from hashpose_ns.localize.starts import KnownStarts
from hashpose_ns.photometry.localize import (
    Acceptance,
    Localization,
    Localizer,
    SearchConfig,
    Start,
    acceptance,
    whole_image,
)
from hashpose_ns.photometry.pixels import ImagePixels
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.uncertainty import pose_covariance, summed
from hashpose_ns.runs.load import load_trained_pipeline
from nerfstudio.data.datasets.base_dataset import InputDataset


@dataclass(frozen=True, eq=False)
class LocalizedImage:
    """What was found out about a photograph."""

    name: str
    """Unique among those looked for together."""
    filename: Path
    """Absolute."""
    found: bool
    """Whether the photograph's place was found. If not, the pose is the best guess, and no good one."""
    camera_to_world: Float[Tensor, "3 4"]
    """In the frame of the run's input, float64, OpenGL axes."""
    learned_camera_to_world: Float[Tensor, "3 4"]
    """The same pose in the frame of the trained field, float32."""
    start: Optional[Float[Tensor, "3 4"]]
    """The given pose in the frame of the run's input, if there was one."""
    residual: float
    """Share of the photograph's variance that the field does not explain."""
    limit: float
    """The largest residual that counts as explained, by the training images' own."""
    psnr: float
    """Of the render against the photograph, in dB."""
    start_residual: Optional[float]
    """Residual of the given pose."""
    agreement: float
    """Share of the last hypotheses, weighted by how well they explain the photograph, that ended at this pose."""
    matches: int
    """Keypoints that the pose sees where those of training images they match are on the field's surface."""
    kept_start: bool
    """Whether nothing was found that scores better than the given pose, which stays then."""
    rotation_std_deg: float
    """Root of the summed variances of turns, in degrees, as if the field were exact."""
    translation_std: float
    """Root of the summed variances of shifts, in units of the input."""
    moved: Optional[Tuple[float, float]]
    """Angle in degrees and distance of the centres, in units of the input, from the given pose."""
    intrinsics_from: str
    """Where the camera's intrinsics come from, in words."""

    def as_dict(self) -> Dict[str, Any]:
        """Ready for JSON."""
        return {
            "name": self.name,
            "file_path": self.filename.as_posix(),
            "camera_to_world": self.camera_to_world.tolist(),
            "residual": self.residual,
            "limit": self.limit,
            "psnr": self.psnr,
            "start_residual": self.start_residual,
            "agreement": self.agreement,
            "matches": self.matches,
            "kept_start": self.kept_start,
            "rotation_std_deg": self.rotation_std_deg,
            "translation_std": self.translation_std,
            "moved": None if self.moved is None else {"rotation_deg": self.moved[0], "center": self.moved[1]},
            "intrinsics_from": self.intrinsics_from,
        }


class Search:
    """Photographs that are looked for in one run.

    Args:
        run: the config.yml of a trained run, or a loaded run's `scene`.
        config: settings of the search.

    Raises:
        HashPoseError: the run cannot be loaded, has no frame to give poses in, or a setting is out of range.
    """

    def __init__(self, run: Union[Path, PosedScene], config: Optional[SearchConfig] = None) -> None:
        self.config = config or SearchConfig()
        self.config.validate()
        if isinstance(run, Path):
            run = scene_of(load_trained_pipeline(run, any_method=True))
        self.scene = run
        self.given = GivenPoses.of(run)
        self.frame: InputFrame = input_frame(run.poses, self.given)
        self.sources = (MatchedPoses(run),) if self.config.matches else ()
        self._acceptance: Optional[Acceptance] = None

    @property
    def acceptance(self) -> Acceptance:
        """Which residuals count as explained."""
        if self._acceptance is None:
            self._acceptance = acceptance(self.scene)
        return self._acceptance

    def photographs(
        self,
        filenames: Sequence[Path],
        starts: KnownStarts,
        masks: Optional[Sequence[Optional[Path]]] = None,
    ) -> Photographs:
        """The photographs with their intrinsics, each read once to see that it can be.

        Raises:
            HashPoseError: an image cannot be read, shows nothing, or its intrinsics are unknown.
        """
        lenses = [lens_of(path, self.scene, said) for path, said in zip(filenames, starts.intrinsics)]
        photographs = Photographs(self.scene, filenames, lenses, masks)
        for index, filename in enumerate(filenames):
            whole_image(self.scene, photographs, index, str(filename))
        return photographs

    def to_input(self, learned: Float[Tensor, "count 3 4"]) -> Float[Tensor, "count 3 4"]:
        """Poses of the learned frame in the frame of the input, float64."""
        aligned = self.frame.similarity.apply_to_poses(learned.detach().cpu().double())
        return rigid(self.frame.to_nerfstudio.inverse().apply_to_poses(aligned))

    def to_learned(self, poses: Float[Tensor, "count 3 4"]) -> Float[Tensor, "count 3 4"]:
        """Poses of the input's frame in the learned frame, float32 on the field's device."""
        there = self.frame.to_nerfstudio.apply_to_poses(poses.detach().cpu().double())
        return self.frame.similarity.inverse().apply_to_poses(there).float().to(self.scene.device)

    def localize(
        self,
        photographs: Photographs,
        names: Sequence[str],
        starts: KnownStarts,
        done: Callable[[int], None] = lambda count: None,
    ) -> List[LocalizedImage]:
        """Looks for all photographs, some of them at once.

        Args:
            photographs: what is looked for.
            names: of each.
            starts: what is known of each.
            done: told how many photographs are done, whenever some are.
        """
        limits = self.acceptance
        results: List[LocalizedImage] = []
        for begin in range(0, len(photographs), self.config.images):
            some = list(range(begin, min(begin + self.config.images, len(photographs))))
            known = [starts.poses[index] for index in some]
            learned = [Start(None if pose is None else self.to_learned(pose[None])[0]) for pose in known]
            for index, pose, found in zip(some, known, self.found(photographs, some, learned)):
                results.append(self._result(photographs, index, names[index], pose, found, limits))
            done(len(some))
        return results

    def found(self, dataset: InputDataset, indices: Sequence[int], starts: Sequence[Start]) -> List[Localization]:
        """As `Localizer.localize`; what was not found is looked for again, and the better result stays."""
        localizer = Localizer(self.scene, self.config, self.sources, self.acceptance.found)
        results = localizer.localize(dataset, indices, starts)
        for attempt in range(1, self.config.attempts if self.config.hypotheses > 1 else 1):
            left = [place for place, result in enumerate(results) if not self.acceptance.found(result)]
            if not left:
                break
            again = Localizer(self.scene, replace(self.config, seed=self.config.seed + attempt), self.sources)
            tried = again.localize(dataset, [indices[place] for place in left], [starts[place] for place in left])
            for place, result in zip(left, tried):
                if self.acceptance.found(result) or result.residual < results[place].residual:
                    results[place] = result
        return results

    def _result(
        self,
        photographs: Photographs,
        index: int,
        name: str,
        start: Optional[Float[Tensor, "3 4"]],
        found: Localization,
        limits: Acceptance,
    ) -> LocalizedImage:
        pose = self.to_input(found.pose[None])
        if start is not None and found.kept_start:
            pose = start[None]
        moved = None
        if start is not None:
            errors = pose_errors(pose, start[None], similarity=Similarity.identity())
            moved = float(errors.rotation_deg[0]), float(errors.center[0])
        generator = torch.Generator().manual_seed(0)
        covariance = pose_covariance(
            self.scene.renderer, photographs, ImagePixels(photographs, index), found.pose, generator
        )
        deviations = summed(covariance)
        return LocalizedImage(
            name=name,
            filename=photographs.image_filenames[index],
            found=limits.found(found),
            camera_to_world=pose[0],
            learned_camera_to_world=found.pose.detach().cpu(),
            start=start,
            residual=found.residual,
            limit=limits.limit,
            psnr=-10.0 * math.log10(max(found.mse, 1e-10)),
            start_residual=found.start_residual,
            agreement=found.agreement,
            matches=found.matches,
            kept_start=found.kept_start,
            rotation_std_deg=deviations[0],
            translation_std=deviations[1] * self.frame.unit,
            moved=moved,
            intrinsics_from=photographs.lenses[index].origin,
        )


def localize(
    run: Union[Path, PosedScene],
    image: Path,
    start: Optional[Float[Tensor, "3 4"]] = None,
    config: Optional[SearchConfig] = None,
) -> LocalizedImage:
    """Where a photograph was taken. For several, make one `Search`.

    Args:
        run: the config.yml of a trained run, or a loaded run's `scene`.
        image: the photograph.
        start: a rough pose in the frame of the run's input, OpenGL axes.
        config: settings of the search.

    Raises:
        HashPoseError: the run or the image cannot be used.
    """
    search = Search(run, config)
    filenames, names = photograph_files([image])
    if len(filenames) != 1:
        raise HashPoseError(f"{image} is a folder; give one image, or make a Search for all of them.")
    known = KnownStarts.none(1)
    if start is not None:
        known = replace(known, poses=[rigid(start[None])[0]])
    return search.localize(search.photographs(filenames, known), names, known)[0]
