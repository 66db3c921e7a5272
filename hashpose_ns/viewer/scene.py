"""What is drawn of the cameras: frustums, where they started, where they should be, and the ways between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

import numpy as np
import roma
import torch
from jaxtyping import Float, UInt8

from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.plotting.cameras import FRUSTUM_EDGES, Views, frustum_points
from hashpose_ns.viewer import colors as tints
from hashpose_ns.viewer.state import PoseState, PoseTracks
from hashpose_ns.viewer.tubes import tubes_glb

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.viewer.viewer import Viewer

SCENE_SCALE = 10.0
"""nerfstudio's viewer draws the world this much larger (VISER_NERFSTUDIO_SCALE_RATIO)."""

MAX_CAMERAS = 200
"""More cameras than these are thinned out, evenly over the images."""

MAX_MOVES = 150
"""Frustums that are moved at a time; those that are furthest off come first."""

MAX_PATH_PIECES = 2000
"""Straight pieces of all drawn paths together."""

MOVE_TOLERANCE = 2e-6
"""A frustum stays where it is while no entry of its pose is off by more, in scene units and for the axes."""

FRUSTUM_DEPTH, ROOMY = 0.12, 40
"""Depth of a frustum over the cameras' mean distance from their middle, for so many cameras; more get smaller ones."""

TUBE_RADIUS = 0.0022
"""Radius of tubes over the cameras' mean distance from their middle: a pixel or two wide where all are in view."""

VIEW_DISTANCE = 1.4
"""Where to stand to see all cameras, over the distance of the furthest from their middle; viser opens 75 degrees."""

REFINED, INITIAL, STARTED, REFERENCE, MOVED, PATHS, POINTS = LAYERS = (
    "refined",
    "initial",
    "started",
    "reference",
    "moved",
    "paths",
    "points",
)
"""What can be shown and hidden."""


