"""The se(3) camera optimizer: initial poses, the learned correction, and the only place where the two are composed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Literal, Optional, Protocol, Sequence, Set, Tuple, Type, Union

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hashpose_ns.cameras.lie import exp_map_SE3, log_map_SE3
from hashpose_ns.cameras.settling import Settling, SettlingConfig
from hashpose_ns.cameras.trusted import TrustedStartConfig
from hashpose_ns.cameras.warp import WarpConfig
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.utils import poses as pose_utils


class PoseTerm(Protocol):
    """A term of the loss that looks at poses alone."""

    @property
    def until(self) -> float:
        """Fraction of training at which it has faded out."""

    def __call__(self, camera_to_worlds: Float[Tensor, "num_cameras 3 4"], progress: float) -> Float[Tensor, ""]:
        """The term.

        Args:
            camera_to_worlds: all refined poses, OpenGL axes.
            progress: fraction of training.
        """


@dataclass
class PoseOptimizerConfig(CameraOptimizerConfig):
    """Configuration of the pose refinement."""

    _target: Type = field(default_factory=lambda: PoseOptimizer)
    mode: Literal["off", "SE3"] = "SE3"
    """`SE3` refines the poses, `off` keeps them as they are."""
    model: Literal["se3", "local-to-global"] = "se3"
    """What moves: cameras, or their rays.
    - se3: one twist per camera.
    - local-to-global: each ray by itself; the camera's pose is registered to its rays (L2G-NeRF)."""
    warp: WarpConfig = field(default_factory=WarpConfig)
    """How rays move, with `model` = local-to-global."""
    side: Literal["world", "camera", "orbit"] = "world"
    """Where the correction acts.
    - world: refined = exp(xi) * initial, a motion about the world's origin (BARF).
    - camera: refined = initial * exp(xi), a motion about the camera's own centre.
    - orbit: about the world's origin, with xi along the camera's axes.
    With orbit Adam can tell distance, shift, roll and tilt apart."""
    start: float = 0.02
    """Poses are frozen until this fraction of training.
    Early gradients come from an untrained field and throw poses off."""
    warmup: float = 0.02
    """Fraction of training, from `start` on, during which the poses' learning rate rises linearly from 0."""
    rotation_start: float = 0.0
    """Cameras are shifted but not turned until this fraction of training.
    If pictures lie far from where poses put them, early turns lead astray."""
    settling: SettlingConfig = field(default_factory=SettlingConfig)
    """Lowers the rate of poses that have arrived, and in the end stops them."""
    trusted: TrustedStartConfig = field(default_factory=TrustedStartConfig)
    """In place of `start`, `warmup` and others where training starts at trusted poses."""
    frozen_cameras: Tuple[str, ...] = ()
    """Cameras that keep their initial pose exactly.
    Image file names (with or without folder) or indices into the training images."""
    trans_l2_penalty: float = 0.0
    """Weight of a squared penalty on the translation part of the corrections; 0 leaves it out."""
    rot_l2_penalty: float = 0.0
    """Weight of a squared penalty on the rotation part (radians) of the corrections; 0 leaves it out."""


def frozen_indices(frozen: Sequence[str], image_names: Sequence[str]) -> list[int]:
    """Training-camera indices meant by file names or numbers.

    Raises:
        HashPoseError: a name matches no training image, or several.
    """
    indices = []
    for name in frozen:
        paths = [Path(image).as_posix() for image in image_names]
        matches = [i for i, path in enumerate(paths) if path == name or path.endswith("/" + name)]
        if not matches and name.isdecimal() and int(name) < len(image_names):
            matches = [int(name)]
        if len(matches) == 1:
            indices.append(matches[0])
            continue
        if matches:
            raise HashPoseError(
                f"The frozen camera '{name}' matches {len(matches)} training images; write more of its path, such as "
                f"'{image_names[matches[0]]}'."
            )
        near = difflib.get_close_matches(name, [Path(image).name for image in image_names], n=1, cutoff=0.0)
        raise HashPoseError(
            f"The frozen camera '{name}' is not one of the {len(image_names)} training images; the nearest name is "
            f"'{near[0] if near else ''}'. Images held out for evaluation cannot be frozen."
        )
    return sorted(set(indices))


