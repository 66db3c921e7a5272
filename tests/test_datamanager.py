"""HashPoseDataManager: initial poses, rays that depend on seed and step alone, and pixels that fit their cameras."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from scenes import blender_scene, edit_json, nerfstudio_scene

from hashpose_ns.cameras.perturbation import PerturbationConfig, identity_poses, perturb_poses
from hashpose_ns.data.names import image_names
from hashpose_ns.data.pixel_sampler import EdgePixelSamplerConfig
from hashpose_ns.datamanager import HashPoseDataManager, HashPoseDataManagerConfig, seed_generators
from hashpose_ns.errors import HashPoseError
from hashpose_ns.pipeline import HashPosePipelineConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

RAYS = 50


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    return blender_scene(tmp_path_factory.mktemp("data") / "scene")


def make(data: Path, seed: int = 42, dataparser=None, test_mode: str = "val", **settings) -> HashPoseDataManager:
    torch.manual_seed(seed)  # as ns-train does
    random.seed(seed)
    config = HashPoseDataManagerConfig(
        dataparser=dataparser or BlenderDataParserConfig(data=data),
        train_num_rays_per_batch=RAYS,
        eval_num_rays_per_batch=RAYS,
        **settings,
    )
    return config.setup(device="cpu", test_mode=test_mode)


# -- initial poses -----------------------------------------------------------------------------------------------------


def test_given_poses_are_the_dataparsers(scene):
    manager = make(scene)
    reference = manager.train_dataparser_outputs.cameras.camera_to_worlds
    metadata = manager.train_dataset.metadata
    assert torch.equal(manager.train_dataset.cameras.camera_to_worlds, reference)
    assert torch.equal(metadata["training_cameras"].initial_camera_to_worlds, reference)
    assert torch.equal(metadata["training_cameras"].reference_camera_to_worlds, reference)
    assert [Path(name).name for name in metadata["training_cameras"].image_names] == [f"r_{i}.png" for i in range(6)]


def test_perturbed_poses_follow_the_protocol_and_keep_the_reference(scene):
    noise = PerturbationConfig(protocol="l2g", rotation=0.07, translation=0.5, seed=3)
    manager = make(scene, initial_poses="perturbed", perturbation=noise)
    reference = make(scene).train_dataparser_outputs.cameras.camera_to_worlds
    expected = perturb_poses(reference, noise)
    metadata = manager.train_dataset.metadata
    assert torch.equal(manager.train_dataset.cameras.camera_to_worlds, expected)
    assert torch.equal(metadata["training_cameras"].initial_camera_to_worlds, expected)
    assert torch.equal(metadata["training_cameras"].reference_camera_to_worlds, reference)
    assert torch.equal(manager.train_dataparser_outputs.cameras.camera_to_worlds, reference)
    assert torch.equal(manager.train_ray_generator.cameras.camera_to_worlds, expected)
    held_out = make(scene).eval_dataset.cameras.camera_to_worlds
    assert torch.equal(manager.eval_dataset.cameras.camera_to_worlds, held_out), "held-out cameras are not perturbed"


def test_identity_start(scene):
    manager = make(scene, initial_poses="identity")
    assert torch.equal(manager.train_dataset.cameras.camera_to_worlds, identity_poses(6))
    reference = manager.train_dataset.metadata["training_cameras"].reference_camera_to_worlds
    assert not torch.equal(reference, identity_poses(6))


def test_the_noise_has_its_own_seed_and_leaves_the_global_generator_alone(scene):
    poses = [
        make(scene, seed, initial_poses="perturbed").train_dataset.metadata["training_cameras"].initial_camera_to_worlds
        for seed in (1, 2)
    ]
    assert torch.equal(*poses)
    states = []
    for mode in ("given", "perturbed"):
        make(scene, initial_poses=mode)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_poses_of_a_checkpoint_replace_the_drawn_ones(scene):
    manager = make(scene, initial_poses="perturbed")
    reference = manager.train_dataset.metadata["training_cameras"].reference_camera_to_worlds
    others = perturb_poses(reference, PerturbationConfig(seed=8))
    manager.set_initial_poses(others)
    rays, batch = manager.next_train(0)
    centers = others[batch["indices"][:, 0], :, 3]
    assert torch.equal(rays.origins, centers)
    assert torch.equal(manager.train_dataset.cameras.camera_to_worlds, others)


# -- rays --------------------------------------------------------------------------------------------------------------


def test_rays_depend_on_seed_and_step_alone(scene):
    settings = {"pixel_sampler": EdgePixelSamplerConfig(edge_fraction=0.5)}
    first, second, other_seed = make(scene, **settings), make(scene, **settings), make(scene, seed=43, **settings)
    for step in range(5):
        first.next_train(step)
        torch.rand(7)
    random.seed(99)
    torch.manual_seed(99)
    rays, batch = first.next_train(7)
    after_first = torch.rand(3)
    same_rays, same_batch = second.next_train(7)
    assert torch.equal(torch.rand(3), after_first), "what the model draws in the step is the same too"
    assert torch.equal(batch["indices"], same_batch["indices"]) and torch.equal(batch["image"], same_batch["image"])
    assert torch.equal(rays.origins, same_rays.origins) and torch.equal(rays.directions, same_rays.directions)
    assert not torch.equal(second.next_train(8)[1]["indices"], batch["indices"])
    assert not torch.equal(other_seed.next_train(7)[1]["indices"], batch["indices"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_seeding_is_that_of_torch(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    draws = []
    for seed in (torch.manual_seed, lambda seed: seed_generators(seed, torch.device(device))):
        torch.rand(7), torch.rand(7, device=device)
        seed(1_000_003)
        draws.append((torch.rand(5), torch.rand(5, device=device)))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*draws))


def test_the_same_step_again_gives_other_rays(scene):
    """ns-export pointcloud asks for step 0 until it has enough points."""
    manager = make(scene)
    draws = [manager.next_train(0)[1]["indices"] for _ in range(3)]
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])
    assert torch.equal(draws[0], make(scene).next_train(0)[1]["indices"])


def pixels_match_files(manager: HashPoseDataManager, composited: bool) -> None:
    """Every pixel of a batch is that pixel of the file its camera belongs to."""
    for step in range(3):
        _, batch = manager.next_train(step)
        for (index, row, column), pixel in zip(batch["indices"].tolist(), batch["image"]):
            filename = manager.train_dataset.image_filenames[index]
            image = torch.tensor(list(Image.open(filename).convert("RGBA").getpixel((column, row)))) / 255
            expected = image[:3] * image[3] + (1 - image[3]) if composited else image[: len(pixel)]
            torch.testing.assert_close(pixel, expected, rtol=0, atol=1e-5)


def test_pixels_belong_to_their_cameras(scene):
    pixels_match_files(make(scene), composited=True)


def test_pixels_belong_to_their_cameras_where_images_have_two_sizes(tmp_path):
    scene = nerfstudio_scene(tmp_path, num_images=10)

    def enlarge_some(meta):
        for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
            value = meta.pop(key)
            for i, frame in enumerate(meta["frames"]):
                frame[key] = type(value)(value * 1.5) if i in (1, 4) else value
        for i in (1, 4):
            path = scene / meta["frames"][i]["file_path"]
            Image.open(path).resize((36, 36)).save(path)

    edit_json(scene / "transforms.json", enlarge_some)
    manager = make(scene, dataparser=NerfstudioDataParserConfig(data=scene))
    assert len({int(width) for width in manager.train_dataset.cameras.width}) == 2
    pixels_match_files(manager, composited=False)


# -- data that do not fit ----------------------------------------------------------------------------------------------


def test_held_out_images_are_the_test_split_where_there_is_no_other(scene, capsys):
    manager = make(scene)
    assert [path.name for path in manager.eval_dataset.image_filenames] == ["r_0.png", "r_1.png"]
    assert "no validation split" in capsys.readouterr().out
    make(scene, test_mode="test")
    assert "no validation split" not in capsys.readouterr().out


def test_errors_come_before_training_and_name_the_file(tmp_path):
    scene = blender_scene(tmp_path / "scene")
    for broken, what in (("train/r_5.png", "1 of 6 images are missing"), ("test/r_0.png", "The data cannot be read")):
        content = (scene / broken).read_bytes()
        (scene / broken).unlink()
        with pytest.raises(HashPoseError, match=what) as error:
            make(scene)
        assert Path(broken).name in str(error.value) and "\n" not in str(error.value)
        (scene / broken).write_bytes(content)
    make(scene)


def test_names_are_short_where_they_are_unique():
    assert image_names([Path("/a/x.png"), Path("/b/y.png")]) == ["x.png", "y.png"]
    assert image_names([Path("/a/x.png"), Path("/b/x.png")]) == ["/a/x.png", "/b/x.png"]


# -- data of a finished run, as ns-render dataset reads them a second time ---------------------------------------------


@pytest.fixture
def beside_a_run(tmp_path, capsys):
    """Reads the data of a loaded run again, with other settings; what is said, where it ends in exit code 1."""
    data = nerfstudio_scene(tmp_path / "scene")
    pipeline = HashPosePipelineConfig(
        datamanager=HashPoseDataManagerConfig(dataparser=NerfstudioDataParserConfig(data=data))
    ).setup(device="cpu", test_mode="inference")
    pipeline.load_pipeline({f"_model.{key}": value for key, value in pipeline.model.state_dict().items()}, 0)
    config = pipeline.config.datamanager

    def read(**dataparser):
        for key, value in dataparser.items():
            setattr(config.dataparser, key, value)
        capsys.readouterr()
        try:
            return config.setup(test_mode="test", device="cpu")
        except SystemExit as stop:
            assert stop.code == 1
            return " ".join(capsys.readouterr().out.split())

    return read, data


def test_the_data_of_a_run_are_read_again_at_half_size(beside_a_run):
    read, data = beside_a_run
    (data / "images_2").mkdir()
    for image in (data / "images").iterdir():
        Image.open(image).resize((12, 12)).save(data / "images_2" / image.name)
    manager = read(downscale_factor=2.0)  # a number with a point is what ns-render makes of 2
    assert manager.train_dataset[0]["image"].shape[:2] == (12, 12)


def test_a_datamanager_beside_a_run_says_itself_what_is_wrong(beside_a_run):
    read, data = beside_a_run
    assert "images are missing, the first is" in (said := read(downscale_factor=2.0)) and "images_2/" in said
    assert "not those of the run" in read(downscale_factor=1, orientation_method="none")
    assert "not those of the run" in read(train_split_fraction=0.5)
