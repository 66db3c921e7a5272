"""HashPoseDataManager: checks what came in, and decides where the initial poses come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Sequence, Tuple, Type

import torch
from jaxtyping import Float
from torch import Tensor

from hashpose_ns.cameras.alignment import Similarity
from hashpose_ns.cameras.perturbation import (
    ROUNDING_TOLERANCE,
    PerturbationConfig,
    identity_poses,
    perturb_poses,
    validate_poses,
)
from hashpose_ns.cameras.start import TrainingCameras
from hashpose_ns.data.added import with_added
from hashpose_ns.data.checks import check_intrinsics, check_outputs, dataparser_similarity, make_rigid, one_way
from hashpose_ns.data.downscaled import in_full_order
from hashpose_ns.data.full_opencv import ColmapWithFullOpenCV
from hashpose_ns.data.names import printable
from hashpose_ns.data.pixel_sampler import EdgePixelSamplerConfig
from hashpose_ns.data.reading import (
    NamedImages,
    check_before_reading,
    check_scale,
    held_out_outputs,
    reading,
    way_round,
)
from hashpose_ns.data.source import SourceCameras, check_float32, source_cameras
from hashpose_ns.data.source_checks import blame_source, check_source
from hashpose_ns.errors import HashPoseError, exits_on_user_error
from hashpose_ns.host import sent
from hashpose_ns.photometry.scene import PosedScene
from hashpose_ns.rays import TrainingRays
from hashpose_ns.sparse.start import SparseStartConfig, sparse_poses
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser
from nerfstudio.utils.rich_utils import CONSOLE


@dataclass
class HashPoseDataManagerConfig(VanillaDataManagerConfig):
    """Configuration of the data and of the initial poses."""

    _target: Type = field(default_factory=lambda: HashPoseDataManager)
    initial_poses: Literal["given", "perturbed", "identity", "sparse"] = "given"
    """Where training starts.
    - given: at the dataparser's poses.
    - perturbed: at those poses plus noise.
    - identity: with all cameras at the origin, looking the same way.
    - sparse: where the network of hashpose-sparse sees up to nine pictures of one object; for the object methods.
    The dataparser's poses are kept as the reference that errors are measured against."""
    perturbation: PerturbationConfig = field(default_factory=PerturbationConfig)
    """The noise of `initial-poses perturbed`."""
    sparse: SparseStartConfig = field(default_factory=SparseStartConfig)
    """The network of `initial-poses sparse`."""
    pixel_sampler: EdgePixelSamplerConfig = field(default_factory=EdgePixelSamplerConfig)
    """Which pixels are sampled."""
    added_images: Optional[Path] = None
    """A transforms.json of more photographs to train on, with poses in the frame of the input.
    `hashpose-localize --add True` writes one. They start at these poses, whatever `initial_poses` is."""
    # No field: neither a flag nor part of config.yml.
    trained = None  # type: Optional[PosedScene]
    """The finished run whose data these are, where a pipeline was loaded to look at one. A datamanager made from this
    configuration afterwards, as `ns-render dataset` makes one, shows the cameras where the run's field sees them."""

    def setup(self, **kwargs) -> Any:
        """Makes a datamanager."""
        parser: Any = self.dataparser
        factor = getattr(parser, "downscale_factor", None)
        if isinstance(factor, float) and factor.is_integer():  # ns-render's 2.0 would be looked for in images_2.0
            parser.downscale_factor = int(factor)
        if parser._target is ColmapDataParser:
            parser._target = ColmapWithFullOpenCV
        return super().setup(**kwargs) if self.trained is None else self._setup_beside(self.trained, **kwargs)

    @exits_on_user_error  # no pipeline is around this one
    def _setup_beside(self, trained: PosedScene, **kwargs) -> Any:
        manager = super().setup(**kwargs)
        manager.show_trained(trained)
        return manager


