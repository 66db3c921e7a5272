"""Local-to-global registration (L2G-NeRF, Chen et al. 2023): rays move, and cameras are registered to them."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hashpose_ns.cameras.lie import exp_map_SE3
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig, corrections_to_world
from hashpose_ns.cameras.registration import register
from hashpose_ns.cameras.warp import Warp
from hashpose_ns.errors import HashPoseError
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.utils import poses as pose_utils

GRID = 8
"""Rows and columns of rays that poses are read from."""

ROUNDS = 5
"""Registrations to find from where a camera's rays have to start for it to be at a wanted pose. The part of its motion
that is not rigid is small, and each makes the error as many times smaller."""

MOVED = 1e-5
"""Smallest change of a pose's entries that is no rounding."""


def make_pose_optimizer(
    config: PoseOptimizerConfig, num_cameras: int, device: Union[torch.device, str], **known: Any
) -> PoseOptimizer:
    """The camera optimizer that the settings ask for.

    Args:
        config: settings.
        num_cameras, device: as for `PoseOptimizer`.
        known: what is known of the cameras, as for `LocalToGlobal`.

    Raises:
        HashPoseError: the settings don't go together.
    """
    if config.model == "se3" or config.mode == "off":
        return config.setup(num_cameras=num_cameras, device=device, **known)
    if config._target is not PoseOptimizer:
        raise HashPoseError(
            f"camera-optimizer.model local-to-global takes the place of {config.mode}; give --pipeline.model."
            "camera-optimizer.model se3."
        )
    return LocalToGlobal(config, num_cameras, device, **known)


