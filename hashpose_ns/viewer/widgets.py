"""The panel's controls and texts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Optional, Sequence

from hashpose_ns.guard.report import back_sentence
from hashpose_ns.viewer.colors import ColorScale
from hashpose_ns.viewer.curves import KINDS
from hashpose_ns.viewer.export_now import FORMATS
from hashpose_ns.viewer.matching import FAR_PIXELS, NEAR_PIXELS
from hashpose_ns.viewer.scene import INITIAL, MOVED, PATHS, POINTS, REFERENCE, REFINED, STARTED
from hashpose_ns.viewer.state import PoseState

if TYPE_CHECKING:
    from viser import ViserServer

    from hashpose_ns.guard.report import GuardReport
    from hashpose_ns.matches.gate import Support
    from hashpose_ns.viewer.matching import CameraMatches, Supports

BY_ROTATION, BY_POSITION, BY_LOSS, BY_NOTHING = "Rotation", "Position", "Image loss", "Nothing"
COLOR_BY = (BY_ROTATION, BY_POSITION, BY_LOSS, BY_NOTHING)

CHECKBOXES = {
    REFINED: ("Refined cameras", True, "Where the cameras are now."),
    INITIAL: ("Initial cameras", True, "The input poses; grey."),
    STARTED: ("Start of training", True, "Where training started, by matches or centred pictures; purple."),
    REFERENCE: (
        "Reference cameras",
        False,
        "The dataset's own poses; green. Shown where training did not start there.",
    ),
    MOVED: ("Lines from start", True, "From each initial camera to where it is now."),
    PATHS: ("Paths", False, "The path of each camera so far."),
    POINTS: (
        "Matched points",
        False,
        "Where the rays of matches meet at the current poses; coloured as on a photograph.",
    ),
}
"""Label, default and explanation of each layer of the scene."""


class Widgets:
    """The folder `Poses` above nerfstudio's tabs.

    Args:
        server: viser's server.
        names: what to call the training cameras, unique.
        order: where the folder stands.
        training: whether there is training to have a hand in.
    """

    def __init__(self, server: "ViserServer", names: Sequence[str], order: float, training: bool) -> None:
        gui = server.gui
        with gui.add_folder("Poses", order=order):
            self.status = gui.add_markdown("Waiting for the first poses.")
            self.message = gui.add_markdown("", visible=False)
            self.pause = gui.add_checkbox(
                "Pause poses", False, visible=training, hint="Train the field alone; poses are frozen."
            )
            self.curves = gui.add_folder("Curves")
            with self.curves:
                self.curve = gui.add_dropdown("Curve", KINDS, KINDS[0])
                self.log = gui.add_checkbox("Log scale", True)
            with gui.add_folder("Cameras"):
                self.look_at_all = gui.add_button("Look at all cameras")
                self.color_by = gui.add_dropdown("Colour by", COLOR_BY, BY_ROTATION)
                self.legend = gui.add_markdown("")
                self.layers = {
                    layer: gui.add_checkbox(label, shown, visible=layer not in (STARTED, POINTS), hint=hint)
                    for layer, (label, shown, hint) in CHECKBOXES.items()
                }
                self.aligned = gui.add_checkbox(
                    "Align",
                    True,
                    hint="Training may move, turn and scale cameras and field together. On: take that out of the "
                    "initial and reference cameras and the paths. Off: show them as they are.",
                )
            with gui.add_folder("One camera"):
                self.camera = gui.add_dropdown("Camera", tuple(names), names[0], hint="Or click one in the scene.")
                self.camera_text = gui.add_markdown("")
                self.look = gui.add_button("Look through it")
                self.compare = gui.add_checkbox(
                    "Compare with photograph", False, hint="Photograph on the left, the field's picture on the right."
                )
                self.picture = gui.add_markdown("", visible=False)
                self.residuals = gui.add_checkbox(
                    "Matches on photograph",
                    False,
                    visible=False,
                    hint=f"A line leads from each matched keypoint to its epipolar line. Green: within {NEAR_PIXELS:g} "
                    f"pixel of it; red: beyond {FAR_PIXELS:g}, or behind a camera.",
                )
                self.residual_picture = gui.add_markdown("", visible=False)
                self.warp = gui.add_checkbox(
                    "Motions of rays",
                    False,
                    visible=False,
                    hint="How its rays move beside the camera's own motion: a grid over the photograph, enlarged.",
                )
                self.warp_picture = gui.add_markdown("", visible=False)
                self.hold = gui.add_checkbox(
                    "Hold", False, visible=training, hint="Freeze this camera; the others continue."
                )
                self.reset = gui.add_button("Reset to start", visible=training)
                self.degrees = gui.add_number(
                    "Degrees", 5.0, min=0.0, max=90.0, step=0.5, visible=training, hint="For the button below."
                )
                self.turn = gui.add_button(
                    "Turn", visible=training, hint="Turn the camera about its own centre, about a random axis."
                )
            with gui.add_folder("Export", expand_by_default=False):
                self.format = gui.add_dropdown("Format", FORMATS, FORMATS[0])
                self.export = gui.add_button("Export now", hint="Into the run's folder, under exports.")
        self.training_controls = (self.pause, self.hold, self.reset, self.degrees, self.turn)


def plain(text: str) -> str:
    """Text as it is in viser's markdown, which would take some characters for markup, and braces for code to run."""
    return "".join(c if c.isalnum() or c in " .,:;" else f"&#{ord(c)};" for c in text)