class HashPoseDataManager(VanillaDataManager[NamedImages]):
    """Rays and pixels of all training images, with initial poses by the settings.

    The reference poses stay in `train_dataparser_outputs`; `train_dataset.cameras` carries the initial ones. What the
    model must know travels in `train_dataset.metadata`, as `TrainingCameras`. Rays depend on (seed, step) alone, so
    that a resumed run sees what an uninterrupted one would have seen.
    """

    config: HashPoseDataManagerConfig

    def __init__(self, config: HashPoseDataManagerConfig, *args, **kwargs) -> None:
        # ns-train seeded torch just before; ns-eval did not, and needs no rays.
        self.seed = torch.initial_seed() % 2**31
        self.seeded_step: Optional[int] = None
        self.said: List[str] = []
        self.source: Optional[SourceCameras] = None
        self.from_source: Optional[Similarity] = None
        dataparser: Any = config.dataparser
        if config.data is not None:
            dataparser.data = Path(config.data)
        if kwargs.get("test_mode") != "inference":
            leave_out_points(dataparser)
        with reading("The data", dataparser):
            check_before_reading(dataparser)
            while True:
                try:
                    super().__init__(config, *args, **kwargs)
                    return
                except Exception as error:
                    if self.source is None and hasattr(self, "dataparser"):
                        blame_source(self.dataparser)
                    choice = way_round(error, dataparser)
                    if choice is None:
                        raise
                CONSOLE.print(choice, soft_wrap=True)

    def create_train_dataset(self) -> NamedImages:
        """The training images, with the initial poses in place of the dataparser's."""
        check_scale(self.config.dataparser, self.train_dataparser_outputs)
        outputs = in_full_order(self.dataparser, "train", self.train_dataparser_outputs)
        self.train_dataparser_outputs = outputs
        if (count := len(outputs.image_filenames)) < 2:
            raise HashPoseError(
                f"There is {count} training image; poses are refined between images, so at least 2 are needed."
            )
        self.source = source_cameras(self.dataparser)
        if self.source is not None:
            self._say(check_source(self.dataparser, self.source))
        self._settle(outputs)
        count = len(outputs.image_filenames)
        if self.config.added_images is not None:
            outputs = self.train_dataparser_outputs = self._with_added(outputs, Path(self.config.added_images))
        reference = outputs.cameras.camera_to_worlds
        dataset = super().create_train_dataset()
        dataset.cameras.metadata = dataset.cameras.metadata or {}
        initial = torch.cat([self._initial_poses(reference[:count]), reference[count:]])
        dataset.cameras.camera_to_worlds = initial.clone()
        TrainingCameras(
            initial_camera_to_worlds=initial,
            reference_camera_to_worlds=reference.clone(),
            image_names=tuple(Path(name).as_posix() for name in outputs.image_filenames),
            half_extent=half_extent(outputs.cameras),
        ).into(dataset.metadata)
        return dataset

    def _with_added(self, outputs: DataparserOutputs, path: Path) -> DataparserOutputs:
        """The training images and, behind them, those of a file."""
        similarity = self.from_source
        if similarity is None:
            if (reason := one_way(self.dataparser)) is not None:
                raise HashPoseError(f"No images can be added, because {reason}.")
            similarity = dataparser_similarity(outputs)
        known = len(outputs.image_filenames)
        outputs = with_added(outputs, path, self.dataparser, similarity)
        names = [printable(file.name) for file in outputs.image_filenames]
        check_intrinsics(outputs.cameras, names)
        check_images(outputs.image_filenames, outputs.cameras, outputs.alpha_color is not None)
        validate_poses(outputs.cameras.camera_to_worlds[known:], names[known:], ROUNDING_TOLERANCE)
        self._say(make_rigid(outputs))
        return outputs

    def _similarity(self, source: SourceCameras, outputs: DataparserOutputs) -> Similarity:
        """From the frame of the user's files to nerfstudio's."""
        similarity = source.similarity(outputs.image_filenames, outputs.cameras.camera_to_worlds)
        if similarity is None:
            make_rigid(outputs)  # names a pose that nerfstudio has broken
            raise HashPoseError(
                f"nerfstudio's {type(self.dataparser).__name__} does more to the poses of {source.path} than change "
                "their frame; train with other settings of the dataparser."
            )
        return similarity

    def _settle(self, outputs: DataparserOutputs) -> None:
        """Checks one split, and gives its cameras the poses of the user's files; the dataparser rounds large
        coordinates before it centres them."""
        if not outputs.image_filenames:
            return
        self._say(check_outputs(self.dataparser, outputs, self.source))
        check_images(outputs.image_filenames, outputs.cameras, outputs.alpha_color is not None)
        if self.source is not None:
            if self.from_source is None:
                self.from_source = self._similarity(self.source, outputs)
                # of all splits: a few held-out cameras may well be close together
                check_float32(self.from_source.apply_to_poses(self.source.camera_to_worlds))
            given = self.source.camera_to_worlds[self.source.rows(outputs.image_filenames)]
            outputs.cameras.camera_to_worlds = self.from_source.apply_to_poses(given).float()
        self._say(make_rigid(outputs))

    def _say(self, notes: Sequence[str]) -> None:
        """Prints what had to be changed, once for both splits."""
        for note in notes:
            if note not in self.said:
                CONSOLE.print(note, soft_wrap=True, markup=False)
                self.said.append(note)

    def _initial_poses(self, reference: Float[Tensor, "num_cameras 3 4"]) -> Float[Tensor, "num_cameras 3 4"]:
        if self.config.initial_poses == "perturbed":
            return perturb_poses(reference, self.config.perturbation)
        if self.config.initial_poses == "identity":
            return identity_poses(len(reference))
        if self.config.initial_poses == "sparse" and self.test_mode == "val":  # a loaded run has them in its checkpoint
            return self._sparse_poses()
        return reference.clone()

    def _sparse_poses(self) -> Float[Tensor, "num_cameras 3 4"]:
        if self.config.added_images is not None:
            raise HashPoseError(
                "Poses of initial-poses sparse are in a frame of their own, which added images know nothing of; put "
                "all images into one file."
            )
        outputs = self.train_dataparser_outputs
        return sparse_poses(outputs.image_filenames, outputs.cameras, outputs.mask_filenames, self.config.sparse)

    def create_eval_dataset(self) -> NamedImages:
        """The held-out images. Data that lack the split have those of the other one, or none."""
        self.test_split, outputs = held_out_outputs(self.dataparser, self.test_split, self.train_dataparser_outputs)
        outputs = in_full_order(self.dataparser, self.test_split, outputs)
        self._settle(outputs)
        return self.dataset_type(dataparser_outputs=outputs, scale_factor=self.config.camera_res_scale_factor)

    def set_initial_poses(self, camera_to_worlds: Float[Tensor, "num_cameras 3 4"]) -> None:
        """Takes the initial poses that a checkpoint was trained from, whatever this machine's generator would draw."""
        place_cameras(camera_to_worlds, self.train_dataset, getattr(self, "train_ray_generator", None))

    def show_trained(self, scene: PosedScene) -> None:
        """Puts the cameras to where a finished run's field sees them: refined, and held-out ones aligned. nerfstudio's
        ns-render and ns-export take them from here. Not for training, which corrects initial poses.

        Raises:
            HashPoseError: these are not the training cameras of that run.
        """
        given, known = self.train_dataparser_outputs.cameras.camera_to_worlds, scene.poses.reference_camera_to_worlds
        if given.shape != known.shape or not torch.allclose(given, known.to(given), atol=1e-3):
            raise HashPoseError(
                "The training cameras are not those of the run, or come in another order; render the data that the run "
                "was trained on, without --downscale-factor."
            )
        with torch.no_grad():
            refined = scene.poses.refined_camera_to_worlds()
        place_cameras(refined, self.train_dataset, getattr(self, "train_ray_generator", None))
        names = ("eval_ray_generator", "fixed_indices_eval_dataloader", "eval_dataloader")
        held_out = scene.to_learned_frame(self.eval_dataset._dataparser_outputs.cameras.camera_to_worlds)
        place_cameras(held_out, self.eval_dataset, *(getattr(self, name, None) for name in names))

    def setup_train(self) -> None:
        """Loads the images; in the order of their indices, where nerfstudio shuffles them."""
        self._keep_on_the_cpu()
        super().setup_train()
        batch = self.train_image_dataloader.cached_collated_batch
        if batch is not None and isinstance(batch["image_idx"], Tensor):
            order = torch.argsort(batch["image_idx"])
            for key, value in batch.items():
                if isinstance(value, Tensor) and len(value) == len(order):
                    batch[key] = value[order.to(value.device)]
                elif isinstance(value, list) and len(value) == len(order):  # images of different sizes
                    batch[key] = [value[index] for index in order]
        check_rays(self.train_dataset.cameras)
        self.train_ray_generator = TrainingRays(self.train_ray_generator.cameras)

    def setup_eval(self) -> None:
        """Loads the held-out images, if there are any."""
        if len(self.eval_dataset):
            self._keep_on_the_cpu()
            super().setup_eval()
            check_rays(self.eval_dataset.cameras)

    def _keep_on_the_cpu(self) -> None:
        """Pixels are drawn on the CPU, and what that takes stays there: reading it from a GPU would wait for it."""
        self.exclude_batch_keys_from_device = [*self.exclude_batch_keys_from_device, "image_idx", "mask"]

    def next_train(self, step: int) -> Tuple[RayBundle, Dict]:
        """Rays and pixels of one step; others when asked again for it, as ns-export does to collect points."""
        if step != self.seeded_step:
            seed_generators(self.seed * 1_000_003 + step, torch.device(self.device))
            self.seeded_step = step
        self.train_count += 1
        assert self.train_pixel_sampler is not None
        batch = self.train_pixel_sampler.sample(next(self.iter_train_image_dataloader))
        for key, value in batch.items():
            if isinstance(value, Tensor) and key != "full_image":
                batch[key] = sent(value, self.device)
        return self.train_ray_generator(batch["indices"]), batch


