"""Every peer through the real training loop, and what its settings say."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro
from commands import checkpoints, environment, model_state, pose_log
from scenes import CHAIR, llff_scene, nerfstudio_scene
from small_peers import build_trainer, small_config

from hashpose_ns.errors import HashPoseError
from hashpose_ns.field import HashPoseFieldConfig
from hashpose_ns.peers import methods
from hashpose_ns.peers.methods import PEERS, PROTOCOLS, peer_config
from hashpose_ns.peers.nerfacto import NerfactoPosesModelConfig
from nerfstudio.plugins.types import MethodSpecification
from nerfstudio.utils import profiler, writer

STEPS = 60


@pytest.fixture(autouse=True)
def fresh_writers():
    """nerfstudio's writers are global: none of another test, and none left behind."""

    def forget() -> None:
        for state in (writer.EVENT_WRITERS, writer.EVENT_STORAGE, writer.GLOBAL_BUFFER, profiler.PROFILER):
            state.clear()

    forget()
    yield
    forget()


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_learns_is_saved_loads_strictly_and_is_evaluated(name, tmp_path: Path):
    config = small_config(name)
    for group in config.optimizers.values():  # a few dozen steps
        group["optimizer"].lr = max(group["optimizer"].lr, 5e-3)
    for name_of_poses in {"camera_opt", "camera_warp"} & set(config.optimizers):
        config.optimizers[name_of_poses]["optimizer"].lr = 1e-3
    trainer = build_trainer(config, tmp_path, STEPS)
    losses = []
    train_iteration = trainer.train_iteration

    def recorded(step: int):
        output = train_iteration(step)
        losses.append(float(output[1]["rgb_loss"].detach()))
        return output

    trainer.train_iteration = recorded
    trainer.train()
    assert len(losses) == STEPS and sum(losses[-10:]) < 0.8 * sum(losses[:10]), (losses[:3], losses[-3:])
    optimizer = trainer.pipeline.model.camera_optimizer
    moved = (optimizer.refined_camera_to_worlds() - optimizer.initial_camera_to_worlds).abs().amax()
    # L2G-NeRF's network turns all cameras before the first step.
    assert 1e-4 < float(moved) < (1.5 if name == "l2g" else 0.3)

    run = config.get_base_dir()
    records = pose_log(run)
    assert records[0]["pose_error_before_rotation_deg_mean"] > 5, "poses start perturbed"
    metrics = trainer.pipeline.get_average_eval_image_metrics()
    assert all(math.isfinite(value) for value in metrics.values())
    assert {"psnr_aligned", "psnr_tto", "pose_error_after_translation_mean"} <= set(metrics)

    (checkpoint,) = checkpoints(run)
    again = small_config(name)
    again.load_checkpoint = checkpoint
    writer.EVENT_WRITERS.clear()
    resumed = build_trainer(again, tmp_path / "again", 2 * STEPS)
    saved = model_state(run)
    state = resumed.pipeline.model.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in state.items() if key != "progress")
    assert resumed._start_step == STEPS
    poses = resumed.pipeline.datamanager.train_dataset.cameras.camera_to_worlds
    assert torch.equal(poses, saved["camera_optimizer.initial_camera_to_worlds"])


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("protocol", ["llff", "captures"])
def test_a_peer_takes_forward_facing_and_unbounded_captures(name, protocol, tmp_path: Path):
    make_scene = {"llff": llff_scene, "captures": nerfstudio_scene}[protocol]
    config = small_config(name, protocol)
    config.pipeline.datamanager.dataparser.data = make_scene(tmp_path / "scene", num_images=10)
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")
    pipeline.model.set_training_length(100)
    pipeline.model.update_to_step(60)
    pipeline.train()
    _, losses, _ = pipeline.get_train_loss_dict(0)
    sum(losses.values()).backward()
    poses = pipeline.model.camera_optimizer
    gradient = (poses.warp.embedding.weight if name == "l2g" else poses.pose_adjustment).grad
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    # the warp's group stands ready for whoever chooses local-to-global poses
    assert set(config.optimizers) - set(pipeline.get_param_groups()) <= {"camera_warp"}
    assert set(pipeline.get_param_groups()) <= set(config.optimizers)
    pipeline.eval()
    metrics, _ = pipeline.get_eval_image_metrics_and_images(0)
    assert math.isfinite(metrics["psnr"])


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", PEERS)
def test_data_poses_and_evaluation_are_those_of_hashpose(name, protocol):
    peer, reference = peer_config(name, protocol), PROTOCOLS[protocol].config
    assert peer.method_name == name
    for key in ("initial_poses", "perturbation") + (("pixel_sampler",) if name != "l2g" else ()):
        assert getattr(peer.pipeline.datamanager, key) == getattr(reference.pipeline.datamanager, key)
    assert type(peer.pipeline.datamanager.dataparser) is type(reference.pipeline.datamanager.dataparser)
    for key in ("tto_steps", "tto_rays", "tto_lr", "eval_num_images"):
        assert getattr(peer.pipeline, key) == getattr(reference.pipeline, key)
    peer.pipeline.datamanager.train_num_rays_per_batch = peer.max_num_iterations = 1
    peer.optimizers["camera_opt"]["optimizer"].lr = 1.0
    other = peer_config(name, protocol)
    assert other.max_num_iterations > 1 and other.optimizers["camera_opt"]["optimizer"].lr < 1
    assert reference.pipeline.datamanager.train_num_rays_per_batch > 1, "a peer's settings are its own"


