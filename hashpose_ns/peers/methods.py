"""Settings of each peer, and where they differ from what its authors published.

Not registered as entry points: other methods' settings would cost every ns-* command its start-up time. nerfstudio's
commands, those that load a run included, know one by
``NERFSTUDIO_METHOD_CONFIGS="barf=hashpose_ns.peers.methods:barf" ns-train barf --data path/to/chair``.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Dict, Literal, NamedTuple, Optional, Tuple

from hashpose_ns import methods
from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.errors import HashPoseError
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.model import HashPoseModelConfig
from hashpose_ns.optim.curriculum import CurriculumConfig
from hashpose_ns.optim.schedules import AdamConfig, ScheduleConfig
from hashpose_ns.peers.coordinate_fields import BARFFieldConfig, GARFFieldConfig
from hashpose_ns.peers.nerfacto import NerfactoPosesModelConfig
from hashpose_ns.trainer import HashPoseTrainerConfig
from nerfstudio.plugins.types import MethodSpecification

Protocol = Literal["blender", "llff", "captures"]
PROTOCOLS: Dict[str, MethodSpecification] = {
    "blender": methods.blender,
    "llff": methods.llff,
    "captures": methods.hashpose,
}
"""The method of this package whose data, initial poses and evaluation a peer takes over unchanged."""

TORCH_ADAM: Dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}


class Peer(NamedTuple):
    """What a peer is."""

    description: str
    """One sentence."""
    deviations: Tuple[str, ...]
    """What differs here from what its authors published, a sentence each."""


def _group(lr: float, lr_final: Optional[float], decay_until: float = 1.0, **adam) -> Dict[str, Any]:
    return {
        "optimizer": AdamConfig(lr=lr, **adam),
        "scheduler": ScheduleConfig(lr_final=lr_final, decay_until=decay_until),
    }


# -- coordinate networks -----------------------------------------------------------------------------------------------


def _coordinate_network(config: HashPoseTrainerConfig, field: Any, curriculum: CurriculumConfig) -> None:
    """BARF's training, which GARF shares: no delay of the poses, no background but what the field puts there."""
    model = config.pipeline.model
    assert isinstance(model, HashPoseModelConfig)
    model.field = field
    model.curriculum = curriculum
    model.camera_optimizer = PoseOptimizerConfig(start=0.0, warmup=0.0)
    # The released code gives the last sample of a ray endless depth, so that it takes all light that is left.
    model.background_color = "last_sample"
    model.clip_to_box = False


def _barf(config: HashPoseTrainerConfig, protocol: Protocol) -> None:
    _coordinate_network(config, BARFFieldConfig(), CurriculumConfig(mode="mask", window=(0.1, 0.5), indexing="barf"))
    field, poses = ((1e-3, 1e-4), (3e-3, 1e-5)) if protocol == "llff" else ((5e-4, 1e-4), (1e-3, 1e-5))
    config.optimizers = {"decoder": _group(*field, **TORCH_ADAM), "camera_opt": _group(*poses, **TORCH_ADAM)}


def _garf(config: HashPoseTrainerConfig, protocol: Protocol) -> None:
    _coordinate_network(config, GARFFieldConfig(), CurriculumConfig(mode="none"))
    field, poses = ((1e-4, None), (3e-3, 1e-5)) if protocol == "llff" else ((5e-4, 1e-4), (1e-3, 1e-5))
    config.optimizers = {"decoder": _group(*field, **TORCH_ADAM), "camera_opt": _group(*poses, **TORCH_ADAM)}


def _l2g(config: HashPoseTrainerConfig, protocol: Protocol) -> None:
    _barf(config, protocol)
    model = config.pipeline.model
    assert isinstance(model, HashPoseModelConfig)
    model.camera_optimizer.model = "local-to-global"
    if protocol == "blender":
        model.planes, model.depth_measure = "cameras", "z"
    config.pipeline.datamanager.pixel_sampler.cameras = "shared"
    rate = 3e-3 if protocol == "llff" else 1e-3
    config.optimizers["camera_warp"] = _group(rate, 1e-8, **TORCH_ADAM)


# -- hash grids --------------------------------------------------------------------------------------------------------