def place_cameras(camera_to_worlds: Float[Tensor, "num_cameras 3 4"], *owners: Any) -> None:
    """Gives the `cameras` of each owner these poses; None owns none."""
    for owner in owners:
        if owner is not None:
            owner.cameras.camera_to_worlds = camera_to_worlds.to(owner.cameras.camera_to_worlds, copy=True)


def seed_generators(seed: int, device: torch.device) -> None:
    """What `torch.manual_seed` does for the CPU's generator and the device's. That one also leaves a note with a stack
    trace for every kind of device that is not in use, which takes a quarter of a millisecond."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def half_extent(cameras: Cameras) -> Tuple[float, float]:
    """Tangents of the largest half field of view in x and y."""
    x = torch.maximum(cameras.cx, cameras.width - cameras.cx) / cameras.fx
    y = torch.maximum(cameras.cy, cameras.height - cameras.cy) / cameras.fy
    return float(x.max()), float(y.max())


def leave_out_points(dataparser: Any) -> None:
    """Has a dataparser's configuration load no 3-D points: training uses none, so they need not be there. Exports load
    a run in inference mode, and may ask for them."""
    if hasattr(dataparser, "load_3D_points"):
        dataparser.load_3D_points = False


def check_rays(cameras: Cameras) -> None:
    """Makes a ray of every camera, so that one which can make none is found out before training."""
    index = torch.arange(len(cameras))[:, None]
    cameras.generate_rays(camera_indices=index, coords=torch.zeros(len(cameras), 2) + 0.5)


def check_images(filenames: Sequence[Path], cameras: Cameras, composited: bool = False) -> None:
    """Opens every image's header.

    Args:
        filenames: the images.
        cameras: their cameras, at the images' resolution.
        composited: whether alpha is removed on loading, so that images with and without it may be mixed.

    Raises:
        HashPoseError: a file is missing, is no image, has a pixel format that would be misread, or has another size
            than its camera.
    """
    from PIL import Image

    alphas = set()
    for index, filename in enumerate(filenames):
        with reading(f"The image {filename}"):
            try:
                with Image.open(filename) as image:
                    size, mode = image.size, image.mode
            except FileNotFoundError:
                missing = sum(not Path(name).exists() for name in filenames)
                raise HashPoseError(
                    f"{missing} of {len(filenames)} images are missing, the first is {filename}."
                ) from None
        if mode not in ("RGB", "RGBA", "L"):  # nerfstudio takes palette indices for grey values and CMYK's K for alpha
            raise HashPoseError(
                f"The image {filename} has the pixel format {mode}; convert it to 8-bit RGB, RGBA or grey."
            )
        camera = int(cameras.width[index]), int(cameras.height[index])
        if size != camera:
            raise HashPoseError(
                f"The image {filename} is {size[0]}x{size[1]}, but its camera says {camera[0]}x{camera[1]}; scale the "
                "intrinsics in the input, or give the images they belong to."
            )
        alphas.add(mode == "RGBA")
    if len(alphas) > 1 and not composited:
        raise HashPoseError("Some images have an alpha channel and some have none; give all of them one, or none.")