class LocalToGlobal(PoseOptimizer):
    r"""Poses that are registered to rays, each of which moves by a twist of its own.

    A network gives ray j of camera i its twist :math:`\xi_{ij}`. With the camera's start :math:`P_i` the ray then has
    the pose :math:`P_{ij} = D(\xi_{ij}) P_i`, where D is a motion along `config.side`. For the ray's point
    :math:`p_{ij}` one unit in front of the camera, the camera's pose is

    .. math:: \arg\min_P \sum_j |P p_{ij} - P_{ij} p_{ij}|^2 + |P 0 - P_{ij} 0|^2

    and the minimum, a mean over points and coordinates, is `config.warp.weight` times a term of the loss. In a training
    step the sum is over the rays of the batch. Poses that others ask for come from a fixed grid of rays, and do not
    depend on which pixels were drawn.

    What concerns one camera acts on its registered pose: to put it somewhere is to start its rays elsewhere. A camera
    that is frozen or held has rays that don't move. At `config.warp.until`, after a fall-back, and from a trusted start
    on, cameras are refined by a twist each, as in `PoseOptimizer`.

    Args:
        config: settings.
        num_cameras, device, initial_camera_to_worlds, reference_camera_to_worlds, image_names: as for `PoseOptimizer`.
        half_extent: tangents of the half field of view in x and y that the grid covers.
    """

    grid: Float[Tensor, "points 3"]
    """Points one unit in front of a camera, in its frame, by which poses are read off the network."""
    warped_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """Where cameras' rays start."""
    estimated_camera_to_worlds: Float[Tensor, "num_cameras 3 4"]
    """Poses registered to the rays of the last training step. A camera with too few rays keeps an earlier one."""
    standing: Bool[Tensor, "num_cameras"]
    """Cameras whose rays don't move."""
    handed_over: Bool[Tensor, ""]
    """Whether cameras are refined by a twist each by now."""

    def __init__(
        self,
        config: PoseOptimizerConfig,
        num_cameras: int,
        device: Union[torch.device, str],
        initial_camera_to_worlds: Optional[Float[Tensor, "num_cameras 3 4"]] = None,
        reference_camera_to_worlds: Optional[Float[Tensor, "num_cameras 3 4"]] = None,
        image_names: Sequence[str] = (),
        half_extent: Tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__(config, num_cameras, device, initial_camera_to_worlds, reference_camera_to_worlds, image_names)
        if config.rotation_start > 0 or config.trans_l2_penalty > 0 or config.rot_l2_penalty > 0:
            raise HashPoseError(
                "camera-optimizer.rotation-start, .trans-l2-penalty and .rot-l2-penalty apply to one twist per camera; "
                "leave them at 0 with --pipeline.model.camera-optimizer.model local-to-global."
            )
        self.warp = Warp(config.warp, num_cameras).to(device)
        steps = (torch.arange(GRID) + 0.5) * (2 / GRID) - 1
        x, y = torch.meshgrid(half_extent[0] * steps, half_extent[1] * steps, indexing="ij")
        grid = torch.stack([x, y, -torch.ones_like(x)], dim=-1).view(-1, 3)
        self.register_buffer("grid", grid.to(device), persistent=False)
        self.register_buffer("warped_camera_to_worlds", self.base_camera_to_worlds.clone())
        self.register_buffer("estimated_camera_to_worlds", self.base_camera_to_worlds.clone())
        self.register_buffer("standing", ~self.trainable)
        self.register_buffer("handed_over", torch.zeros((), dtype=torch.bool, device=device))
        self.global_loss: Optional[Tensor] = None
        """How far the last step's rays are from rigid motions: mean square over points and coordinates."""
        self._frozen = set(torch.nonzero(self.standing).flatten().tolist())
        self._restore()

    def _restore(self) -> None:
        super()._restore()
        self.warping = not bool(self.handed_over)
        # Which cameras are frozen, as numbers: a GPU's buffer is not read at every step.
        self._still = set(torch.nonzero(self.standing).flatten().tolist())

    # -- where cameras are ---------------------------------------------------------------------------------------------

    def _corrections_of_base(self, by_terms: bool) -> Float[Tensor, "num_cameras 3 4"]:
        if not self.warping:
            return super()._corrections_of_base(by_terms)
        moves = not self.paused and (self.pulled if by_terms else self.active)
        with torch.set_grad_enabled(torch.is_grad_enabled() and moves):
            registered = self._registered(torch.arange(self.num_cameras, device=self.grid.device))
        return pose_utils.multiply(registered, pose_utils.inverse(self.base_camera_to_worlds))

    def _registered(self, cameras: Int[Tensor, "cameras"]) -> Float[Tensor, "cameras 3 4"]:
        """Poses of some cameras, registered to the grid's rays."""
        points, of = self.grid.repeat(len(cameras), 1), cameras.repeat_interleave(len(self.grid))
        rows = torch.arange(len(cameras), device=of.device).repeat_interleave(len(self.grid))
        origins, ends = self._moved(points, of)
        poses, _ = _register_rays(points, origins, ends, rows, len(cameras))
        return torch.where(self.standing[cameras, None, None], self.warped_camera_to_worlds[cameras], poses)

    def _moved(
        self, points: Float[Tensor, "rays 3"], cameras: Int[Tensor, "rays"]
    ) -> Tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays 3"]]:
        """Rays' own origins, and where their points are, in the world."""
        starts = self.warped_camera_to_worlds.index_select(0, cameras)
        motions = corrections_to_world(exp_map_SE3(self.warp(points[:, :2], cameras)), starts, self.config.side)
        if self._still:
            motions = torch.where(self.standing[cameras, None, None], self._identity(), motions)
        own = pose_utils.multiply(motions, starts)
        return own[..., 3], (own[..., :3] * points[:, None, :]).sum(-1) + own[..., 3]

    @torch.no_grad()
    def warped_places(self, index: int) -> Tuple[Float[Tensor, "points 2"], Float[Tensor, "points 2"]]:
        """Where the grid's rays pass the plane one unit in front of a camera, and where the camera, at its registered
        pose, sees the same points of rays that have moved. x and y, OpenGL axes, column by column.

        Args:
            index: a training camera, while rays move.
        """
        camera = torch.tensor([index], device=self.grid.device)
        pose = self._registered(camera)[0]
        _, ends = self._moved(self.grid, camera.expand(len(self.grid)))
        seen = (ends - pose[:, 3]) @ pose[:, :3]
        return self.grid[:, :2], seen[:, :2] / -seen[:, 2:]

    @property
    def is_corrected(self) -> bool:
        """Whether any camera is elsewhere than where refinement started."""
        if not self.warping:
            return super().is_corrected
        with torch.no_grad():
            corrections = self._corrections_of_base(by_terms=False)
            return bool(((corrections - self._identity()).abs() > MOVED).any())

    @torch.no_grad()
    def current_twists(self) -> Float[Tensor, "num_cameras 6"]:
        """Each camera's correction as it is now, of the registered pose."""
        if not self.warping:
            return super().current_twists()
        poses = pose_utils.multiply(self._corrections_of_base(by_terms=False), self.base_camera_to_worlds)
        return torch.stack([self._twist_to(index, pose) for index, pose in enumerate(poses)]).to(self.pose_adjustment)

    def estimated_centers(self) -> Float[Tensor, "num_cameras 3"]:
        """Where cameras are by the last training step."""
        return self.estimated_camera_to_worlds[..., 3] if self.warping else super().estimated_centers()

    # -- what puts cameras somewhere -----------------------------------------------------------------------------------

    @torch.no_grad()
    def _place(self, indices: List[int], camera_to_worlds: Float[Tensor, "cameras 3 4"]) -> None:
        """Starts cameras' rays where they have to start for the cameras to be at these poses."""
        cameras = torch.tensor(indices, device=self.grid.device)
        wanted = camera_to_worlds.to(self.grid.device).double()
        self.warped_camera_to_worlds[cameras] = wanted.float()
        for _ in range(ROUNDS):
            starts = self.warped_camera_to_worlds[cameras].double()
            motions = pose_utils.multiply(self._registered(cameras).double(), pose_utils.inverse(starts))
            self.warped_camera_to_worlds[cameras] = pose_utils.multiply(pose_utils.inverse(motions), wanted).float()
        self.estimated_camera_to_worlds[cameras] = wanted.float()

    def set_refined(self, index: int, camera_to_world: Float[Tensor, "3 4"]) -> None:
        """Puts a camera somewhere, as `PoseOptimizer.set_refined`."""
        if self.warping:
            self._place([index], camera_to_world[None])
        else:
            super().set_refined(index, camera_to_world)

    def put_back(self, indices: Sequence[int]) -> None:
        """Puts cameras back to where refinement started."""
        if self.warping and len(indices):
            self._place(list(indices), self.base_camera_to_worlds[list(indices)])
        super().put_back(indices)

    def rebase(self, camera_to_worlds: Float[Tensor, "num_cameras 3 4"], trusted: bool) -> None:
        """Has refinement start at other poses, as `PoseOptimizer.rebase`. Trusted ones are near enough for twists."""
        super().rebase(camera_to_worlds, trusted)
        for poses in (self.warped_camera_to_worlds, self.estimated_camera_to_worlds):
            poses.copy_(self.base_camera_to_worlds)
        self.handed_over.fill_(trusted)
        self._restore()

    def fall_back(self, rate: float) -> None:
        """Puts cameras back, as `PoseOptimizer.fall_back`. They continue by twists: what is left is small."""
        self._hand_over()
        super().fall_back(rate)

    @torch.no_grad()
    def _hand_over(self) -> None:
        """Switches cameras to a twist each."""
        if self.warping:
            self.pose_adjustment.copy_(self.current_twists())
            self.handed_over.fill_(True)
            self._restore()

    def set_progress(self, progress: float) -> None:
        """Tells how far training is, as a fraction of it. Called before each step: held cameras freeze here,
        and released ones move again."""
        super().set_progress(progress)
        if self.warping and progress >= self.config.warp.until:
            self._hand_over()
        if self.warping:
            self._stop_held()

    @torch.no_grad()
    def _stop_held(self) -> None:
        still = self.held | self._frozen
        if still == self._still:
            return
        stopped, released = sorted(still - self._still), sorted(self._still - still)
        if stopped:
            self.warped_camera_to_worlds[stopped] = self._registered(torch.tensor(stopped, device=self.grid.device))
        self.standing[stopped], self.standing[released] = True, False
        if released:
            self._place(released, self.warped_camera_to_worlds[released].clone())
        self._restore()

    # -- training ------------------------------------------------------------------------------------------------------

    def apply_to_raybundle(self, raybundle: RayBundle) -> None:
        """Moves rays of training cameras, generated from the initial poses, each by itself, in place; registers the
        cameras that have enough of them."""
        if not self.warping:
            self.global_loss = None
            return super().apply_to_raybundle(raybundle)
        assert raybundle.camera_indices is not None
        cameras = raybundle.camera_indices.flatten()
        shape = raybundle.directions.shape
        lengths = raybundle.metadata["directions_norm"].reshape(-1, 1)
        rotations = self.initial_camera_to_worlds[..., :3].index_select(0, cameras)
        points = (rotations * raybundle.directions.reshape(-1, 3, 1)).sum(-2) * lengths
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.active and not self.paused):
            origins, ends = self._moved(points, cameras)
        # A ray's motion is rigid: its length stays, and so do depths along the axis.
        raybundle.origins, raybundle.directions = origins.view(shape), ((ends - origins) / lengths).view(shape)
        with torch.no_grad():
            poses, known = _register_rays(points, origins, ends, cameras, self.num_cameras)
            known = (known & ~self.standing)[:, None, None]
            self.estimated_camera_to_worlds.copy_(torch.where(known, poses, self.estimated_camera_to_worlds))
        # Detached: the poses minimise this very sum, so that its gradient does not see them move.
        rigid = poses.index_select(0, cameras)
        off_ends = (rigid[..., :3] * points[:, None, :]).sum(-1) + rigid[..., 3] - ends
        off = torch.stack([off_ends, rigid[..., 3] - origins])
        self.global_loss = torch.where(known[cameras, :, 0], off, 0.0).square().mean()

    def get_loss_dict(self, loss_dict: dict) -> None:
        """Adds the distance of the last step's rays from rigid motions, and the other terms."""
        super().get_loss_dict(loss_dict)
        if self.global_loss is not None and self.active and not self.paused and self.config.warp.weight > 0:
            loss_dict["global_loss"] = self.config.warp.weight * self.global_loss

    def get_param_groups(self, param_groups: Dict) -> None:
        """Adds the groups `camera_opt`, twists, and `camera_warp`, what moves rays."""
        super().get_param_groups(param_groups)
        param_groups["camera_warp"] = list(self.warp.parameters())


def _register_rays(
    points: Float[Tensor, "rays 3"],
    origins: Float[Tensor, "rays 3"],
    ends: Float[Tensor, "rays 3"],
    cameras: Int[Tensor, "rays"],
    num_cameras: int,
) -> Tuple[Float[Tensor, "num_cameras 3 4"], Bool[Tensor, "num_cameras"]]:
    """Poses of cameras whose centre and points, in the camera's frame, are at the rays' origins and ends in the world;
    and whether there are enough rays. All points count alike, so that the centre counts once a ray."""
    return register(
        torch.cat([points, torch.zeros_like(points)]), torch.cat([ends, origins]), cameras.repeat(2), num_cameras
    )