class PoseOptimizer(CameraOptimizer):
    """Learned se(3) corrections of the training cameras.

    Poses are camera-to-world [3, 4] matrices in OpenGL axes and nerfstudio's world. A correction is a twist
    [translation, rotation] (scene units, radians), mapped to SE(3) by the library's exponential with the V matrix.

    Args:
        config: settings.
        num_cameras: number of training cameras N.
        device: where the parameters live.
        initial_camera_to_worlds: [N, 3, 4] poses that training starts from.
        reference_camera_to_worlds: [N, 3, 4] poses that errors are measured against.
        image_names: [N] file names, with folders, by which cameras can be frozen.
    """

    config: PoseOptimizerConfig
    initial_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """The poses that came in: given, perturbed or unknown."""
    base_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """Where refinement starts, and what corrections correct: the initial poses, or better ones that matches gave."""
    trusted: Bool[Tensor, ""]
    """Whether matches say that the start is right to a fraction of a degree: then `config.trusted` is the schedule."""
    reference_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    trainable: Tensor
    fallen_back: Float[Tensor, ""]
    """Factor on the poses' learning rate since cameras were put back to their initial poses; 1 where they were not."""

    def __init__(
        self,
        config: PoseOptimizerConfig,
        num_cameras: int,
        device: Union[torch.device, str],
        initial_camera_to_worlds: Optional[Float[Tensor, "num_cameras 3 4"]] = None,
        reference_camera_to_worlds: Optional[Float[Tensor, "num_cameras 3 4"]] = None,
        image_names: Sequence[str] = (),
        **kwargs,
    ) -> None:
        super().__init__(config, num_cameras, device)
        if initial_camera_to_worlds is None:
            initial_camera_to_worlds = torch.eye(4)[:3].repeat(num_cameras, 1, 1)
        if reference_camera_to_worlds is None:
            reference_camera_to_worlds = initial_camera_to_worlds
        self.image_names = list(image_names)
        trainable = torch.ones(num_cameras, dtype=torch.bool)
        trainable[frozen_indices(config.frozen_cameras, self.image_names)] = False
        self.register_buffer("initial_camera_to_worlds", initial_camera_to_worlds.clone().float().to(device))
        self.register_buffer("base_camera_to_worlds", self.initial_camera_to_worlds.clone())
        self.register_buffer("trusted", torch.zeros((), dtype=torch.bool, device=device))
        self.register_buffer("reference_camera_to_worlds", reference_camera_to_worlds.clone().float().to(device))
        self.register_buffer("trainable", trainable.to(device), persistent=False)
        self.register_buffer("fallen_back", torch.ones((), device=device))
        # The same as numbers: they are asked for every step, and reading a GPU's buffer waits for it.
        self.rate_scale = 1.0
        self.is_trusted = False
        self.rebased = False
        """Whether refinement starts at other poses than the initial ones."""
        self.register_load_state_dict_post_hook(lambda module, _: module._restore())
        self.active = config.mode != "off"
        """Whether photographs move poses now, see `set_progress`. Standing still means no gradient at all: Adam's
        moments would remember zeros."""
        self.terms: Dict[str, PoseTerm] = {}
        """What else the loss says of the refined poses, by name."""
        self.progress = 0.0
        """How far training is, see `set_progress`."""
        self.pulled = False
        """Whether they move poses now. They do so before photographs, and not from a trusted start: it is their optimum
        already, and steps from a few matches at a time would only shake it."""
        self.turns = True
        """Whether rotations receive gradients now. Before, theirs are zero, as shifts are part of the same parameter;
        Adam remembers that, and for some 50 steps turns up to twice as fast as its rate says."""
        self.paused = False
        """Whether poses are paused from the viewer. State of the process, not of a checkpoint."""
        self.held: Set[int] = set()
        """Cameras held from the viewer. State of the process, not of a checkpoint."""
        self._held: Optional[Tuple[Tuple[int, ...], Tensor]] = None
        self.settling = Settling(config.settling, num_cameras).to(device) if config.settling.decay != 1 else None
        if not (0 <= config.start and 0 <= config.warmup and config.start + config.warmup <= 1):
            raise HashPoseError("camera-optimizer.start and .warmup are fractions of training; their sum is at most 1.")
        config.trusted.validate()
        if not 0 <= config.rotation_start < 1:
            raise HashPoseError("camera-optimizer.rotation-start is a fraction of training, below 1.")

    def _restore(self) -> None:
        self.rate_scale = float(self.fallen_back)
        self.is_trusted = bool(self.trusted)
        self.rebased = not torch.equal(self.base_camera_to_worlds, self.initial_camera_to_worlds)

    @property
    def schedule(self) -> Union[PoseOptimizerConfig, TrustedStartConfig]:
        """Whose `start` and `warmup` hold."""
        return self.config.trusted if self.is_trusted else self.config

    @property
    def has_moved(self) -> bool:
        """Whether any camera is elsewhere than its initial pose."""
        return self.rebased or self.is_corrected

    @property
    def is_corrected(self) -> bool:
        """Whether any camera is elsewhere than where refinement started."""
        return self.config.mode != "off" and bool(self.pose_adjustment.any())

    def doubtful_cameras(self, near: bool = False) -> Set[int]:
        """Cameras that may be far from where they belong: all of them, but from a trusted start only those that it left
        at their initial poses while it moved others.

        Args:
            near: those that may be a few degrees off. These are all of them also where the start moved any: matches
                that are wrong in the same way can hold a camera there.
        """
        if not self.is_trusted:
            return set(range(self.num_cameras))
        if not self.rebased:
            return set()
        if near:
            return set(range(self.num_cameras))
        moved = (self.base_camera_to_worlds != self.initial_camera_to_worlds).flatten(1).any(dim=1).tolist()
        return {index for index in range(self.num_cameras) if not moved[index]}

    @torch.no_grad()
    def rebase(self, camera_to_worlds: Float[Tensor, "num_cameras 3 4"], trusted: bool) -> None:
        """Has refinement start at other poses than the initial ones. Frozen cameras stay at theirs.

        Args:
            camera_to_worlds: rigid poses, OpenGL axes.
            trusted: whether they are right to a fraction of a degree.
        """
        start = camera_to_worlds.to(self.initial_camera_to_worlds)
        self.base_camera_to_worlds.copy_(
            torch.where(self.trainable[:, None, None], start, self.initial_camera_to_worlds)
        )
        self.trusted.fill_(trusted)
        if self.config.mode != "off":
            self.pose_adjustment.zero_()
        self._restore()

    @torch.no_grad()
    def put_back(self, indices: Sequence[int]) -> None:
        """Puts cameras back to where refinement started, exactly."""
        self.pose_adjustment[list(indices)] = 0.0

    @torch.no_grad()
    def fall_back(self, rate: float) -> None:
        """Puts all cameras that are not held back to where refinement started.

        Args:
            rate: factor on their learning rate from then on; 0 keeps them there.
        """
        going = [index for index in range(self.num_cameras) if index not in self.held]
        self.put_back(going)
        self.fallen_back *= rate
        self._restore()
        self.active = self.active and rate > 0
        self.pulled = self.pulled and rate > 0
        if self.settling is not None:
            self.settling.forget()

    @property
    def terms_until(self) -> float:
        """Fraction of training at which all terms have faded out; 0 where they are not needed."""
        return 0.0 if self.is_trusted else max((term.until for term in self.terms.values()), default=0.0)

    def set_progress(self, progress: float) -> None:
        """Tells how far training is, as a fraction of it."""
        self.progress = progress
        moving = self.config.mode != "off" and self.rate_factor(progress) > 0
        self.active = moving and progress >= self.schedule.start
        self.pulled = moving and progress < self.terms_until
        self.turns = progress >= self.config.rotation_start

    @property
    def free_from(self) -> float:
        """Fraction of training from which poses move at their full rate in all their parameters."""
        return max(self.schedule.start + self.schedule.warmup, self.config.rotation_start)

    def rate_factor(self, progress: float) -> float:
        """Factor on the poses' learning rate at a fraction of training; 0 before `start` where no terms move them,
        when they have settled, and where they were put back for good."""
        schedule = self.schedule
        settled = self.settling.factor if self.settling is not None else 1.0
        factor = self.rate_scale * settled * (self.config.trusted.rate if self.is_trusted else 1.0)
        if progress < schedule.start:
            return factor if progress < self.terms_until else 0.0
        return factor * (min((progress - schedule.start) / schedule.warmup, 1.0) if schedule.warmup > 0 else 1.0)

    def world_corrections(self, by_terms: bool = False) -> Float[Tensor, "num_cameras 3 4"]:
        """Rigid motions D of the world with refined = D * initial, for all training cameras, [N, 3, 4].

        Args:
            by_terms: whether they have a gradient when `terms` move poses, in place of when photographs do.
        """
        if self.config.mode == "off":
            return self._to_base() if self.rebased else self._identity().repeat(self.num_cameras, 1, 1)
        corrections = self._corrections_of_base(by_terms)
        if self.rebased:
            corrections = pose_utils.multiply(corrections, self._to_base())
        return self._but_frozen(corrections)

    def _corrections_of_base(self, by_terms: bool) -> Float[Tensor, "num_cameras 3 4"]:
        """Rigid motions D of the world with refined = D * base, of the learned corrections alone."""
        twists = self._moving_twists(by_terms)
        return corrections_to_world(exp_map_SE3(twists), self.base_camera_to_worlds, self.config.side)

    def _to_base(self) -> Float[Tensor, "num_cameras 3 4"]:
        """Rigid motions of the world from the initial poses to where refinement starts."""
        return pose_utils.multiply(self.base_camera_to_worlds, pose_utils.inverse(self.initial_camera_to_worlds))

    def _identity(self) -> Float[Tensor, "3 4"]:
        return torch.eye(3, 4, device=self.initial_camera_to_worlds.device)

    def _but_frozen(self, corrections: Float[Tensor, "num_cameras 3 4"]) -> Float[Tensor, "num_cameras 3 4"]:
        """The corrections, and none of the frozen cameras."""
        if not self.config.frozen_cameras:
            return corrections
        return torch.where(self.trainable[:, None, None], corrections, self._identity())

    def _moving_twists(self, by_terms: bool = False) -> Float[Tensor, "num_cameras 6"]:
        """The corrections; frozen and held ones are detached."""
        twists: Tensor = self.pose_adjustment
        if self.paused or not (self.pulled if by_terms else self.active):
            return twists.detach()
        if not self.turns and not by_terms:
            twists = torch.cat([twists[:, :3], twists[:, 3:].detach()], dim=-1)
        if not self.held:
            return twists
        return torch.where(self._held_mask(twists.device), twists.detach(), twists)

    def _held_mask(self, device: torch.device) -> Bool[Tensor, "num_cameras 1"]:
        """Which cameras are held; sent to the device when that has changed."""
        held = tuple(sorted(self.held))
        if self._held is None or self._held[0] != held or self._held[1].device != device:
            mask = torch.zeros(self.num_cameras, 1, dtype=torch.bool)
            mask[list(held)] = True
            self._held = held, mask.to(device)
        return self._held[1]

    @torch.no_grad()
    def set_refined(self, index: int, camera_to_world: Float[Tensor, "3 4"]) -> None:
        """Puts a camera somewhere: its correction becomes the twist that takes it there from where it started.

        Args:
            index: a training camera that is refined.
            camera_to_world: rigid pose, OpenGL axes.
        """
        self.pose_adjustment[index] = self._twist_to(index, camera_to_world).to(self.pose_adjustment)

    def _twist_to(self, index: int, camera_to_world: Float[Tensor, "3 4"]) -> Float[Tensor, "6"]:
        """The correction that takes a camera from its base to a pose, float64."""
        start, target = self.base_camera_to_worlds[index].double(), camera_to_world.double()
        motion = pose_utils.multiply(target, pose_utils.inverse(start))
        frame = correction_frame(start, self.config.side)
        if frame is not None:
            motion = pose_utils.multiply(pose_utils.multiply(pose_utils.inverse(frame), motion), frame)
        return log_map_SE3(motion)

    def current_twists(self) -> Float[Tensor, "num_cameras 6"]:
        """Each camera's correction as it is now, without gradient: [translation, rotation] along `side`."""
        return self.pose_adjustment.detach()

    @torch.no_grad()
    def estimated_centers(self) -> Float[Tensor, "num_cameras 3"]:
        """Where cameras are by the last training step, cheap enough to be asked at every step."""
        return self.refined_camera_to_worlds()[..., 3]

    def refined_camera_to_worlds(self, by_terms: bool = False) -> Float[Tensor, "num_cameras 3 4"]:
        """The training cameras' poses as they are now, [N, 3, 4], in nerfstudio's world, OpenGL axes.

        Args:
            by_terms: as for `world_corrections`.
        """
        return pose_utils.multiply(self.world_corrections(by_terms), self.initial_camera_to_worlds)

    def forward(self, indices: Int[Tensor, "camera_indices"]) -> Float[Tensor, "camera_indices 3 4"]:
        """Camera-frame corrections: initial^-1 * refined, what nerfstudio's viewer multiplies from the right.

        Args:
            indices: indices of training cameras.
        Returns:
            Transformations from refined camera coordinates to initial camera coordinates, [n, 3, 4].
        """
        initial = self.initial_camera_to_worlds[indices]
        return pose_utils.multiply(pose_utils.inverse(initial), self.refined_camera_to_worlds()[indices])

    def apply_to_raybundle(self, raybundle: RayBundle) -> None:
        """Moves rays of training cameras, generated from the initial poses, to the refined poses, in place."""
        if self.config.mode == "off" and not self.rebased:
            return
        assert raybundle.camera_indices is not None
        move_rays(raybundle, self.world_corrections(), raybundle.camera_indices[..., 0])

    def apply_to_camera(self, camera: Cameras) -> Tensor:
        """Camera-to-world matrices to render a camera from: its own. The viewer's cameras have `cam_idx = 0`, and
        nerfstudio's optimizer would move them with the first training camera."""
        return camera.camera_to_worlds

    def get_loss_dict(self, loss_dict: dict) -> None:
        """Adds the squared penalties, where they are switched on, and the other terms."""
        if self.config.mode == "off":
            return
        self._add_terms(loss_dict)
        if self.config.trans_l2_penalty or self.config.rot_l2_penalty:
            squares = self._moving_twists().square()
            loss_dict["camera_opt_regularizer"] = (
                self.config.trans_l2_penalty * squares[:, :3].sum(-1).mean()
                + self.config.rot_l2_penalty * squares[:, 3:].sum(-1).mean()
            )

    def _add_terms(self, loss_dict: dict) -> None:
        if self.pulled and not self.paused:
            for name, term in self.terms.items():
                loss_dict[name] = term(self.refined_camera_to_worlds(by_terms=True), self.progress)

    def get_metrics_dict(self, metrics_dict: dict) -> None:
        """Pose errors are reported by the pipeline, from `cameras/alignment.py`."""

    def get_param_groups(self, param_groups: Dict) -> None:
        """Adds the group `camera_opt`, where poses are refined."""
        if self.config.mode != "off":
            param_groups["camera_opt"] = [self.pose_adjustment]


