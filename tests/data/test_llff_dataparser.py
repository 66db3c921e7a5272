"""The LLFF dataparser, on generated captures and, where it lies beside the repository, on fern."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from PIL import Image

from hashpose_ns.data.llff_dataparser import LLFFDataParserConfig, LLFFDataParserSpecification
from hashpose_ns.errors import HashPoseError
from nerfstudio.data.datasets.base_dataset import InputDataset

STORED_HEIGHT, STORED_WIDTH, STORED_FOCAL = 96.0, 128.0, 110.0
FERN = Path(__file__).resolve().parents[3] / "shared" / "data" / "fern_480"


def forward_facing_poses(num_images: int, seed: int = 0) -> np.ndarray:
    """OpenGL camera-to-worlds scattered about some tilted common pose."""
    generator = torch.Generator().manual_seed(seed)
    base = roma.rotvec_to_rotmat(torch.tensor([0.4, -0.3, 1.1], dtype=torch.float64))
    wobble = 0.1 * torch.randn(num_images, 3, generator=generator, dtype=torch.float64)
    rotations = base @ roma.rotvec_to_rotmat(wobble)
    centers = base @ torch.randn(num_images, 3, 1, generator=generator, dtype=torch.float64) + 5.0
    return torch.cat([rotations, centers], dim=-1).numpy()


def write_capture(
    folder: Path, num_images: int = 20, size: tuple = (32, 24), near: float = 8.0, images: str = "images"
) -> np.ndarray:
    """Write a capture and return its OpenGL poses. Image i is filled with the grey level i."""
    poses = forward_facing_poses(num_images)
    # LLFF's columns: down = -up, right, backwards
    rotations = np.stack([-poses[:, :, 1], poses[:, :, 0], poses[:, :, 2]], axis=-1)
    sizes = np.tile([STORED_HEIGHT, STORED_WIDTH, STORED_FOCAL], (num_images, 1))[:, :, None]
    matrices = np.concatenate([rotations, poses[:, :, 3:], sizes], axis=-1).reshape(num_images, 15)
    bounds = np.stack([near + np.arange(num_images), 50.0 + np.arange(num_images)], axis=-1)
    np.save(folder / "poses_bounds.npy", np.concatenate([matrices, bounds], axis=-1))
    write_images(folder / images, num_images, size)
    return poses


def write_images(folder: Path, num_images: int, size: tuple) -> None:
    folder.mkdir()
    for i in range(num_images):
        Image.new("RGB", size, (i, i, i)).save(folder / f"IMG_{i:04d}.png")


def parse(folder: Path, split: str = "train", **settings):
    return LLFFDataParserConfig(data=folder, **settings).setup().get_dataparser_outputs(split)


def original_poses(outputs) -> np.ndarray:
    return outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl").numpy()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("bound_factor", [0.75, None])
@pytest.mark.parametrize("scale_factor", [1.0, 0.3])
def test_poses_go_back_to_those_of_the_file(tmp_path, center, bound_factor, scale_factor):
    poses = write_capture(tmp_path)
    settings = dict(center=center, bound_factor=bound_factor, scale_factor=scale_factor)
    train, held_out = parse(tmp_path, "train", **settings), parse(tmp_path, "val", **settings)
    np.testing.assert_allclose(original_poses(train), poses[:18], atol=5e-6)
    np.testing.assert_allclose(original_poses(held_out), poses[18:], atol=5e-6)
    # and the rotations stay rotations: one similarity maps the file onto the outputs
    assert roma.is_rotation_matrix(train.cameras.camera_to_worlds[:, :, :3], epsilon=1e-6)


def test_axes_of_a_row_written_out_by_hand(tmp_path):
    # down = -y, right = x, backwards = z: OpenGL's axes are then those of the world
    rows = [
        [0, 1, 0, 7, 96, -1, 0, 0, 8, 128, 0, 0, 1, 9, 110, 1, 2],
        [0, 1, 0, 5, 96, -1, 0, 0, 8, 128, 0, 0, 1, 9, 110, 4, 9],
    ]
    np.save(tmp_path / "poses_bounds.npy", np.array(rows, dtype=np.float64))
    write_images(tmp_path / "images", 2, (128, 96))
    outputs = parse(tmp_path, eval_mode="all", center=False, bound_factor=None)
    expected = torch.tensor([[[1.0, 0, 0, 7], [0, 1, 0, 8], [0, 0, 1, 9]], [[1, 0, 0, 5], [0, 1, 0, 8], [0, 0, 1, 9]]])
    assert torch.equal(outputs.cameras.camera_to_worlds, expected)
    assert outputs.cameras.fx.flatten().tolist() == [110.0, 110.0]

    centred = parse(tmp_path, eval_mode="all")
    # the nearest bound, 1, is brought to 1 / 0.75; the mean centre (6, 8, 9) to the origin
    assert centred.dataparser_scale == pytest.approx(1 / 0.75)
    torch.testing.assert_close(
        centred.cameras.camera_to_worlds[:, :, 3], torch.tensor([[1.0, 0, 0], [-1, 0, 0]]) / 0.75
    )
    torch.testing.assert_close(centred.metadata["depth_bounds"], torch.tensor([[1.0, 2.0], [4.0, 9.0]]) / 0.75)


def test_average_pose_becomes_the_identity(tmp_path):
    write_capture(tmp_path)
    poses = parse(tmp_path, eval_mode="all").cameras.camera_to_worlds
    torch.testing.assert_close(poses[:, :, 3].mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    backwards = torch.nn.functional.normalize(poses[:, :, 2].mean(dim=0), dim=0)
    torch.testing.assert_close(backwards, torch.tensor([0.0, 0.0, 1.0]), atol=1e-6, rtol=0)
    assert poses[:, 0, 1].mean().abs() < 1e-6 and poses[:, 1, 1].mean() > 0.9
    uncentred = parse(tmp_path, eval_mode="all", center=False).cameras.camera_to_worlds
    assert uncentred[:, :, 3].mean(dim=0).norm() > 0.1


def test_nearest_bound_of_all_images_sets_the_scale(tmp_path):
    write_capture(tmp_path, near=8.0)
    train, held_out = parse(tmp_path, "train"), parse(tmp_path, "test")
    assert train.dataparser_scale == held_out.dataparser_scale == pytest.approx(1 / (8.0 * 0.75))
    assert float(train.metadata["depth_bounds"].min()) == pytest.approx(4 / 3)
    assert train.metadata["depth_bounds"].shape == (18, 2) and held_out.metadata["depth_bounds"].shape == (2, 2)


@pytest.mark.parametrize("num_images, num_held_out", [(20, 2), (34, 3), (62, 6), (25, 2), (55, 5), (5, 1)])
def test_last_tenth_is_held_out(tmp_path, num_images, num_held_out):
    write_capture(tmp_path, num_images=num_images, size=(4, 3))
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    train, held_out = parse(tmp_path, "train"), parse(tmp_path, "val")
    assert [path.name for path in train.image_filenames] == names[:-num_held_out]
    assert [path.name for path in held_out.image_filenames] == names[-num_held_out:]
    assert parse(tmp_path, "test").image_filenames == held_out.image_filenames


def test_other_splits(tmp_path):
    write_capture(tmp_path)
    held_out = parse(tmp_path, "val", eval_mode="every-8th")
    assert [path.stem for path in held_out.image_filenames] == ["IMG_0000", "IMG_0008", "IMG_0016"]
    assert len(parse(tmp_path, "train", eval_mode="every-8th").image_filenames) == 17
    assert len(parse(tmp_path, "train", eval_mode="all").image_filenames) == 20
    assert len(parse(tmp_path, "test", eval_mode="all").image_filenames) == 20
    with pytest.raises(ValueError, match="Unknown dataparser split"):
        parse(tmp_path, "everything")


def test_intrinsics_follow_the_size_of_the_images(tmp_path):
    write_capture(tmp_path, size=(32, 24))
    write_images(tmp_path / "images_2", 20, (16, 12))
    full, half = parse(tmp_path), parse(tmp_path, downscale_factor=2)
    for outputs, width, height in ((full, 32, 24), (half, 16, 12)):
        cameras = outputs.cameras
        assert set(cameras.width.flatten().tolist()) == {width}
        assert set(cameras.height.flatten().tolist()) == {height}
        torch.testing.assert_close(cameras.fx, torch.full_like(cameras.fx, STORED_FOCAL * width / STORED_WIDTH))
        torch.testing.assert_close(cameras.fy, torch.full_like(cameras.fy, STORED_FOCAL * height / STORED_HEIGHT))
        assert set(cameras.cx.flatten().tolist()) == {width / 2}
        assert set(cameras.cy.flatten().tolist()) == {height / 2}
    assert half.image_filenames[0] == tmp_path / "images_2" / "IMG_0000.png"
    # no images_8: the images folder, with its own intrinsics
    assert parse(tmp_path, downscale_factor=8).image_filenames == full.image_filenames
    # what datamanagers do in inference mode
    parser = LLFFDataParserConfig(data=tmp_path, downscale_factor=2).setup()
    parser.downscale_factor = 1
    assert parser.get_dataparser_outputs("train").image_filenames == full.image_filenames


def test_scene_box_holds_every_view(tmp_path):
    write_capture(tmp_path)
    outputs = parse(tmp_path, eval_mode="all")
    cameras = outputs.cameras
    corners = torch.tensor([[0.0, 0.0], [0.0, 32.0], [24.0, 0.0], [24.0, 32.0]])
    ends = []
    for i in range(20):
        # plane distance, not distance along the ray
        rays = cameras.generate_rays(camera_indices=torch.full((4, 1), i), coords=corners)
        depth = outputs.metadata["depth_bounds"][i, 1] * rays.metadata["directions_norm"]
        ends.append(rays.origins + rays.directions * depth)
    largest = torch.cat(ends).abs().max()
    aabb = outputs.scene_box.aabb
    torch.testing.assert_close(aabb, torch.tensor([[-1.0], [1.0]]).expand(2, 3) * largest, rtol=1e-4, atol=0)
    torch.testing.assert_close(parse(tmp_path, eval_mode="all", scene_scale=0.5).scene_box.aabb, 0.5 * aabb)


def test_datasets_pair_images_with_their_poses(tmp_path):
    poses = write_capture(tmp_path)
    outputs = parse(tmp_path, "val")
    dataset = InputDataset(outputs)
    assert [int(dataset.get_numpy_image(i)[0, 0, 0]) for i in range(len(dataset))] == [18, 19]
    np.testing.assert_allclose(original_poses(outputs), poses[18:], atol=5e-6)


def replace_rows(folder: Path, change) -> None:
    rows = np.load(folder / "poses_bounds.npy")
    np.save(folder / "poses_bounds.npy", change(rows))


def change_entry(index, value):
    def change(rows):
        rows[index] = value
        return rows

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (change_entry((3, 3), np.nan), r"camera IMG_0003\.png holds a value that is not a finite number"),
        (change_entry((2, 0), 4.0), r"camera IMG_0002\.png is not rigid"),
        (change_entry((4, 15), 0.0), r"depth bounds of IMG_0004\.png must be 0 < near < far but are 0 and 54"),
        (change_entry((4, 16), np.nan), r"depth bounds of IMG_0004\.png"),
        (change_entry((5, 14), -1.0), r"focal length of IMG_0005\.png must be positive"),
        (lambda rows: rows[:, :16], r"must hold 17 numbers for each image but has the shape \[20, 16\]"),
        (lambda rows: rows[:19], r"has 19 poses but .*images has 20 images"),
    ],
)
def test_bad_files_are_refused_with_a_sentence(tmp_path, change, message):
    write_capture(tmp_path)
    replace_rows(tmp_path, change)
    with pytest.raises(HashPoseError, match=message):
        parse(tmp_path)


def test_missing_or_unreadable_files_are_refused_with_a_sentence(tmp_path):
    with pytest.raises(HashPoseError, match=r"There is no poses_bounds\.npy in"):
        parse(tmp_path)
    (tmp_path / "poses_bounds.npy").write_bytes(b"not an array")
    with pytest.raises(HashPoseError, match="cannot be read as a NumPy array"):
        parse(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(HashPoseError, match="cannot be read as a NumPy array"):
        parse(tmp_path)
    write_capture(tmp_path, images="pictures")
    with pytest.raises(HashPoseError, match="There is no folder .*images"):
        parse(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").touch()
    with pytest.raises(HashPoseError, match="holds no image"):
        parse(tmp_path)
    for i in range(20):
        (tmp_path / "images" / f"{i:02d}.jpg").write_bytes(b"not an image")
    with pytest.raises(HashPoseError, match=r"00\.jpg cannot be opened as an image"):
        parse(tmp_path)


def test_turned_images_and_bad_settings_are_refused(tmp_path):
    write_capture(tmp_path, size=(24, 32))
    with pytest.raises(HashPoseError, match="is 24x32 but its focal length is for 128x96"):
        parse(tmp_path)
    with pytest.raises(HashPoseError, match="above zero"):
        parse(tmp_path, bound_factor=0.0)


def test_cameras_without_an_average_pose_are_refused(tmp_path):
    write_capture(tmp_path, num_images=2)

    def opposite(rows):
        rows[1] = rows[0]
        matrix = rows[1, :15].reshape(3, 5)
        matrix[:, 1:3] *= -1
        return rows

    replace_rows(tmp_path, opposite)
    with pytest.raises(HashPoseError, match="no mean pose; disable centring"):
        parse(tmp_path, eval_mode="all")
    assert len(parse(tmp_path, eval_mode="all", center=False).cameras) == 2


def test_single_image_needs_eval_mode_all(tmp_path):
    write_capture(tmp_path, num_images=1)
    with pytest.raises(HashPoseError, match="leaves none of 1 to train on"):
        parse(tmp_path)
    assert len(parse(tmp_path, eval_mode="all").cameras) == 1


def test_entry_point_is_light_and_a_specification():
    assert isinstance(LLFFDataParserSpecification.config, LLFFDataParserConfig)
    assert LLFFDataParserSpecification.description
    # an import of a datamanager or of the methods from here would be circular inside nerfstudio
    code = (
        "import sys, hashpose_ns.data.llff_dataparser; "
        "print([m for m in sys.modules if m.startswith(('nerfstudio.data.datamanagers', 'nerfstudio.configs.method', "
        "'nerfstudio.pipelines', 'nerfstudio.models'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(not FERN.is_dir(), reason=f"the LLFF scene fern is not at {FERN}")
def test_fern():
    train, held_out = parse(FERN, "train"), parse(FERN, "test")
    assert [path.name for path in held_out.image_filenames] == ["IMG_4044.png", "IMG_4045.png"]
    assert len(train.image_filenames) == 18
    cameras = train.cameras
    assert (int(cameras.width[0]), int(cameras.height[0])) == (640, 480)
    # poses are stored for 4032x3024 with a focal length of 3260.53
    assert float(cameras.fx[0]) == pytest.approx(3260.526333 * 640 / 4032, rel=1e-6)
    assert float(cameras.fy[0]) == pytest.approx(float(cameras.fx[0]), rel=1e-6)
    assert float(torch.cat([train.metadata["depth_bounds"], held_out.metadata["depth_bounds"]]).min()) == pytest.approx(
        4 / 3, rel=1e-6
    )
    # forward-facing: every camera within a fraction of the nearest depth, looking along -z
    assert float(cameras.camera_to_worlds[:, :, 3].abs().max()) < 4 / 3
    assert float(cameras.camera_to_worlds[:, 2, 2].min()) > 0.95
    raw = np.load(FERN / "poses_bounds.npy")[:, :15].reshape(-1, 3, 5)
    np.testing.assert_allclose(original_poses(train)[:, :, 3], raw[:18, :, 3], atol=5e-6)
