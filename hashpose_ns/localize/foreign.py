"""Runs of nerfacto, and of what renders rays as it does, as this package's operations on poses see a run."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from hashpose_ns.cameras.pose_optimizer import PoseOptimizer, PoseOptimizerConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.photometry.scene import ErrorObserver, PosedScene, TestTimeOptimization, evaluating
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import Model


class NerfstudioRenderer:
    """`hashpose_ns.photometry.scene.ImageRenderer` of a nerfstudio model that renders rays.

    Args:
        model: the model, trained.
    """

    current_step = 0

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's."""
        return self.model.parameters()

    def colors(
        self, rays: RayBundle, *, own_appearance: bool = False, smoothed: bool = False
    ) -> Float[Tensor, "rays 3"]:
        """As `RayRenderer.colors`, always with the mean appearance and the derivative that the model has."""
        with evaluating(self.model):
            return self.model(rays)["rgb"].clamp(0.0, 1.0)

    def photometric_loss(
        self,
        rays: RayBundle,
        photograph: Float[Tensor, "rays channels"],
        *,
        own_appearance: bool = False,
        smoothed: bool = False,
    ) -> Float[Tensor, ""]:
        """Mean squared error of colours."""
        return functional.mse_loss(self.colors(rays), self.composite(photograph))

    def composite(self, photograph: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch 3"]:
        """As `RayRenderer.composite`."""
        photograph = photograph.to(self.device)
        renderer: Any = self.model.renderer_rgb
        return renderer.blend_background(photograph) if photograph.shape[-1] == 4 else photograph

    @torch.no_grad()
    def surfaces(self, rays: RayBundle) -> Dict[str, Tensor]:
        """Colour, accumulation and the model's own depth."""
        with evaluating(self.model):
            return {name: value for name, value in self.model(rays).items() if name in ("rgb", "accumulation", "depth")}

    def rays_per_chunk(self) -> int:
        """As the model's settings have it."""
        return self.model.config.eval_num_rays_per_chunk

    def get_outputs_for_camera(self, camera: Cameras, obb_box: Any = None) -> Dict[str, Tensor]:
        """Renders a camera where it is."""
        with evaluating(self.model):
            return self.model.get_outputs_for_camera(camera, obb_box)

    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """The model's."""
        return self.model.get_image_metrics_and_images(outputs, batch)

    def observe_errors(self, observer: ErrorObserver) -> None:
        """Training is over, so there is nothing to observe."""


def scene_of(pipeline: Any) -> PosedScene:
    """A trained run as operations on poses see it.

    Args:
        pipeline: of a hashpose method, or a pipeline of nerfstudio whose model renders rays.

    Raises:
        HashPoseError: the model renders no rays.
    """
    if hasattr(pipeline, "scene"):
        return pipeline.scene
    model, manager = pipeline.model, pipeline.datamanager
    if not (hasattr(model, "renderer_rgb") and hasattr(model, "collider")):
        raise HashPoseError(
            f"{type(model).__name__} renders no rays, so photographs cannot be looked for in it; train nerfacto or one "
            "of the hashpose methods."
        )
    given = manager.train_dataset._dataparser_outputs.cameras.camera_to_worlds.float()
    names = [path.as_posix() for path in manager.train_dataset.image_filenames]
    poses = PoseOptimizer(PoseOptimizerConfig(), len(given), "cpu", given, given, names).to(model.device)
    optimizer = getattr(model, "camera_optimizer", None)
    if optimizer is not None and optimizer.config.mode != "off":
        with torch.no_grad():
            corrections = optimizer(torch.arange(len(given), device=model.device)).cpu()
        # nerfstudio turns a camera about its own centre, in world axes, and shifts it
        refined = torch.cat([corrections[..., :3] @ given[..., :3], given[..., 3:] + corrections[..., 3:]], dim=-1)
        for index, pose in enumerate(refined.to(model.device)):
            poses.set_refined(index, pose)
    return PosedScene(
        renderer=NerfstudioRenderer(model),
        model_config=model.config,
        poses=poses,
        train=manager.train_dataset,
        held_out=manager.eval_dataset,
        dataparser=manager.dataparser,
        curriculum=None,
        test_time=TestTimeOptimization(steps=0, rays=1024, images=1, lr=1e-3),
        total_steps=1,
    )