def corrections_to_world(
    corrections: Float[Tensor, "*batch 3 4"],
    camera_to_worlds: Float[Tensor, "*batch 3 4"],
    side: str,
    pivot: Optional[Float[Tensor, "3"]] = None,
) -> Float[Tensor, "*batch 3 4"]:
    """World-side motion D of each correction C, D = A C A^-1 with the frame A that corrections are measured in."""
    frame = correction_frame(camera_to_worlds, side, pivot)
    if frame is None:
        return corrections
    with torch.autocast(corrections.device.type, enabled=False):  # mixed precision would round the matrix products
        return pose_utils.multiply(pose_utils.multiply(frame, corrections), pose_utils.inverse(frame))


def correction_frame(
    camera_to_worlds: Float[Tensor, "*batch 3 4"], side: str, pivot: Optional[Float[Tensor, "3"]] = None
) -> Optional[Float[Tensor, "*batch 3 4"]]:
    """Camera-to-world poses of the frames in which corrections are measured: the camera's own on the camera side, its
    axes at the pivot (the world's origin by default) for `orbit`, None (the world's) on the world side."""
    if side == "orbit":
        centers = torch.zeros_like(camera_to_worlds[..., 3:])
        if pivot is not None:
            centers = centers + pivot[:, None].to(centers)
        return torch.cat([camera_to_worlds[..., :3], centers], dim=-1)
    return camera_to_worlds if side == "camera" else None


def move_rays(raybundle: RayBundle, motions: Float[Tensor, "num_cameras 3 4"], cameras: Int[Tensor, "*batch"]) -> None:
    """Applies each ray's camera's rigid world motion to its origin and direction, in place."""
    # What is gathered goes back by one scatter; plain indexing sorts first on a GPU.
    chosen = motions.index_select(0, cameras.flatten()).view(*cameras.shape, 3, 4)
    rotations, translations = chosen.split([3, 1], dim=-1)
    raybundle.origins = (rotations * raybundle.origins[..., None, :]).sum(-1) + translations.squeeze(-1)
    raybundle.directions = (rotations * raybundle.directions[..., None, :]).sum(-1)