class PoseScene:
    """Draws into nerfstudio's viewer; frustums with thumbnails are nerfstudio's own.

    Args:
        viewer: nerfstudio's viewer.
        cameras: the training cameras, for their intrinsics.
    """

    def __init__(self, viewer: "Viewer", cameras: "Cameras") -> None:
        self.viewer = viewer
        count = len(cameras)
        self.drawn = np.unique(np.linspace(0, count - 1, min(count, MAX_CAMERAS)).round().astype(int))
        """Indices of the cameras in the layers."""
        scale = viewer.config.camera_frustum_scale / SCENE_SCALE
        self.extents = (scale * frustum_shapes(cameras)[self.drawn]).astype(np.float32)
        """Half width, half height and depth of the frustums, in scene units."""
        self._aligned: Dict[str, Tuple[torch.Tensor, torch.Tensor]] = {}
        self._sent: Dict[str, bytes] = {}
        self._handles: Dict[str, object] = {}
        self.bytes_sent = 0
        """Of the objects drawn since it was last set to 0."""

    def move_frustums(self, state: PoseState) -> int:
        """Moves nerfstudio's frustums to where the refined poses are.

        Returns:
            How many are still to be moved, because only so many are at a time.
        """
        handles = self.viewer.camera_handles
        indices = list(handles)
        positions, wxyz = to_viser(state.refined[indices])
        shown_positions = np.stack([handles[index].position for index in indices])
        shown_wxyz = np.stack([handles[index].wxyz for index in indices])
        # a quaternion and its negative are the same orientation
        turned = np.minimum(np.abs(shown_wxyz - wxyz).max(-1), np.abs(shown_wxyz + wxyz).max(-1))
        off = np.maximum(np.abs(shown_positions - positions).max(-1) / SCENE_SCALE, 2 * turned)
        moved = np.flatnonzero(off > MOVE_TOLERANCE)
        moved = moved[np.argsort(-off[moved])]
        for i in moved[:MAX_MOVES]:
            handle = handles[indices[i]]
            handle.position, handle.wxyz = positions[i], wxyz[i]
        return max(len(moved) - MAX_MOVES, 0)

    def draw(
        self,
        state: PoseState,
        tracks: PoseTracks,
        visible: Dict[str, bool],
        aligned: bool,
        colors: Optional[UInt8[np.ndarray, "num_cameras 3"]],
        selected: int,
        points: Optional[Tuple[Float[np.ndarray, "points 3"], UInt8[np.ndarray, "points 3"]]] = None,
    ) -> None:
        """Draws the layers, each one object, where they differ from what is there.

        Args:
            state: the poses.
            tracks: where they have been.
            visible: which layers are shown.
            aligned: whether initial and reference poses, and paths, are taken to the learned frame by the alignment,
                or stay as they are. The refined poses are in the learned frame, where the field is, either way.
            colors: of the refined cameras; None draws them in one colour.
            selected: index of the camera that stands out.
            points: where matches meet in the learned frame, and their colours.
        """
        drawn = self.drawn
        refined = state.refined[drawn].numpy()
        poses = [state.initial, state.base, state.reference]
        if aligned:
            to_learned = state.to_input.inverse()
            known = self._to_reference(INITIAL, state.initial, state), self._to_reference(STARTED, state.base, state)
            poses = [to_learned.apply_to_poses(each) for each in (*known, state.reference)]
        initial, base, reference = (each[drawn].numpy() for each in poses)
        visible = {
            **visible,
            REFERENCE: visible[REFERENCE] and state.has_reference,
            STARTED: visible[STARTED] and state.rebased,
            POINTS: visible[POINTS] and points is not None,
        }
        radius = TUBE_RADIUS * spread(state.reference)
        if visible[REFINED]:
            colors = np.tile(np.array(tints.MOVED, np.uint8), (len(drawn), 1)) if colors is None else colors[drawn]
            colors[drawn == selected] = tints.SELECTED
            radii = np.where(drawn == selected, 2.0 * radius, radius)
            self._tubes(REFINED, self._frustums(refined), np.repeat(colors, 8, axis=0), np.repeat(radii, 8))
        # a little thinner: where poses coincide the refined ones are seen
        if visible[INITIAL]:
            self._tubes(INITIAL, self._frustums(initial), tints.START, 0.8 * radius)
        if visible[STARTED]:
            self._tubes(STARTED, self._frustums(base), tints.MATCHED, 0.9 * radius)
        if visible[REFERENCE]:
            self._tubes(REFERENCE, self._frustums(reference), tints.REFERENCE, 0.8 * radius)
        if visible[MOVED]:
            self._tubes(MOVED, np.stack([initial[:, :, 3], refined[:, :, 3]], axis=1), tints.MOVED, radius)
        if visible[PATHS]:
            self._tubes(PATHS, self._paths(state, tracks, aligned), tints.MOVED, 0.6 * radius)
        if visible[POINTS] and points is not None:
            self._dots(POINTS, *points, 2.0 * radius)
        for layer, handle in self._handles.items():
            handle.visible = visible[layer]

    def _to_reference(
        self, layer: str, camera_to_worlds: Float[torch.Tensor, "num_cameras 3 4"], state: PoseState
    ) -> Float[torch.Tensor, "num_cameras 3 4"]:
        """A layer's poses, aligned to the reference; they change when a checkpoint is loaded."""
        if layer not in self._aligned or not torch.equal(self._aligned[layer][0], camera_to_worlds):
            similarity = align_poses(camera_to_worlds, state.reference)
            self._aligned[layer] = camera_to_worlds, similarity.apply_to_poses(camera_to_worlds)
        return self._aligned[layer][1]

    def _paths(self, state: PoseState, tracks: PoseTracks, aligned: bool) -> Float[np.ndarray, "pieces 2 3"]:
        """Straight pieces from record to record of the history, and to now."""
        centers, records = tracks.aligned_centers if aligned else tracks.centers, len(tracks.steps)
        points = state.refined[None, self.drawn, :, 3].numpy()
        if records:
            pieces = int(np.clip(MAX_PATH_PIECES // len(self.drawn), 1, records))
            chosen = np.unique(np.linspace(0, records - 1, pieces).round().astype(int))
            earlier = np.stack([centers[i][self.drawn] for i in chosen])
            if aligned:
                earlier = state.to_input.inverse().apply_to_points(torch.from_numpy(earlier)).numpy()
            points = np.concatenate([earlier, points])
        return np.stack([points[:-1], points[1:]], axis=2).reshape(-1, 2, 3)

    def _frustums(self, camera_to_worlds: Float[np.ndarray, "drawn 3 4"]) -> Float[np.ndarray, "drawn 8 2 3"]:
        """The edges of viewing pyramids."""
        return frustum_points(camera_to_worlds, self.extents)[:, FRUSTUM_EDGES]

    def _dots(self, layer: str, points: np.ndarray, colors: np.ndarray, size: float) -> None:
        """Points, as short pieces of tubes: viser's client never frees point clouds."""
        self._tubes(layer, points[:, None] + size * np.array([[0.0, 0.0, -0.5], [0.0, 0.0, 0.5]]), colors, size)

    def _tubes(self, layer: str, lines: np.ndarray, color, radius) -> None:
        lines = lines.reshape(-1, 2, 3).astype(np.float32)
        if len(lines) == 0:
            return
        colors = np.broadcast_to(np.asarray(color, dtype=np.uint8), (len(lines), 3))
        # as fine as a screen shows it, so that what stands still is not sent again
        grid = max(0.1 * float(np.min(radius)), 1e-6)
        lines = np.round(lines / grid) * grid
        data = tubes_glb(SCENE_SCALE * lines, colors, SCENE_SCALE * radius)
        if self._sent.get(layer) != data:
            self._sent[layer] = data
            self._handles[layer] = self.viewer.viser_server.scene.add_glb(f"/hashpose/{layer}", data)
            self.bytes_sent += len(data)

    def note(self, total: int) -> str:
        """What is left out of the drawing, in words; empty where nothing is."""
        notes: List[str] = []
        if len(self.drawn) < total:
            notes.append(f"lines and colours of {len(self.drawn)} of {total} cameras")
        thumbnails = len(getattr(self.viewer, "camera_handles", {}))
        if thumbnails < total:
            notes.append(f"thumbnails of {thumbnails} of {total} cameras")
        return "Drawn: " + ", ".join(notes) if notes else ""


def to_viser(camera_to_worlds: Float[torch.Tensor, "n 3 4"]) -> Tuple[np.ndarray, np.ndarray]:
    """Positions [n, 3] and quaternions [n, 4] (w first) in viser's scene, whose cameras look along +z with y down."""
    rotations = camera_to_worlds[:, :, :3].double() * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    xyzw = roma.rotmat_to_unitquat(rotations)
    return SCENE_SCALE * camera_to_worlds[:, :, 3].double().numpy(), xyzw[:, [3, 0, 1, 2]].numpy()


def spread(camera_to_worlds: Float[torch.Tensor, "n 3 4"]) -> float:
    """Mean distance of cameras from their middle, in scene units; some length where they are all in one place."""
    centers = camera_to_worlds[:, :, 3].double()
    distance = float((centers - centers.mean(dim=0)).norm(dim=-1).mean())
    return distance if distance > 1e-3 else 0.1


def fitting_frustum_scale(cameras: "Cameras", reference: Float[torch.Tensor, "n 3 4"]) -> float:
    """What to set nerfstudio's `camera_frustum_scale` to for frustums that are neither specks nor in each other's way.

    Args:
        cameras: the training cameras, for their intrinsics.
        reference: their poses.
    """
    depth = FRUSTUM_DEPTH * spread(reference) * min(1.0, (ROOMY / len(reference)) ** 0.5)
    return float(SCENE_SCALE * depth / np.median(frustum_shapes(cameras)[:, 2]))


def view_of_all(camera_to_worlds: Float[torch.Tensor, "n 3 4"]) -> Tuple[np.ndarray, np.ndarray]:
    """Where to stand in viser's scene [3], and where to look [3], to have all cameras in view."""
    view = Views(camera_to_worlds.double().numpy(), smallest=spread(camera_to_worlds)).oblique(distance=VIEW_DISTANCE)
    return SCENE_SCALE * view.eye, SCENE_SCALE * view.center


def frustum_shapes(cameras: "Cameras") -> Float[np.ndarray, "num_cameras 3"]:
    """Half width, half height and depth of the frustums that nerfstudio has viser draw, over their scale. Their opening
    angles are those nerfstudio 1.1.5 gives (it takes the horizontal one for the vertical), and all have one volume."""
    fx, cx, cy = (value[:, 0].double().cpu().numpy() for value in (cameras.fx, cameras.cx, cameras.cy))
    height = cx / fx
    shapes = np.stack([height * cx / cy, height, np.ones_like(height)], axis=-1)
    return shapes / np.cbrt(shapes.prod(-1, keepdims=True) / 3.0)