def _baa_ngp(config: HashPoseTrainerConfig, protocol: Protocol) -> None:
    config.max_num_iterations = config.steps_per_eval_all_images = 40_000
    model = config.pipeline.model
    assert isinstance(model, HashPoseModelConfig)
    model.field = HashPoseFieldConfig(
        encoding=HashEncodingConfig(num_levels=16, base_resolution=14, max_resolution=4096, gradient="linear"),
        decoder=DecoderConfig(density_layers=1, color_layers=2, width=64, density_activation="exp"),
    )
    model.curriculum = CurriculumConfig(mode="repeat", window=(0.1, 0.5), indexing="baa-ngp")
    model.camera_optimizer = PoseOptimizerConfig(start=0.0, warmup=0.0)
    model.loss = "smooth-l1"
    adam = {"betas": (0.9, 0.999), "eps": 1e-15}
    config.optimizers = {
        "encoding": _group(1e-2, 1e-4, **adam),
        "decoder": _group(1e-2, 1e-4, **adam),
        # Two Adams see the same gradient, so their steps are parallel and add up.
        "camera_opt": _group(1e-2 + 1e-3, 1e-4 + 1e-5, **adam),
    }


def _naive_hash_grid(config: HashPoseTrainerConfig, protocol: Protocol) -> None:
    model = config.pipeline.model
    assert isinstance(model, HashPoseModelConfig) and isinstance(model.field, HashPoseFieldConfig)
    model.field.encoding.gradient = "linear"
    model.curriculum = CurriculumConfig(mode="none")


# -- nerfacto ----------------------------------------------------------------------------------------------------------


def _nerfacto_poses(config: HashPoseTrainerConfig, protocol: Protocol) -> None:
    config.max_num_iterations = config.steps_per_eval_all_images = 30_000
    config.mixed_precision = True
    datamanager = config.pipeline.datamanager
    datamanager.train_num_rays_per_batch = datamanager.eval_num_rays_per_batch = 4096
    model = NerfactoPosesModelConfig(average_init_density=0.01)
    if protocol == "blender":  # as nerfstudio's benchmark script has it for NeRF-Synthetic
        model.near_plane, model.far_plane = 2.0, 6.0
        model.background_color = "white"
        model.proposal_initial_sampler = "uniform"
        model.use_average_appearance_embedding = False
        model.distortion_loss_mult = 0.0
        model.disable_scene_contraction = True
    elif protocol == "llff":
        model.near_plane = 1.0
    config.pipeline.model = model
    # nerfacto's schedules in steps, as fractions of its 30 000: fields decay to 1e-4 over 200 000, poses over 5000.
    fields = _group(1e-2, 1e-2 * (1e-4 / 1e-2) ** (30_000 / 200_000), **{**TORCH_ADAM, "eps": 1e-15})
    config.optimizers = {
        "proposal_networks": fields,
        "fields": copy.deepcopy(fields),
        "camera_opt": _group(1e-3, 1e-4, decay_until=5000 / 30_000, **{**TORCH_ADAM, "eps": 1e-15}),
    }


# -- all of them -------------------------------------------------------------------------------------------------------

_ALL = (
    "Samples of a ray are the middles of bins with jittered edges (nerfstudio's samplers), where BARF's code and its "
    "descendants draw a point in each even bin.",
    "A step's pixels are drawn from all images independently; nothing else about data, initial poses, alignment, "
    "test-time optimisation and scores differs between the methods compared here.",
)
_COORDINATES = (
    "BARF's code draws one set of pixels a step and takes it from every image; here each ray has a pixel of its own.",
    "Unbounded captures, which the paper has none of, are contracted to [-2, 2]^3; positions of objects and "
    "forward-facing captures enter in scene units as they are, as in the released code.",
    "Corrections multiply camera-to-world poses from the left: BARF's world side, with the twist's sign turned round.",
)
_HASH_GRID = (
    "The grid is this package's, with d-linear gradients: float32, dense coarse levels, vertices at the corners of the "
    "box (tiny-cuda-nn staggers them by half a cell).",
)

