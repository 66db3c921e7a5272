"""hashpose-export as a command: settings, files, summary, refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import tyro

from hashpose_ns import __version__
from hashpose_ns.export import cli, poses, replace
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig


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
def pipeline(helpers, dataset):
    """A run that drifted as a whole but is otherwise perfect."""
    parser = dataset[2].setup()
    outputs, held_out = (parser.get_dataparser_outputs(split) for split in ("train", "val"))
    drifted = helpers.similarity().apply_to_poses(outputs.cameras.camera_to_worlds.double())
    return helpers.pipeline(outputs, parser, drifted, held_out=held_out.image_filenames)


@pytest.fixture
def run(call, pipeline):
    """hashpose-export on that run, without points unless they are asked for; returns the exit code."""

    def export(command, *options) -> int:
        no_points = ("--points", "empty") if command in ("colmap", "nerfstudio") and "--points" not in options else ()
        return call(pipeline, command, *no_points, *options)

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
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")) == [
        f"sparse/0/{part}.{format}" for part in ("cameras", "images", "points3D")
    ]
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
    np.testing.assert_allclose(original_space(outputs), dataset[0][train], atol=1e-5)
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is the independent reader of this test")
    for image in pycolmap.Reconstruction(str(tmp_path / "out/sparse/0")).images.values():
        np.testing.assert_allclose(image.projection_center(), dataset[0][int(image.name[:2]), :, 3], atol=1e-5)


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
    assert lines[0] == f"Exported 9 refined cameras as transforms.json: {tmp_path}/out/transforms.json"
    assert lines[1].endswith("the input's, aligned to the poses training started from")
    assert lines[2].startswith("  moved ") and "deg" in lines[2] and "furthest 0" in lines[2]
    assert lines[3].endswith(f" {tmp_path}/data/images")
    assert "left out the evaluation images (1)" in lines[4] and "--eval-mode all" in lines[4]
    assert lines[5].endswith(f"ns-train nerfacto --data {tmp_path}/out nerfstudio-data")


@pytest.mark.parametrize("command", ["colmap", "nerfstudio"])
def test_existing_output_is_refused_before_any_work(tmp_path, run, monkeypatch, capsys, command):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("precious")
    monkeypatch.setattr(poses, "load_trained_pipeline", None)
    assert run(command) == 1
    assert "Error:" in (output := capsys.readouterr().out) and "out exists" in output
    assert run(command, "--overwrite", "True") == 1
    assert "precious in it does not come from an export" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_overwrite_replaces_one_kind_of_export_by_another(tmp_path, run):
    assert run("colmap") == 0
    assert run("nerfstudio") == 1
    assert run("nerfstudio", "--overwrite", "True") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["transforms.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_half_way_leaves_nothing(tmp_path, run, monkeypatch, error):
    from nerfstudio.data.utils import colmap_parsing_utils

    def fail(*args):
        raise error

    monkeypatch.setattr(colmap_parsing_utils, "write_points3D_binary", fail)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error):
        run("colmap")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_user_error_is_one_sentence_and_exit_code_1(tmp_path, run, capsys):
    assert run("colmap", "--points", "input") == 1
    assert capsys.readouterr().out.strip() == (
        "Error: The dataparser of this run gives no 3-D points; export with --points empty."
    )
    assert not (tmp_path / "out").exists()


def test_every_file_written_counts_as_an_export(tmp_path, run):
    for options in (("colmap",), ("colmap", "--format", "txt"), ("nerfstudio",)):
        assert run(*options, "--overwrite", "True") == 0
        files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
        assert files and files <= replace.EXPORTED_FILES


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
