"""Where a photograph was taken, asked for in ns-viewer: the camera walks to its place, the photograph lies over the
field's picture."""

from __future__ import annotations

import math
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

import numpy as np
import roma
import torch
from jaxtyping import Float

from hashpose_ns.cameras.alignment import Similarity, pose_errors
from hashpose_ns.data.names import image_names
from hashpose_ns.localize.api import LocalizedImage, Search
from hashpose_ns.localize.photographs import Photographs, photograph_files
from hashpose_ns.localize.starts import KnownStarts
from hashpose_ns.localize.writing import overlay_picture
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.photometry.search_config import SearchConfig
from hashpose_ns.viewer.boundary import Boundary
from hashpose_ns.viewer.matching import data_url
from hashpose_ns.viewer.scene import to_viser
from hashpose_ns.viewer.widgets import plain

if TYPE_CHECKING:
    from viser import ClientHandle

    from nerfstudio.viewer.viewer import Viewer

OVERLAY_SIZE = 192
"""Longest side, in pixels, of the picture of photograph and render."""

WALK_SECONDS, WALK_STEPS = 1.5, 30
"""How long a browser's camera walks, and in how many steps."""


class Locating:
    """The folder `A photograph` in the panel of a run that is looked at. Each search has a thread of its own, and there
    is one at a time.

    Args:
        viewer: nerfstudio's viewer.
        run: the run.
        boundary: where exceptions end.
        order: where the folder stands.
    """

    def __init__(self, viewer: "Viewer", run: PosedScene, boundary: Boundary, order: float) -> None:
        self.viewer, self.run, self.boundary = viewer, run, boundary
        held_out = [Path(path) for path in run.held_out.image_filenames]
        self.files: Dict[str, Path] = dict(zip(image_names(held_out), held_out))
        """Photographs that can be looked for, by what they are called."""
        self.held_out = {name: row for row, name in enumerate(self.files)}
        self.uploads = tempfile.TemporaryDirectory(prefix="hashpose-photographs-")
        self.config = SearchConfig()
        self.search: Optional[Search] = None
        self.thread: Optional[threading.Thread] = None
        gui = viewer.viser_server.gui
        with gui.add_folder("A photograph", order=order, expand_by_default=False):
            names = tuple(self.files) or ("none yet",)
            self.choice = gui.add_dropdown("Photograph", names, names[0], hint="Held-out images, and uploaded ones.")
            self.upload = gui.add_upload_button("Upload another", mime_type="image/*")
            self.find = gui.add_button("Where was it taken?", hint="Looks for its camera everywhere in the field.")
            self.text = gui.add_markdown("", visible=False)
            self.picture = gui.add_markdown("", visible=False)
        self.upload.on_upload(lambda event: self._take(event.target.value))
        self.find.on_click(lambda event: self.start(self.choice.value, event.client))

    def _take(self, uploaded: Any) -> None:
        """Offers an uploaded photograph."""
        with self.boundary:
            name = Path(uploaded.name.replace("\\", "/")).name
            folder = Path(tempfile.mkdtemp(dir=self.uploads.name))
            path = folder / f"photograph{Path(name).suffix.lower()}"
            path.write_bytes(uploaded.content)
            self.files[name] = path
            self.held_out.pop(name, None)
            self.choice.options = tuple(self.files)
            self.choice.value = name

    def start(self, name: str, client: Optional["ClientHandle"] = None) -> None:
        """Looks for a photograph, in a thread, unless one is being looked for.

        Args:
            name: of one of `files`.
            client: the browser whose camera walks there.
        """
        if name not in self.files or (self.thread is not None and self.thread.is_alive()):
            return
        self.thread = threading.Thread(target=self._look, args=(name, client), name="hashpose photograph", daemon=True)
        self.thread.start()

    def _look(self, name: str, client: Optional["ClientHandle"]) -> None:
        self.find.disabled = True
        self._say(f"Looking for {plain(name)} ...")
        with self.boundary:
            try:
                photographs, result = self.located(self.files[name])
                self._say(self.words(name, result))
                if result.found:
                    assert self.search is not None
                    picture = overlay_picture(self.search, photographs, result, 0, OVERLAY_SIZE)
                    self.picture.content = f"![photograph over the field's picture]({data_url(picture)})"
                    if client is not None:
                        walk(client, result.learned_camera_to_world, field_of_view(photographs))
                self.picture.visible = result.found
            except BaseException:
                self.text.visible = self.picture.visible = False
                raise
            finally:
                self.find.disabled = False

    def located(self, path: Path) -> Tuple[Photographs, LocalizedImage]:
        """Where a photograph was taken.

        Raises:
            HashPoseError: it cannot be read, shows nothing, or its intrinsics are unknown; or the run cannot be
                searched.
        """
        if self.search is None:
            self.search = Search(self.run, self.config)
        filenames, names = photograph_files([path])
        nothing = KnownStarts.none(1)
        photographs = self.search.photographs(filenames, nothing)
        return photographs, self.search.localize(photographs, names, nothing)[0]

    def words(self, name: str, result: LocalizedImage) -> str:
        """What was found out, as markdown."""
        verdict = "found" if result.found else "not found"
        lines = [
            f"**{plain(name)}: {verdict}**",
            f"The field leaves {result.residual:.3f} of its variance unexplained; up to {result.limit:.3f} counts as "
            f"found. Last hypotheses that agree: {result.agreement:.0%}.",
        ]
        if result.found:
            lines.append(f"Uncertainty {result.rotation_std_deg:.2g} deg, {result.translation_std:.2g} units.")
        if name in self.held_out:
            truth = self.run.aligned_held_out_poses()[self.held_out[name]][None].cpu()
            off = pose_errors(result.learned_camera_to_world[None].to(truth), truth, similarity=Similarity.identity())
            lines.append(
                f"From the dataset's pose: {float(off.rotation_deg[0]):.3g} deg, centre {float(off.center[0]):.3g}."
            )
        return "\n\n".join(lines)

    def _say(self, text: str) -> None:
        self.text.content, self.text.visible = text, True


def field_of_view(photographs: Photographs) -> float:
    """Vertical field of view of the first of some photographs, in radians."""
    return 2 * math.atan(0.5 * float(photographs.cameras.height[0]) / float(photographs.cameras.fy[0]))


def walk(client: "ClientHandle", camera_to_world: Float[torch.Tensor, "3 4"], fov: float) -> None:
    """Moves a browser's camera to a pose, step by step.

    Args:
        client: the browser.
        camera_to_world: in the learned frame.
        fov: vertical field of view at the end, in radians.
    """
    camera = client.camera
    positions, wxyz = to_viser(camera_to_world[None].cpu())
    begin = np.asarray(camera.position, dtype=np.float64), np.asarray(camera.wxyz, dtype=np.float64), float(camera.fov)
    turns = roma.unitquat_slerp(
        torch.from_numpy(begin[1][[1, 2, 3, 0]]),
        torch.from_numpy(wxyz[0][[1, 2, 3, 0]]),
        torch.linspace(0, 1, WALK_STEPS + 1, dtype=torch.float64),
        shortest_arc=True,
    )
    for step in range(1, WALK_STEPS + 1):
        share = step / WALK_STEPS
        share = share * share * (3 - 2 * share)  # slow at both ends
        turn = turns[round(share * WALK_STEPS)][[3, 0, 1, 2]].numpy()
        with client.atomic():
            camera.position = (1 - share) * begin[0] + share * positions[0]
            camera.wxyz = turn
            camera.fov = (1 - share) * begin[2] + share * fov
        time.sleep(WALK_SECONDS / WALK_STEPS)