def verdict_text(report: Optional["GuardReport"]) -> str:
    """What the guard says, if it was asked."""
    if report is None:
        return ""
    said = " ".join(f"{sentence}." for sentence in (report.sentence, *report.camera_sentences()))
    return f"Guard: **{report.verdict}**; {plain(said)}"


def matches_text(said: str, supports: Optional["Supports"]) -> str:
    """What matches say about the start, and about the poses of now.

    Args:
        said: what came of them, a sentence without its full stop; may be empty.
        supports: how well poses explain them, where that is known.
    """
    lines = [f"Matches: {plain(said)}."] if said else []
    if supports is not None:
        lines.append(f"Matches now: {supports_text(supports)}")
    return "\n\n".join(lines)


def supports_text(supports: "Supports") -> str:
    """How well matches agree with the poses of now, and with earlier ones."""
    before = f"{support_text(supports.given)} as given"
    if supports.start is not None:
        before += f"; {support_text(supports.start)} at the start"
    return f"**{support_text(supports.now)}** ({before})"


def camera_matches_text(camera: Optional["CameraMatches"], supports: Optional["Supports"]) -> str:
    """What the matches of one camera say."""
    if camera is None or supports is None:
        return ""
    if camera.count == 0:
        return "No matches."
    shown = sum(map(len, camera.shown.matches))
    drawn = f", of which {shown} count here" if shown < camera.count else ""
    return f"{camera.count} matches with {camera.others} images{drawn}: {supports_text(supports)}"


def support_text(support: "Support") -> str:
    """Share of matches that agree and their median distance; there is none where most are behind a camera."""
    median = f", median {support.median:.2g} px" if math.isfinite(support.median) else ""
    return f"{100 * support.share:.0f} % agree{median}"


def status_text(state: PoseState, total_steps: int, psnr: float, more: Sequence[str]) -> str:
    """The panel's head: step, errors over all cameras, what is held, and further lines where they are not empty."""
    errors = state.errors.summary()
    what = "error" if state.has_reference else "moved"
    lines = [
        f"Step **{state.step}** of {total_steps}, {len(state.refined)} cameras"
        + (f", training PSNR {psnr:.2f} dB" if math.isfinite(psnr) else "")
    ]
    for name, measure, scale, unit in (
        ("Rotation", "rotation_deg", 1.0, " deg"),
        ("Translation x100", "translation", 100.0, ""),
        ("Centres x100", "center", 100.0, ""),
    ):
        mean, median, worst = (scale * errors[f"{measure}_{statistic}"] for statistic in ("mean", "median", "max"))
        lines.append(f"{name} {what} {mean:.3g}{unit} (median {median:.3g}, worst {worst:.3g})")
    if state.paused:
        lines.append("**Poses are paused.**")
    if state.rate_scale < 1:
        lines.append(f"Refined poses did not fit better: {back_sentence(state.rate_scale)}.")
    if state.held:
        lines.append(f"Held: {len(state.held)} cameras.")
    lines += [text for text in more if text]
    return "\n\n".join(lines)


def camera_text(
    state: PoseState, index: int, name: str, loss: float, frozen: bool, report: Optional["GuardReport"] = None
) -> str:
    """What is known of one camera."""

    def numbers(errors) -> str:
        return f"rotation {float(errors.rotation_deg[index]):.3g} deg, centre {float(errors.center[index]):.3g}"

    lines = [f"**{plain(name)}**, camera {index + 1} of {len(state.refined)}"]
    if state.has_reference:
        lines.append(f"Error: {numbers(state.errors)}")
    lines.append(f"Moved: {numbers(state.movement)}")
    if math.isfinite(loss) and loss > 0:
        lines.append(f"Image loss {loss:.3g} (PSNR {-10 * math.log10(loss):.2f} dB)")
    if report is not None:
        camera = report.cameras[index]
        if camera.rotation_std_deg is not None and camera.translation_std is not None:
            turn, step = (math.hypot(*std) for std in (camera.rotation_std_deg, camera.translation_std))
            lines.append(f"Uncertainty, given the field: rotation {turn:.2g} deg, centre {step:.2g}")
        if camera.hurt:
            lines.append(f"**Fits worse than before refinement**, by {-camera.psnr_gain:.2g} dB.")
        if camera.doubtful:
            lines.append(
                f"**Doubtful**: moved far and does not clearly fit better for it ({camera.psnr_gain:+.2g} dB)."
            )
    if frozen:
        lines.append("Frozen by the run's settings.")
    elif index in state.held:
        lines.append("**Held.**")
    return "\n\n".join(lines)


def legend_text(kind: str, scale: ColorScale, has_reference: bool) -> str:
    """What the colours of the refined cameras mean."""
    what = "error" if has_reference else "movement"
    name, unit = {
        BY_ROTATION: (f"Rotation {what}", "degrees"),
        BY_POSITION: (f"Position {what}", "scene units"),
        BY_LOSS: ("Image loss", "squared colour error"),
    }.get(kind, ("", ""))
    return scale.legend(name, unit) if name else ""
