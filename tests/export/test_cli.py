"""hashpose-export as a command: settings, files, summary, refusals."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

from hashpose_ns import __version__
from hashpose_ns.export import poses
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

COMMANDS = ["colmap", "nerfstudio", "tum", "kitti"]
POINTS = {"colmap": ("--points", "empty"), "nerfstudio": ("--points", "empty"), "tum": (), "kitti": ()}


@pytest.fixture
def dataset(tmp_path, helpers):
    """A nerfstudio dataset in COLMAP's frame turned upright, its true poses, and its dataparser's config."""
    true_poses = helpers.poses(10)
    matrices = torch.eye(4, dtype=torch.float64).repeat(10, 1, 1)
    matrices[:, :3] = true_poses
    applied = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0]]
    saved = torch.tensor([*applied, [0, 0, 0, 1]], dtype=torch.float64) @ matrices
    names = [f"images/{i:02d}.png" for i in range(10)]
    helpers.write_images(tmp_path / "data", names, (640, 480))
    meta = dict(fl_x=500.0, fl_y=510.0, cx=322.5, cy=236.25, w=640, h=480, k1=0.01, p2=0.002, applied_transform=applied)
    meta["frames"] = [dict(file_path=name, transform_matrix=m.tolist()) for name, m in zip(names, saved)]
    (tmp_path / "data/transforms.json").write_text(json.dumps(meta))
    return true_poses, saved, NerfstudioDataParserConfig(data=tmp_path / "data", downscale_factor=1)


@pytest.fixture
def scene(helpers, dataset):
    """A run that drifted as a whole but is otherwise perfect."""
    parser = dataset[2].setup()
    outputs, held_out = (parser.get_dataparser_outputs(split) for split in ("train", "val"))
    drifted = helpers.similarity().apply_to_poses(outputs.cameras.camera_to_worlds.double())
    return helpers.scene(outputs, parser, drifted, held_out=held_out.image_filenames)


@pytest.fixture
def run(call, scene):
    """hashpose-export on that run, without points unless they are asked for; returns the exit code."""

    def export(command, *options, output="out") -> int:
        no_points = () if "--points" in options else POINTS[command]
        return call(scene, command, *no_points, *options, output=output)

    return export


def files_in(folder) -> list:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def train_indices(config) -> list:
    """Which of the ten images nerfstudio trains on."""
    return [int(path.stem) for path in config.setup().get_dataparser_outputs("train").image_filenames]


def original_space(outputs):
    return outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")


@pytest.mark.parametrize("format", ["bin", "txt"])
def test_colmap(tmp_path, run, dataset, capsys, format):
    assert run("colmap", "--format", format) == 0
    model = [f"sparse/0/{part}.{format}" for part in ("cameras", "images", "points3D")]
    assert files_in(tmp_path / "out") == ["export.json", *model]
    # what the printed command says, parsed as ns-train would
    words = capsys.readouterr().out.split("colmap --colmap-path")[1].split()
    config = tyro.cli(
        tyro.conf.FlagConversionOff[ColmapDataParserConfig],
        args=[
            "--data",
            str(tmp_path / "out"),
            "--colmap-path",
            *words,
            "--downscale-factor",
            "1",
            "--eval-mode",
            "all",
        ],
    )
    outputs = config.setup().get_dataparser_outputs("train")
    train = train_indices(dataset[2])
    assert outputs.image_filenames == [tmp_path / f"data/images/{i:02d}.png" for i in train]
    np.testing.assert_allclose(original_space(outputs), dataset[1][train, :3], atol=1e-5)
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is the independent reader of this test")
    for image in pycolmap.Reconstruction(str(tmp_path / "out/sparse/0")).images.values():
        np.testing.assert_allclose(image.projection_center(), dataset[1][int(image.name[:2]), :3, 3], atol=1e-5)


def test_nerfstudio(tmp_path, run, dataset):
    assert run("nerfstudio") == 0
    train = train_indices(dataset[2])
    content = json.loads((tmp_path / "out/transforms.json").read_text())
    # the matrices are in the frame of the input's transforms.json, and the way to COLMAP's frame is kept
    written = [frame["transform_matrix"] for frame in content["frames"]]
    np.testing.assert_allclose(written, dataset[1][train], atol=1e-5)
    assert [frame["file_path"] for frame in content["frames"]] == [f"../data/images/{i:02d}.png" for i in train]
    assert f"hashpose-export {__version__}" in content["note"] and str(tmp_path / "run") in content["note"]

    config = NerfstudioDataParserConfig(data=tmp_path / "out", downscale_factor=1, eval_mode="all")
    np.testing.assert_allclose(
        original_space(config.setup().get_dataparser_outputs("train")), dataset[0][train], atol=1e-5
    )
    config = NerfstudioDataParserConfig(
        data=tmp_path / "out",
        downscale_factor=1,
        eval_mode="all",
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
    )
    outputs = config.setup().get_dataparser_outputs("train")
    np.testing.assert_allclose(outputs.cameras.camera_to_worlds, dataset[1][train, :3], atol=1e-5)


def test_summary_tells_what_a_user_needs(tmp_path, run, capsys):
    run("nerfstudio")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Exported 9 cameras as transforms.json: {tmp_path}/out/transforms.json"
    frame = "the frame of the matrices in transforms.json (after its applied_transform)"
    assert lines[1].endswith(f"  {frame}, aligned to the poses training started from")
    assert lines[2].startswith("  moved ") and "deg" in lines[2] and "furthest 0" in lines[2]
    assert lines[3] == "  guard    not asked; hashpose-guard tells whether refinement helped"
    assert lines[4].endswith(f" {tmp_path}/data/images")
    assert "left out the evaluation images (1)" in lines[5] and "--split all" in lines[5]
    assert lines[6].endswith(f"ns-train nerfacto --data {tmp_path}/out nerfstudio-data")


def test_an_export_says_what_it_holds(tmp_path, run):
    assert run("colmap", "--images", "link") == 0
    content = json.loads((tmp_path / "out/export.json").read_text())
    assert sorted(content["files"]) == files_in(tmp_path / "out")
    assert content["written_by"] == f"hashpose-export {__version__}" and content["run"] == str(tmp_path / "run")
    assert "aligned to the poses training started from" in content["frame"] and content["guard"] is None
    assert content["images"][0] == {"name": "00.png", "split": "train", "refined_by": "training"}
    assert len(content["images"]) == 9


@pytest.mark.parametrize("command", COMMANDS)
def test_existing_output_is_refused_before_any_work(tmp_path, run, monkeypatch, capsys, command):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("precious")
    monkeypatch.setattr(poses, "exported_cameras", None)  # what comes after loading
    assert run(command) == 1
    assert "Error:" in (output := capsys.readouterr().out) and "out exists" in output
    assert run(command, "--overwrite", "True") == 1
    assert "precious in it does not come from an export" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_overwrite_replaces_one_kind_of_export_by_another(tmp_path, run):
    assert run("colmap") == 0
    assert run("nerfstudio") == 1
    assert run("nerfstudio", "--overwrite", "True") == 0
    assert files_in(tmp_path / "out") == ["export.json", "transforms.json"]


def test_overwrite_takes_the_images_of_an_earlier_export_and_nothing_else(tmp_path, run, capsys):
    assert run("colmap", "--images", "copy") == 0
    assert run("colmap", "--images", "link", "--overwrite", "True") == 0
    (tmp_path / "out/images/mine.png").write_text("precious")
    before = files_in(tmp_path / "out")
    assert run("colmap", "--overwrite", "True") == 1
    assert "images/mine.png in it does not come from an export" in capsys.readouterr().out
    assert files_in(tmp_path / "out") == before
    (tmp_path / "out/images/mine.png").unlink()
    assert run("colmap", "--overwrite", "True") == 0
    assert not (tmp_path / "out/images").exists()
    assert len(files_in(tmp_path / "data")) == 11, "the dataset's own images are all there"


def second_run(helpers, folder, **settings):
    """A run that was trained on an export."""
    config = ColmapDataParserConfig(data=folder, downscale_factor=1, load_3D_points=False, **settings)
    parser = config.setup()
    outputs = parser.get_dataparser_outputs("train")
    held_out = parser.get_dataparser_outputs("val").image_filenames
    return helpers.scene(outputs, parser, outputs.cameras.camera_to_worlds, held_out=held_out)


@pytest.mark.parametrize("images", ["copy", "link", "none"])
def test_an_export_never_replaces_what_its_run_reads(tmp_path, run, call, helpers, capsys, images):
    """Images by their names, wherever these link to, and the model itself where the images lie elsewhere."""
    assert run("colmap", "--images", images) == 0
    settings = {"images_path": tmp_path / "data/images"} if images == "none" else {}
    second = second_run(helpers, tmp_path / "out", colmap_path=Path("sparse/0"), **settings)
    before = files_in(tmp_path)
    for command in ("tum", "nerfstudio", "colmap"):
        assert call(second, command, *POINTS[command], "--overwrite", "True") == 1
        assert "out cannot be replaced, as" in capsys.readouterr().out
    assert files_in(tmp_path) == before
    assert call(second, "tum", output="another") == 0
    assert call(second, "json", "--loss", "False", output="another") == 1
    assert call(second, "tum", "--overwrite", "True", output="another") == 0


def test_an_export_never_replaces_the_model_of_another_folder(tmp_path, run, call, helpers, capsys):
    """Neither where the dataset's settings lead to an export, nor where --update does."""
    assert run("colmap", output="model") == 0
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene/sparse").symlink_to("../model/sparse")
    images = {"images_path": tmp_path / "data/images"}
    linked = second_run(helpers, tmp_path / "scene", colmap_path=Path("sparse/0"), **images)
    named = second_run(helpers, tmp_path / "scene", colmap_path=tmp_path / "model/sparse/0", **images)
    before = files_in(tmp_path)
    for scene in (linked, named):
        assert call(scene, "tum", "--overwrite", "True", output="model") == 1
        assert "model cannot be replaced, as" in capsys.readouterr().out
    assert run("colmap", "--update", tmp_path / "model/sparse/0", "--overwrite", "True", output="model") == 1
    assert "model/sparse/0, which this export reads, lies in it" in capsys.readouterr().out
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    "command, options, name, sentence",
    [
        ("colmap", ("--format", "txt"), "a b.png", "cannot hold the white space in 'a b.png'; use --format bin"),
        ("colmap", (), "a\udcff.png", r"'a\udcff.png' is not UTF-8; export with `hashpose-export nerfstudio` instead"),
        ("colmap", ("--format", "txt"), "a \udcff.png", "export with `hashpose-export nerfstudio` instead"),
        ("tum", (), "a\nb.png", r"'a\nb.png' has a line break in it; export with `hashpose-export json`"),
        ("kitti", (), "a\u2028b.png", r"'a\u2028b.png' has a line break in it; export with `hashpose-export json`"),
        ("tum", (), "a\udcff.png", r"'a\udcff.png' is not UTF-8; export with `hashpose-export json`"),
        ("tum", ("--timestamps", "names"), "a.png", "There is no number in the image name a.png"),
    ],
)
def test_names_that_a_format_cannot_hold_are_told_before_any_work(
    tmp_path, call, scene, monkeypatch, capsys, command, options, name, sentence
):
    folder, old = scene.train_outputs.image_filenames[0].parent, scene.train_outputs.image_filenames[0].name
    (folder / old).rename(folder / name)
    scene.train_outputs.image_filenames[0] = folder / name
    dataset = tmp_path / "data/transforms.json"
    dataset.write_text(dataset.read_text().replace(f'"images/{old}"', json.dumps(f"images/{name}")))
    assert call(scene, command, *options) == 1  # by default with points of the field, which this scene does not have
    assert sentence in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    if "json" in sentence:
        assert call(scene, "json", "--loss", "False") == 0
        content = json.loads((tmp_path / "out/poses.json").read_text(encoding="utf-8"))
        assert content["images"][0]["name"] == name
    if "nerfstudio" in sentence:
        assert call(scene, "nerfstudio", "--points", "empty") == 0
        parser = NerfstudioDataParserConfig(data=tmp_path / "out", downscale_factor=1, eval_mode="all").setup()
        assert name in [path.name for path in parser.get_dataparser_outputs("train").image_filenames]
    if "--format bin" in sentence:
        assert call(scene, "colmap", "--points", "empty") == 0