def rates(config) -> dict:
    return {
        name: (group["optimizer"].lr, group["scheduler"].lr_final, group["optimizer"].betas)
        for name, group in config.optimizers.items()
    }


def test_rates_of_the_published_peers():
    torch_betas = (0.9, 0.999)
    assert rates(peer_config("barf")) == {
        "decoder": (5e-4, 1e-4, torch_betas),
        "camera_opt": (1e-3, 1e-5, torch_betas),
    }
    assert rates(peer_config("barf", "llff")) == {
        "decoder": (1e-3, 1e-4, torch_betas),
        "camera_opt": (3e-3, 1e-5, torch_betas),
    }
    assert rates(peer_config("garf", "llff")) == {
        "decoder": (1e-4, None, torch_betas),
        "camera_opt": (3e-3, 1e-5, torch_betas),
    }
    assert rates(peer_config("baa-ngp"))["camera_opt"] == (pytest.approx(1.1e-2), pytest.approx(1.1e-4), torch_betas)


def test_l2g_is_as_published():
    betas = (0.9, 0.999)
    for protocol, field, warp in (("blender", 5e-4, 1e-3), ("llff", 1e-3, 3e-3)):
        config = peer_config("l2g", protocol)
        assert rates(config)["decoder"] == (field, 1e-4, betas)
        assert rates(config)["camera_warp"] == (warp, 1e-8, betas)
        poses = config.pipeline.model.camera_optimizer
        assert (poses.side, poses.start, poses.warmup, poses.warp.init) == ("world", 0, 0, "default")
        assert (poses.warp.width, poses.warp.embedding, poses.warp.weight, poses.warp.until) == (256, 128, 100, 1)
        assert config.pipeline.datamanager.pixel_sampler.cameras == "shared"
        assert config.pipeline.model.planes == ("cameras" if protocol == "blender" else "fixed")
        assert config.pipeline.model.curriculum == peer_config("barf", protocol).pipeline.model.curriculum


def test_nerfactos_schedules_are_nerfstudios():
    """Against nerfstudio's own method over its 30 000 steps."""
    from nerfstudio.configs.method_configs import method_configs

    theirs = method_configs["nerfacto"]
    config = peer_config("nerfacto-poses")
    assert config.max_num_iterations == theirs.max_num_iterations == 30_000
    assert config.pipeline.datamanager.train_num_rays_per_batch == 4096
    assert set(config.optimizers) == set(theirs.optimizers)
    for name, group in config.optimizers.items():
        schedule = group["scheduler"]
        schedule.total_steps = 30_000
        parameters = [[torch.nn.Parameter(torch.zeros(1))] for _ in range(2)]
        ours = schedule.setup().get_scheduler(group["optimizer"].setup(parameters[0]), group["optimizer"].lr)
        reference = theirs.optimizers[name]
        other = reference["scheduler"].setup()
        other = other.get_scheduler(reference["optimizer"].setup(parameters[1]), reference["optimizer"].lr)
        assert group["optimizer"].eps == reference["optimizer"].eps
        for step in (0, 1000, 4999, 5000, 5001, 20_000, 29_999):
            rate = group["optimizer"].lr * ours.lr_lambdas[0](step)
            expected = reference["optimizer"].lr * other.lr_lambdas[0](step)
            assert rate == pytest.approx(float(expected), rel=1e-6)
    model, reference = peer_config("nerfacto-poses", "captures").pipeline.model, theirs.pipeline.model
    assert isinstance(model, NerfactoPosesModelConfig)
    changed = {key for key, value in vars(reference).items() if getattr(model, key) != value}
    assert changed == {"_target", "camera_optimizer", "eval_num_rays_per_chunk"}


