"""All that trains and looks at poses, on a GPU that is emulated: no mix of devices, and steps that wait for nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, List

import pytest
import torch
from ball_world import shorten_searches
from commands import model_state, pose_log
from emulated_gpu import OnDevice, Wait, gpu, waits
from scenes import blender_scene, edit_json, llff_scene, nerfstudio_scene
from small_peers import small_config
from test_model import match_term

from hashpose_ns.bench.configs import base_config
from hashpose_ns.guard.report import read_verdict
from hashpose_ns.localize.photographs import Photographs, lens_of
from hashpose_ns.photometry.image_losses import ImageLosses
from hashpose_ns.photometry.localize import Localizer, SearchConfig
from hashpose_ns.photometry.scores import image_error
from hashpose_ns.trainer import HashPoseTrainer, HashPoseTrainerConfig
from hashpose_ns.viewer.actions import PoseActions
from hashpose_ns.viewer.state import PoseReading, PoseState
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils import profiler, writer

assert gpu is not None  # the fixture
pytestmark = pytest.mark.usefixtures("gpu")
LOGGING = ("_record_poses", "_log_poses", "_check_finite")
"""Where a step's numbers are read to be written down."""


@pytest.fixture(autouse=True)
def fresh_writers():
    """nerfstudio's writers are global: none of another test, and none left behind."""

    def forget() -> None:
        for state in (writer.EVENT_WRITERS, writer.EVENT_STORAGE, writer.GLOBAL_BUFFER, profiler.PROFILER):
            state.clear()

    forget()
    yield
    forget()


def tiny(method: str, folder: Path) -> HashPoseTrainerConfig:
    """A method's settings, with a scene of its format and all sizes small."""
    method, _, pose_model = method.partition(", ")
    if method.startswith("hashpose"):
        protocols = {"hashpose-llff": "llff", "hashpose-blender": "blender", "hashpose-object": "blender"}
        name = method.removesuffix("-llff").removesuffix("-blender")
        config: Any = base_config(name, protocols.get(method, "captures"))
        encoding = config.pipeline.model.field.encoding
        encoding.num_levels, encoding.log2_hashmap_size, encoding.base_resolution, encoding.max_resolution = 3, 9, 4, 16
        config.pipeline.model.field.decoder.width = 8
    else:
        config = small_config(method)
    make = {"LLFF": llff_scene, "Nerf": nerfstudio_scene, "Blen": blender_scene}
    parser = config.pipeline.datamanager.dataparser
    parser.data = make[type(parser).__name__[:4]](folder / "scene", 8, 16)
    datamanager, model = config.pipeline.datamanager, config.pipeline.model
    datamanager.train_num_rays_per_batch = datamanager.eval_num_rays_per_batch = 32
    if hasattr(model, "num_samples"):
        model.num_samples, model.num_importance_samples = 6, min(getattr(model, "num_importance_samples", 0), 6)
    model.camera_optimizer.start = model.camera_optimizer.warmup = 0.0
    if pose_model:
        model.camera_optimizer.model, datamanager.pixel_sampler.cameras = pose_model, "equal"
    config.pipeline.eval_num_images, config.pipeline.tto_steps, config.pipeline.tto_rays = 2, 2, 16
    config.output_dir, config.experiment_name, config.timestamp, config.vis = folder, "e", "run", "tensorboard"
    config.logging.local_writer.enable = False
    config.matches.start, config.guard.mode, config.recovery.at = "off", "off", ()
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    return config


def made(config: HashPoseTrainerConfig) -> HashPoseTrainer:
    """Its trainer, on the GPU."""
    config.machine.device_type = "cuda"
    config.save_config()
    torch.manual_seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    return trainer