@pytest.mark.parametrize("command", ["colmap", "nerfstudio", "tum", "json"])
def test_the_printed_command_can_be_pasted(tmp_path, scene, call, capsys, command):
    options = POINTS.get(command, ("--loss", "False"))
    assert call(scene, command, *options, output="my 'out'") == 0
    use = capsys.readouterr().out.splitlines()[-1].split("use", 1)[1]
    assert any(word.startswith(str(tmp_path / "my 'out'")) for word in shlex.split(use))


def test_panoramas_are_exported_where_a_format_holds_them(tmp_path, scene, call, capsys):
    scene.train_outputs.cameras.camera_type.fill_(CameraType.EQUIRECTANGULAR.value)
    scene.train_outputs.cameras.distortion_params.zero_()
    assert call(scene, "colmap") == 1
    assert "EQUIRECTANGULAR cannot be stored in a COLMAP model; export with" in capsys.readouterr().out
    assert call(scene, "nerfstudio") == 1
    assert "Points of the field need perspective or fisheye cameras" in capsys.readouterr().out
    assert call(scene, "nerfstudio", "--points", "empty") == 0
    outputs = NerfstudioDataParserConfig(data=tmp_path / "out", downscale_factor=1).setup()
    cameras = outputs.get_dataparser_outputs("train").cameras
    assert set(cameras.camera_type.flatten().tolist()) == {CameraType.EQUIRECTANGULAR.value}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_half_way_leaves_nothing(tmp_path, run, monkeypatch, error):
    from nerfstudio.data.utils import colmap_parsing_utils

    def fail(*args):
        raise error

    monkeypatch.setattr(colmap_parsing_utils, "write_points3D_binary", fail)
    before = sorted(path.name for path in tmp_path.iterdir())
    if error is KeyboardInterrupt:
        assert run("colmap") == 130
    else:
        with pytest.raises(error):
            run("colmap")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_user_error_is_one_sentence_and_exit_code_1(tmp_path, run, capsys):
    assert run("colmap", "--points", "input") == 1
    assert capsys.readouterr().out.strip() == (
        "Error: The dataparser of this run gives no 3-D points; export with --points field or --points empty."
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "reason", ["full disk", "full disk for links", "missing image", "no links", "read-only folder"]
)
def test_what_the_file_system_refuses_is_one_sentence(tmp_path, run, monkeypatch, capsys, reason):
    def refuse(*args, **kwargs):
        raise OSError(*((28, "No space left on device") if "full disk" in reason else (1, "No")))

    options, expected = ("--images", "link"), ""
    if reason == "full disk":
        monkeypatch.setattr("nerfstudio.data.utils.colmap_parsing_utils.write_points3D_binary", refuse)
        options, expected = (), "out could not be written (No space left on device)."
    elif reason == "full disk for links":
        monkeypatch.setattr("os.symlink", refuse)
        expected = "out could not be written (No space left on device)."
    elif reason == "missing image":
        (tmp_path / "data/images/03.png").unlink()
        expected = "1 of 9 images are missing, the first is"
    elif reason == "no links":
        monkeypatch.setattr("os.symlink", refuse)
        expected = "Links cannot be made here (No); use --images copy."
    else:
        monkeypatch.setattr("tempfile.mkdtemp", refuse)
        expected = f"{tmp_path} cannot be written (No)."
    before = files_in(tmp_path)
    assert run("colmap", *options) == 1
    output = capsys.readouterr().out
    assert output.startswith("Error: ") and expected in output and output.count("\n") == 1
    assert files_in(tmp_path) == before