PEERS: Dict[str, Peer] = {
    "barf": Peer(
        "BARF: an 8x256 network whose sinusoids of position and direction open from coarse to fine.",
        (
            "As in the released settings, the field does not know the background's colour and paints it itself: the "
            "last sample of a ray takes what light is left. --pipeline.model.background-color white tells it.",
            *_COORDINATES,
            *_ALL,
        ),
    ),
    "l2g": Peer(
        "L2G-NeRF: BARF's network, with a motion for each ray and cameras registered to their rays.",
        (
            "Poses that are scored, logged and exported are registered to a fixed grid of 8x8 rays, where the released "
            "code takes those of the last step's few random rays. Planes still follow the latter.",
            "Captures and forward-facing scenes have the planes of the other methods, as in the released settings.",
            "As BARF has it here, the field paints the background: the last sample of a ray takes what light is left.",
            *_COORDINATES[1:],
            _ALL[0],
            "As in the released code one set of pixels a step is taken from every image; what is left over of a batch "
            "goes to some of them. Otherwise nothing about data, initial poses, alignment, test-time optimisation and "
            "scores differs between the methods compared here.",
        ),
    ),
    "garf": Peer(
        "GARF: a 6x256 network of plain coordinates with Gaussian activations.",
        (
            "The released code has settings for forward-facing scenes alone. For objects, GARF has here the released "
            "network and sigma (6x256, 0.1) with BARF's learning rates, 5e-4 to 1e-4 and 1e-3 to 1e-5.",
            "As in the released code, which the paper does not describe, the layers that take positions and directions "
            "subtract the mean over their outputs before the activation.",
            *_COORDINATES,
            *_ALL,
        ),
    ),
    "baa-ngp": Peer(
        "BAA-NGP's recipe: masked hash levels that repeat the finest open one, a small decoder, 40K steps.",
        (
            "No occupancy grid: 1024 rays x 128 uniform samples a step, as the others, where the released code marches "
            "in steps of 0.005 through occupied cells of the box with about 2^18 samples.",
            "The released code steps poses by two Adams at once (1e-2 to 1e-4 with the field, 1e-3 to 1e-5 on their "
            "own). Both see the same gradient, so one Adam has the sum of their rates, 1.1e-2 to 1.1e-4.",
            "Its smooth-L1 loss is half the squared error wherever colours differ by less than 1, which is everywhere: "
            "Adam takes the same steps as for the squared error.",
            "View directions are encoded by sinusoids instead of spherical harmonics, the density is exp(x) instead of "
            "exp(x - 1), and layers have biases.",
            "Tables start in [0, 1e-4] instead of [-1e-4, 1e-4], and the weight decay of 1e-6, which the scaled loss "
            "makes 1e-9 there, is left out.",
            "Forward-facing scenes, for which no code was released, have the settings of objects.",
            *_HASH_GRID,
            *_ALL,
        ),
    ),
    "naive-hash-grid": Peer(
        "The hash grid without curriculum and without smoothed gradients, otherwise as hashpose.",
        (
            "Row (e) of the paper's Table 3 with this package's reading of what the paper leaves open, as hashpose has "
            "it, a delay of the poses included.",
            *_HASH_GRID,
            *_ALL,
        ),
    ),
    "nerfacto-poses": Peer(
        "nerfacto with its own SO3xR3 camera optimizer.",
        (
            "For NeRF-Synthetic it has the flags of nerfstudio's benchmark script (uniform initial samples, no "
            "contraction, no distortion loss, no mean appearance embedding), but keeps its camera optimizer, which the "
            "script switches off, and nerfacto's own 4096 rays and 30K steps.",
            "Held-out cameras are rendered from the near plane of training on, where nerfstudio's collider begins at 0 "
            "in evaluation. With a near plane of 1 forward-facing scenes measure it along the ray.",
            "Schedules are fractions of training. Steps of the proposal networks' warm-up and annealing are not: "
            "shorten them with the run (--pipeline.model.proposal-warmup, "
            "--pipeline.model.proposal-weights-anneal-max-num-iters).",
            "Without tinycudann it runs on nerfstudio's PyTorch fallbacks, whose spherical harmonics pass no gradient "
            "from colour to the view direction.",
            "Adam is fused, and the test-time optimisation of held-out cameras, which nerfacto has none of, is a rigid "
            "motion in the camera's frame.",
            _ALL[1],
        ),
    ),
}
"""All peers by name."""

_SETTINGS: Dict[str, Callable[[HashPoseTrainerConfig, Protocol], None]] = {
    "barf": _barf,
    "l2g": _l2g,
    "garf": _garf,
    "baa-ngp": _baa_ngp,
    "naive-hash-grid": _naive_hash_grid,
    "nerfacto-poses": _nerfacto_poses,
}


def peer_config(name: str, protocol: Protocol = "blender") -> HashPoseTrainerConfig:
    """A peer's configuration, a new one at every call.

    Args:
        name: one of `PEERS`.
        protocol: `blender` (NeRF-Synthetic, perturbed poses), `llff` (forward-facing, from the identity) or `captures`
            (nerfstudio's data, from the given poses).

    Raises:
        HashPoseError: there is no such peer or protocol.
    """
    for what, given, known in (("method", name, PEERS), ("protocol", protocol, PROTOCOLS)):
        if given not in known:
            raise HashPoseError(f"There is no {what} {given} to compare with; choose one of {', '.join(known)}.")
    config = copy.deepcopy(PROTOCOLS[protocol].config)
    assert isinstance(config, HashPoseTrainerConfig)
    config.method_name = name
    _SETTINGS[name](config, protocol)
    return config


def _specification(name: str) -> MethodSpecification:
    return MethodSpecification(config=peer_config(name), description=PEERS[name].description)


barf = _specification("barf")
l2g = _specification("l2g")
garf = _specification("garf")
baa_ngp = _specification("baa-ngp")
naive_hash_grid = _specification("naive-hash-grid")
nerfacto_poses = _specification("nerfacto-poses")