def train(trainer: HashPoseTrainer, steps: int) -> List[List[Wait]]:
    """Trains by nerfstudio's loop and ends early. What was waited for in each step and around it."""
    found: List[List[Wait]] = []
    begun = waits()
    found.append(begun.__enter__())

    def after(step: int) -> None:
        nonlocal begun
        begun.__exit__(None, None, None)
        trainer.stop_training = step + 1 >= steps
        begun = waits()
        found.append(begun.__enter__())

    trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], after))
    trainer.train()
    begun.__exit__(None, None, None)
    return found[:steps]


METHODS = ("hashpose", "hashpose-blender", "hashpose-llff", "hashpose-small", "hashpose-object")
LOCAL_TO_GLOBAL = "hashpose-object, local-to-global"
PEERS = ("barf", "garf", "baa-ngp", "nerfacto-poses")  # naive-hash-grid is hashpose-blender with other settings


@pytest.mark.parametrize("method", [*METHODS, LOCAL_TO_GLOBAL, *PEERS])
def test_a_step_of_every_method_waits_for_nothing(method, tmp_path):
    config = tiny(method, tmp_path)
    config.max_num_iterations, config.pipeline.held_out_rays = 10_000, 0
    datamanager = config.pipeline.datamanager
    if method == "hashpose":  # images of phones, on the GPU
        edit_json(tmp_path / "scene" / "transforms.json", lambda meta: meta.update(k1=0.1, p1=0.01))
        datamanager.images_on_gpu, datamanager.pixel_sampler.edge_fraction = True, 0.5
    trainer = made(config)
    model = trainer.pipeline.model
    poses = model.camera_optimizer
    start = poses.refined_camera_to_worlds().detach().cpu()
    actions = PoseActions(poses, trainer.optimizers.optimizers.values())  # as with a viewer
    actions.hold(2, True)
    losses = ImageLosses(len(start), model.device)
    model.observe_errors(losses.add)
    if method == "hashpose-small":
        poses.terms["match_loss"] = match_term()
    waited = [wait for wait in train(trainer, 3)[2] if not wait.where.endswith(LOGGING)]
    if method == "nerfacto-poses":  # nerfstudio's encoding and samplers in torch
        waited = [wait for wait in waited if not wait.where.startswith("nerfstudio")]
    assert waited == [], "\n".join(map(str, waited))
    assert all(isinstance(parameter, OnDevice) for parameter in model.parameters())
    moved = (poses.refined_camera_to_worlds().detach().cpu() - start).abs().amax(dim=(1, 2)) > 0
    assert moved.sum() >= 4 and not moved[2]
    assert method == "nerfacto-poses" or float(losses.overall()) > 0
    assert all(torch.isfinite(value).all() for value in model_state(config.get_base_dir()).values())


def test_the_emulation_notices_mixes_and_waits():
    """Else the other tests say nothing."""
    there, here = torch.rand(4, 3, device="cuda", requires_grad=True), torch.rand(4, 3)
    assert there.device == torch.device("cuda:0") and isinstance(there.detach(), OnDevice)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="indexed tensor"):
        here[torch.zeros(2, dtype=torch.long, device="cuda")]
    with pytest.raises(TypeError, match="Tensor.cpu"):
        there.detach().numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    with waits() as none:
        (there * 2.0 + torch.tensor(1.0)).sum().backward()
        assert isinstance(there.grad, OnDevice)
        here.pin_memory().to("cuda", non_blocking=True)
        torch.where(there > 0, there, torch.zeros_like(there))
        there.detach()[there > 0.5] = 0.0
        torch.zeros(3, device="cuda")[1] = 2.0
    assert none == []
    with waits() as some:
        float(there.sum())
        here.to("cuda", non_blocking=True)
        there.cpu().sum().backward()
        there[there > 0.5]
        there[torch.tensor([0, 1])]
        torch.tensor([1.0], device="cuda")
        there.tolist()
        torch.zeros(4, 3, device="cuda").copy_(here)
    assert len(some) == 8 and all("test_emulated_gpu.py" in wait.where for wait in some)
    torch.testing.assert_close(there.grad.cpu(), torch.full((4, 3), 3.0))