class Verdict:
    """What hashpose_ns.guard.report.read_verdict gives."""

    def __init__(self, verdict: str, hurt=(), doubtful=()) -> None:
        self.verdict, self.sentence = verdict, f"Refinement {verdict}."
        self.hurt_cameras, self.doubtful_cameras = list(hurt), list(doubtful)


@pytest.fixture
def verdict(monkeypatch):
    """Lets the guard say something about the run."""
    from hashpose_ns.guard import report

    def say(*args) -> None:
        monkeypatch.setattr(report, "read_verdict", lambda run: Verdict(*args))

    return say


def positions(folder) -> np.ndarray:
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    return np.array([frame["transform_matrix"] for frame in frames])[:, :3]


def test_refinement_that_hurt_is_not_exported_unless_asked_for(tmp_path, run, verdict, monkeypatch, capsys, unchecked):
    verdict("hurt")
    assert run("nerfstudio", "--on-hurt", "warn") == 0
    assert "  guard    hurt: Refinement hurt." in capsys.readouterr().out
    content = json.loads((tmp_path / "out/export.json").read_text())
    assert content["guard"] == {"verdict": "hurt", "sentence": "Refinement hurt."}
    monkeypatch.setattr(poses, "exported_cameras", None)
    assert run("colmap", "--overwrite", "True") == 1
    output = capsys.readouterr().out
    assert "made the poses of this run worse (Refinement hurt)" in output and "--on-hurt warn" in output
    assert files_in(tmp_path / "out") == ["export.json", "transforms.json"], "the earlier export is still there"


