"""What operations on poses need of a run: a renderer of rays, poses, images."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Protocol, Tuple, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hashpose_ns.cameras.alignment import align_poses
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer
from hashpose_ns.optim.curriculum import Curriculum
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset

ErrorObserver = Callable[[Int[Tensor, "rays"], Float[Tensor, "rays 3"]], None]
"""Takes the image index of each ray of a training step, and its predicted minus true colour."""


@runtime_checkable
class RayRenderer(Protocol):
    """Colours of rays, as the field is now.

    Whatever mode the model is in, rays are rendered as in evaluation: no random samples, rays where they are given
    (poses are not applied), colours in [0, 1]. Rays carry the index of their image in `camera_indices`.
    """

    @property
    def device(self) -> torch.device:
        """The field's; rays and photographs are moved there by the caller."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters, of the field and of the poses."""
        ...

    def colors(
        self, rays: RayBundle, *, own_appearance: bool = False, smoothed: bool = False
    ) -> Float[Tensor, "rays 3"]:
        """Rendered colours in [0, 1], differentiable with respect to the rays.

        Args:
            rays: on the field's device.
            own_appearance: use the appearance embedding of each ray's training image instead of the mean one. Without
                effect on fields without embeddings.
            smoothed: differentiate the encoding by the smoothed gradient that poses are trained with, instead of the
                derivative of the interpolation. Values are the same.
        """
        ...

    def photometric_loss(
        self,
        rays: RayBundle,
        photograph: Float[Tensor, "rays channels"],
        *,
        own_appearance: bool = False,
        smoothed: bool = False,
    ) -> Float[Tensor, ""]:
        """The training loss of rays against photographed colours (with alpha if the images have it), without penalties
        on poses. Keyword arguments as in `colors`."""
        ...

    def composite(self, photograph: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch 3"]:
        """Photographed colours on the model's background, where they have alpha, on the field's device."""
        ...

    def surfaces(self, rays: RayBundle) -> Dict[str, Tensor]:
        """`rgb` [rays, 3], `accumulation` [rays, 1] and `depth` [rays, 1], the distance in scene units at which half of
        a ray's weight lies behind. No gradients."""
        ...

    def rays_per_chunk(self) -> int:
        """How many rays to render at once without gradients."""
        ...


@runtime_checkable
class ImageRenderer(RayRenderer, Protocol):
    """A renderer of whole images and their quality, as nerfstudio's `Model` is."""

    current_step: int
    """Last step of training that is done."""

    def get_outputs_for_camera(self, camera: Cameras, obb_box: Any = None) -> Dict[str, Tensor]:
        """Renders a camera [1]: `rgb` [height, width, 3] among others."""
        ...

    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Any]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Quality of a rendered image, and pictures of it."""
        ...

    def observe_errors(self, observer: ErrorObserver) -> None:
        """Has an observer called with every training step's errors, on the training thread."""
        ...


@dataclass(frozen=True)
class TestTimeOptimization:
    """Settings of test-time photometric optimisation."""

    __test__ = False  # no test case

    steps: int
    """Adam's steps for each camera; 0 leaves cameras where they are."""
    rays: int
    """Rays per image and step."""
    images: int
    """Cameras that are optimised at once."""
    lr: float
    """Adam's learning rate, constant."""


@dataclass(frozen=True, eq=False)
class PosedImages:
    """A capture and its poses, without a field."""

    poses: PoseOptimizer
    """Initial, reference and refined poses of the training cameras."""
    train: InputDataset
    """Training images. Poses are asked of `poses`; the dataset's cameras stand where nerfstudio wants to have them."""
    held_out: InputDataset
    """Held-out images. Their given poses, in the frame of the reference, are in `held_out_outputs`."""
    dataparser: DataParser
    """What read the images, and says how to get back to the frame of the input."""

    @property
    def train_outputs(self) -> DataparserOutputs:
        """The dataparser's outputs for the training images: their given poses, and full resolution."""
        return self.train._dataparser_outputs

    @property
    def held_out_outputs(self) -> DataparserOutputs:
        """The dataparser's outputs for the held-out images."""
        return self.held_out._dataparser_outputs


@dataclass(frozen=True, eq=False)
class PosedScene(PosedImages):
    """A run as operations on its poses see it."""

    renderer: ImageRenderer
    """Renders rays by the field as it is."""
    model_config: Any
    """The model's settings, from which the guard builds its judging field."""
    curriculum: Optional[Curriculum]
    """When the levels of the encoding are trained; None for fields without levels."""
    test_time: TestTimeOptimization
    """How held-out cameras are optimised against the field."""
    total_steps: int
    """Length of training; 1 if it is not known."""

    @property
    def step(self) -> int:
        """Last step of training that is done, now."""
        return self.renderer.current_step

    @property
    def device(self) -> torch.device:
        """The field's."""
        return self.renderer.device

    @torch.no_grad()
    def to_learned_frame(self, given: Float[Tensor, "num_cameras 3 4"]) -> Float[Tensor, "num_cameras 3 4"]:
        """Poses in the frame of the reference, such as the dataparser gives them, taken to the learned frame by the
        sim(3) between the training cameras' reference and refined poses."""
        similarity = align_poses(self.poses.refined_camera_to_worlds(), self.poses.reference_camera_to_worlds)
        return similarity.inverse().apply_to_poses(given.to(self.device)).to(given)

    def aligned_held_out_poses(self) -> Float[Tensor, "num_held_out 3 4"]:
        """The held-out cameras' given poses in the learned frame."""
        return self.to_learned_frame(self.held_out_outputs.cameras.camera_to_worlds)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module is in evaluation mode inside."""
    was_training = module.training
    if was_training:
        module.eval()
    try:
        yield
    finally:
        if was_training:
            module.train()


@contextmanager
def frozen(renderer: RayRenderer) -> Iterator[None]:
    """No parameter of the renderer asks for a gradient inside."""
    trained: List[nn.Parameter] = [parameter for parameter in renderer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