def test_the_fall_back_without_triton_trains_as_well(tmp_path):
    """Eager torch computes the encoding on the device itself; here its waits do not count."""
    config = tiny("hashpose-blender", tmp_path)
    config.max_num_iterations, config.pipeline.model.field.encoding.backend = 10_000, "eager"
    train(made(config), 1)
    assert [record["step"] for record in pose_log(config.get_base_dir())] == [0]


def test_a_whole_run(tmp_path, monkeypatch):
    """Training with guard, recovery and settling to the end, evaluation on the way and after, and all that looks at a
    trained run; then on from its checkpoint."""
    shorten_searches(monkeypatch)
    monkeypatch.setattr(Localizer, "schedule", lambda *_: (1, 16))
    config = tiny("hashpose-object", tmp_path)
    config.max_num_iterations = steps = 8
    config.steps_per_eval_batch, config.steps_per_eval_image, config.steps_per_pose_log = 3, 4, 4
    config.guard.mode, config.guard.fallback_at, config.guard.steps, config.guard.rays = "report", (0.5,), 2, 32
    config.matches.start = "auto"
    config.recovery.at, config.recovery.hypotheses, config.recovery.steps, config.recovery.rays = (0.25,), 4, 3, 16
    config.recovery.suspicion = 0.0
    config.pipeline.model.camera_optimizer.settling.window = 0.125
    trainer = made(config)
    trainer.train()
    run = config.get_base_dir()
    assert len(read_verdict(run).cameras) == 8
    records = pose_log(run)
    assert [record["step"] for record in records] == [0, 4, 7] and "held_out_psnr" in records[-1]
    metrics = trainer.pipeline.get_average_eval_image_metrics()
    assert all(math.isfinite(value) for value in metrics.values()) and "psnr_tto" in metrics
    look_at_a_run(trainer, tmp_path)

    again = tiny("hashpose-object", tmp_path / "again")
    again.load_dir, again.max_num_iterations = config.get_checkpoint_dir(), 2 * steps
    again.pipeline.changed_images = "warn"
    resumed = made(again)
    assert resumed._start_step == steps
    assert all(isinstance(parameter, OnDevice) for parameter in resumed.pipeline.model.parameters())
    moments = [state["exp_avg"] for state in resumed.optimizers.optimizers["camera_opt"].state.values()]
    assert all(isinstance(each, OnDevice) for each in moments)
    resumed.train()
    assert json.loads((again.get_base_dir() / "pose_errors.jsonl").read_text().splitlines()[-1])["step"] == 15


def look_at_a_run(trainer: HashPoseTrainer, folder: Path) -> None:
    """What viewer, exports and localisation ask of a trained run."""
    scene, poses = trainer.pipeline.scene, trainer.pipeline.model.camera_optimizer
    actions = PoseActions(poses, trainer.optimizers.optimizers.values())
    actions.turn(1, 5.0)
    state = PoseState.of(PoseReading.of(poses, 8))
    assert not isinstance(state.refined, OnDevice) and math.isfinite(state.errors.summary()["rotation_deg_mean"])

    pose = poses.refined_camera_to_worlds().detach()[0]
    assert 0 < image_error(scene.renderer, scene.train, 0, pose, own_appearance=True) < 1
    photograph = Path(scene.train.image_filenames[0])
    photographs = Photographs(scene, [photograph], [lens_of(photograph, scene)])
    result = Localizer(scene, SearchConfig(hypotheses=4, rays=1024, images=2)).localize(photographs, [0])[0]
    assert torch.isfinite(result.pose.cpu()).all() and math.isfinite(result.mse)

    poses.rebase(poses.refined_camera_to_worlds().cpu(), trusted=True)  # a start from matches
    assert poses.is_trusted and isinstance(poses.refined_camera_to_worlds(), OnDevice)