def test_cameras_that_were_hurt_are_put_back(tmp_path, scene, call, dataset, helpers, verdict, capsys, unchecked):
    """Two of nine cameras were turned by training, and the guard names one of them as hurt, or as doubtful."""
    train = train_indices(dataset[2])
    refined = scene.train_outputs.cameras.camera_to_worlds.double()
    turn = helpers.poses(1)[0, :, :3]
    refined[2, :, :3] = refined[2, :, :3] @ turn
    refined[5, :, :3] = refined[5, :, :3] @ turn
    scene.poses.refined = refined.float()
    names = scene.poses.image_names
    # as training named it, which saw the images at half the size
    verdict("helped", [names[2].replace("images", "images_2")])
    options = ("--points", "empty")
    assert call(scene, "nerfstudio", *options, "--on-hurt", "keep-initial", output="kept") == 0
    output = capsys.readouterr().out
    assert "helped" in output and f"worse than before: {names[2][-6:]}; put back" in output
    assert "kept     1 cameras, put back to their initial poses" in output
    assert call(scene, "nerfstudio", *options, output="warned") == 0
    assert "--on-hurt keep-initial puts them back" in capsys.readouterr().out
    verdict("helped", [], [names[2]])
    assert call(scene, "nerfstudio", *options, "--on-hurt", "keep-initial", output="doubted") == 0
    assert f"moved far without fitting better: {names[2][-6:]}; put back" in capsys.readouterr().out
    verdict("hurt", [])
    assert call(scene, "nerfstudio", *options, "--on-hurt", "keep-initial", output="all") == 0
    assert "  moved    no camera\n" in capsys.readouterr().out

    true = dataset[1][train, :3]
    wrong = {name: np.abs(positions(tmp_path / name) - true.numpy()).max(axis=(1, 2)) > 0.05 for name in
             ("warned", "kept", "doubted", "all")}  # fmt: skip
    assert np.flatnonzero(wrong["warned"]).tolist() == [2, 5]
    assert np.flatnonzero(wrong["kept"]).tolist() == np.flatnonzero(wrong["doubted"]).tolist() == [5]
    assert not wrong["all"].any()
    said = json.loads((tmp_path / "kept/transforms.json").read_text())["frames"]
    assert [i for i, frame in enumerate(said) if frame["refined_by"].startswith("nothing")] == [2]


def test_a_camera_that_the_guard_named_has_to_be_there(run, verdict, capsys):
    verdict("helped", ["gone/away.png"])
    assert run("tum", "--on-hurt", "keep-initial") == 1
    assert "The guard names the camera gone/away.png" in capsys.readouterr().out


def test_help_is_quick():
    code = (
        "import sys\n"
        "from hashpose_ns.export.cli import entrypoint\n"
        "sys.argv = ['hashpose-export', 'colmap', '--help']\n"
        "try:\n"
        "    entrypoint()\n"
        "except SystemExit:\n"
        "    print([name for name in ('torch', 'nerfstudio') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--load-config" in result.stdout
    assert result.stdout.strip().splitlines()[-1] == "[]"