def test_the_naive_grid_is_hashpose_without_its_two_ideas():
    naive, full = peer_config("naive-hash-grid").pipeline.model, PROTOCOLS["blender"].config.pipeline.model
    assert isinstance(naive.field, HashPoseFieldConfig)
    assert naive.field.encoding.gradient == "linear" and naive.curriculum.mode == "none"
    naive.field.encoding.gradient, naive.curriculum = full.field.encoding.gradient, full.curriculum
    assert naive == full


def test_unknown_peers_and_protocols_are_refused(unchecked):
    with pytest.raises(HashPoseError, match="no method bar to compare with; choose one of barf, l2g, garf"):
        peer_config("bar")
    with pytest.raises(HashPoseError, match="no protocol scannet"):
        peer_config("barf", "scannet")


def test_every_peer_says_how_it_differs():
    for description, deviations in PEERS.values():
        assert description.endswith(".") and deviations
        assert all(sentence[0].isupper() and sentence.endswith((".", ").")) for sentence in deviations)


# -- nerfstudio's commands ---------------------------------------------------------------------------------------------


def test_nerfstudio_finds_peers_named_in_its_environment_variable(monkeypatch: pytest.MonkeyPatch):
    from nerfstudio.plugins.registry import discover_methods

    attributes = {name: name.replace("-", "_") for name in PEERS}
    assert all(isinstance(getattr(methods, attribute), MethodSpecification) for attribute in attributes.values())
    definitions = [f"{name}=hashpose_ns.peers.methods:{attribute}" for name, attribute in attributes.items()]
    monkeypatch.setenv("NERFSTUDIO_METHOD_CONFIGS", ",".join(definitions))
    found, descriptions = discover_methods()
    assert {name: found[name].method_name for name in PEERS} == {name: name for name in PEERS}
    assert {name: descriptions[name] for name in PEERS} == {name: peer.description for name, peer in PEERS.items()}
    monkeypatch.delenv("NERFSTUDIO_METHOD_CONFIGS")
    assert not set(PEERS) & set(discover_methods()[0]), "they cost other commands nothing"


@pytest.mark.parametrize(
    "name, flags",
    [
        ("barf", ["--pipeline.model.field.width", "64", "--pipeline.model.curriculum.window", "0.0", "0.3"]),
        ("garf", ["--pipeline.model.field.sigma", "0.2", "--pipeline.model.background-color", "white"]),
        ("baa-ngp", ["--pipeline.model.field.encoding.num-levels", "8", "--pipeline.model.loss", "mse"]),
        ("nerfacto-poses", ["--pipeline.model.num-levels", "4", "--pipeline.model.camera-optimizer.mode", "off"]),
    ],
)
def test_settings_are_flags(name, flags):
    """nerfstudio's command line is made by tyro from the configuration, as here."""
    default = peer_config(name)
    config = tyro.cli(type(default), default=default, args=flags)
    for flag, value in zip(flags[::2], flags[1::2]):
        if "window" in flag:
            assert config.pipeline.model.curriculum.window == (0.0, 0.3)
            break
        part = config
        for key in flag.removeprefix("--").replace("-", "_").split("."):
            part = getattr(part, key)
        assert str(part) == value


def test_ns_train_and_ns_eval_run_a_peer_named_in_the_environment(tmp_path: Path):
    run = tmp_path / "chair" / "barf" / "run"
    train = ["barf", "--data", CHAIR, "--output-dir", tmp_path, "--experiment-name", "chair", "--timestamp", "run"]
    train += ["--vis", "tensorboard", "--max-num-iterations", 10, "--steps-per-eval-all-images", 0]
    train += ["--pipeline.model.field.width", 16, "--pipeline.model.field.layers", 3, "--pipeline.tto-steps", 2]
    train += ["--pipeline.datamanager.train-num-rays-per-batch", 64, "--pipeline.model.num-samples", 8]
    train += ["--pipeline.datamanager.camera-res-scale-factor", 0.32, "--pipeline.eval-num-images", 1]
    evaluate = ["--load-config", run / "config.yml", "--output-path", tmp_path / "metrics.json"]
    code = "import sys; from nerfstudio.scripts import eval, train\n"  # one process: nerfstudio takes long to start
    for script, arguments in (("train", train), ("eval", evaluate)):
        code += f"sys.argv = {[script, *map(str, arguments)]}; {script}.entrypoint()\n"
    definition = {"NERFSTUDIO_METHOD_CONFIGS": "barf=hashpose_ns.peers.methods:barf"}
    process = subprocess.run(
        [sys.executable, "-c", code], env={**environment(), **definition}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    assert len(checkpoints(run)) == 1
    assert '"psnr_tto"' in (tmp_path / "metrics.json").read_text()
