"""Keypoints and verified matches of photographs whose geometry is known; the cache; which pairs are matched."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import arc, corner_cameras, corner_photographs, seen_from

from hashpose_ns.errors import HashPoseError
from hashpose_ns.matches.config import FeatureConfig
from hashpose_ns.matches.features import NoMatches, find_matches, nearest_both_ways, pairs_to_match, pycolmap
from hashpose_ns.matches.sfm import epipolar_errors

pytest.importorskip("pycolmap", reason="matches need it")

DISTORTION = (-0.22, 0.06, 0.0, 0.0, 0.0, 0.0)
COUNT = 4


def written(folder, photographs, mode="RGB"):
    """Photographs as files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:02d}.png" for index in range(len(photographs))]
    for file, photograph in zip(files, photographs):
        Image.fromarray(photograph).convert(mode).save(file)
    return files


def all_pairs(count: int) -> np.ndarray:
    return pairs_to_match(None, count, FeatureConfig())


@pytest.fixture(scope="module")
def distorted(tmp_path_factory):
    """Photographs by a lens that distorts by several pixels, and their cameras."""
    cameras = corner_cameras(COUNT, distortion=DISTORTION)
    return written(tmp_path_factory.mktemp("distorted"), corner_photographs(cameras)), cameras


def test_matches_are_where_the_true_cameras_see_the_same_points(distorted):
    files, cameras = distorted
    found = find_matches(files, cameras, None, all_pairs(COUNT), FeatureConfig())
    poses = cameras.camera_to_worlds.double().numpy()
    assert len(found.pairs) == 6 and min(map(len, found.matches)) >= 15
    errors = np.concatenate(epipolar_errors(found, poses))
    assert np.median(errors) < 0.2 and (errors < 2).mean() > 0.97
    # with the lens left out they are pixels off
    plain = dataclasses.replace(cameras, distortion_params=None)
    other = find_matches(files, plain, None, all_pairs(COUNT), FeatureConfig())
    bent = np.concatenate(epipolar_errors(other, poses))
    assert np.median(bent) > 2 * np.median(errors)  # of matches that bent points have left
    # the same as tensors
    flat = found.flat()
    assert len(flat) == sum(map(len, found.matches)) and flat.num_images == COUNT
    first, second = found.pairs[0]
    one = found.matches[0][0]
    np.testing.assert_allclose(flat.points[0, 0], found.points[first][one[0]], rtol=1e-6)
    np.testing.assert_allclose(flat.points[0, 1], found.points[second][one[1]], rtol=1e-6)
    # relative rotations are the true ones
    for (first, second), rotation in zip(found.pairs, found.rotations):
        flip = np.diag([1.0, -1.0, -1.0])
        true = flip @ poses[second, :, :3].T @ poses[first, :, :3] @ flip
        assert np.degrees(np.arccos(np.clip((np.trace(rotation @ true.T) - 1) / 2, -1, 1))) < 1.0


def test_points_are_undistorted_as_the_rays_of_training_are(distorted):
    files, cameras = distorted
    found = find_matches(files, cameras, None, all_pairs(COUNT), FeatureConfig())
    rays = cameras.generate_rays(
        torch.zeros(len(found.pixels[0]), 1, dtype=torch.long), coords=torch.from_numpy(found.pixels[0][:, ::-1].copy())
    )
    somewhere = (rays.origins + 3.0 * rays.directions).double().numpy()
    seen = seen_from(cameras.camera_to_worlds[:1].double().numpy(), somewhere)[0]
    np.testing.assert_allclose(found.points[0], seen, atol=1e-4)


def test_large_images_are_reduced_and_keypoints_stay_where_they_are(distorted):
    files, cameras = distorted
    width = int(cameras.width[0])
    config = FeatureConfig(max_image_size=width // 2)
    found, whole = (find_matches(files, cameras, None, all_pairs(COUNT), each) for each in (config, FeatureConfig()))
    assert 0 < sum(map(len, found.pixels)) < 0.7 * sum(map(len, whole.pixels))
    assert max(pixels[:, 0].max() for pixels in found.pixels) > 0.8 * width
    errors = np.concatenate(epipolar_errors(found, cameras.camera_to_worlds.double().numpy()))
    assert len(errors) > 100 and np.median(errors) < 1.0


def test_masks_and_transparency_take_keypoints_out(tmp_path):
    cameras = corner_cameras(2)
    photographs = corner_photographs(cameras)
    half = np.zeros(photographs[0].shape, dtype=np.uint8)
    half[:, 120:] = 255
    plain = written(tmp_path / "plain", photographs)
    masks = written(tmp_path / "masks", [half, half], mode="L")
    clear = []
    for index, photograph in enumerate(photographs):
        image = Image.fromarray(photograph).convert("RGBA")
        image.putalpha(Image.fromarray(half))
        clear.append(tmp_path / f"clear_{index}.png")
        image.save(clear[-1])
    pairs, config = all_pairs(2), FeatureConfig()
    everything = find_matches(plain, cameras, None, pairs, config)
    assert min(points[:, 0].min() for points in everything.pixels) < 60
    for found in (
        find_matches(plain, cameras, masks, pairs, config),
        find_matches(clear, cameras, None, pairs, config),
    ):
        assert min(points[:, 0].min() for points in found.pixels) >= 120
        assert 15 <= len(found.matches[0]) < len(everything.matches[0])


def test_images_without_texture_give_no_matches(tmp_path):
    cameras = corner_cameras(3)
    files = written(tmp_path, np.full((3, 180, 240), 128, dtype=np.uint8))
    found = find_matches(files, cameras, None, all_pairs(3), FeatureConfig())
    assert len(found.pairs) == 0 and len(found.flat()) == 0 and found.rotations.shape == (0, 3, 3)


def test_few_matches_are_dropped(distorted):
    files, cameras = distorted
    found = find_matches(files, cameras, None, all_pairs(COUNT), FeatureConfig(min_inliers=100_000))
    assert len(found.pairs) == 0


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How often matches were really looked for; what is found is one made-up pair."""
    from hashpose_ns.matches import features

    calls = []

    def find(library, filenames, *rest):
        calls.append(len(filenames))
        random = np.random.default_rng(len(calls))
        return features.MatchedImages(
            pixels=[100 * random.random((20, 2)) for _ in filenames],
            points=[random.random((20, 2)) for _ in filenames],
            focals=np.full(len(filenames), 300.0),
            pairs=np.array([[0, 1]]),
            matches=[np.stack([np.arange(20), random.permutation(20)], axis=1)],
            rotations=np.eye(3)[None],
        )

    monkeypatch.setattr(features, "_find", find)
    return calls


def test_the_cache_gives_the_same_back_and_notices_what_changes(distorted, tmp_path, counted, own_cache):
    files, cameras = distorted
    pairs, config = all_pairs(COUNT), FeatureConfig()
    first = find_matches(files, cameras, None, pairs, config)
    again = find_matches(files, cameras, None, pairs, config)
    assert len(counted) == 1 and len(list(own_cache.iterdir())) == 1
    for name in ("pixels", "points", "matches"):
        for one, other in zip(getattr(first, name), getattr(again, name)):
            np.testing.assert_array_equal(one, other)
    for name in ("focals", "pairs", "rotations"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    find_matches(files, cameras, None, pairs[:-1], config)
    find_matches(files, cameras, None, pairs, FeatureConfig(max_keypoints=100))
    find_matches(files, dataclasses.replace(cameras, fx=cameras.fx + 1), None, pairs, config)
    find_matches(files[::-1], cameras, None, pairs, config)
    find_matches(files, cameras, files, pairs, config)  # masks
    assert len(counted) == 6
    # poses do not count
    find_matches(
        files, dataclasses.replace(cameras, camera_to_worlds=cameras.camera_to_worlds + 1), None, pairs, config
    )
    assert len(counted) == 6


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "index", "nan"])
def test_a_damaged_cache_costs_time_only(distorted, counted, own_cache, damage):
    files, cameras = distorted
    pairs, config = all_pairs(COUNT), FeatureConfig()
    find_matches(files, cameras, None, pairs, config)
    (path,) = own_cache.iterdir()
    whole = path.read_bytes()
    if damage in ("index", "nan"):
        with np.load(path) as file:
            arrays = dict(file)
        if damage == "index":
            arrays["matches"] = arrays["matches"] + 1000
        else:
            arrays["points"] = arrays["points"] * np.nan
        np.savez(path, **arrays)
    else:
        flipped = bytes(255 - byte for byte in whole)
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": flipped}[damage])
    found = find_matches(files, cameras, None, pairs, config)
    assert len(counted) == 2 and np.isfinite(found.points[0]).all()
    find_matches(files, cameras, None, pairs, config)
    assert len(counted) == 2  # it is whole again


def test_a_cache_that_cannot_be_written_is_done_without(distorted, tmp_path, counted, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    files, cameras = distorted
    for _ in range(2):
        assert len(find_matches(files, cameras, None, all_pairs(COUNT), FeatureConfig()).pairs) == 1
    assert len(counted) == 2 and "Matches could not be cached" in capsys.readouterr().out


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    cameras = corner_cameras(2)
    files = written(tmp_path, corner_photographs(cameras))
    files[1].write_bytes(b"no image")
    with pytest.raises(NoMatches, match="01.png cannot be read"):
        find_matches(files, cameras, None, all_pairs(2), FeatureConfig())
    files[1].unlink()
    with pytest.raises(NoMatches, match="an image cannot be read"):
        find_matches(files, cameras, None, all_pairs(2), FeatureConfig())


# -- descriptors and pairs ---------------------------------------------------------------------------------------------


def test_nearest_both_ways_against_every_pair():
    random = np.random.default_rng(0)
    first = random.random((40, 128)).astype(np.float32)
    second = np.concatenate([first[:25] + 0.02 * random.random((25, 128)), random.random((10, 128)), first[3:5]])
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second.astype(np.float32)))
    angles = np.arccos(np.clip(first.astype(float) @ second.T.astype(float), -1, 1))
    expected = []
    for i in range(len(first)):
        j = int(angles[i].argmin())
        row, column = np.sort(angles[i]), np.sort(angles[:, j])
        mutual = int(angles[:, j].argmin()) == i
        if mutual and row[0] <= 0.7 and row[0] < 0.8 * row[1] and column[0] <= 0.7 and column[0] < 0.8 * column[1]:
            expected.append([i, j])
    found = nearest_both_ways(torch.from_numpy(first), torch.from_numpy(second))
    assert found.tolist() == expected and len(expected) > 15
    assert nearest_both_ways(torch.zeros(1, 128), torch.zeros(5, 128)).shape == (0, 2)


@pytest.mark.parametrize("known", [True, False])
def test_pairs_of_many_images_grow_in_proportion_and_connect_them_all(known):
    config = FeatureConfig()
    counts = {}
    for number in (250, 500, 1000):
        poses = arc(number, degrees=340.0) if known else None
        pairs = pairs_to_match(poses, number, config)
        assert (pairs[:, 0] < pairs[:, 1]).all() and len(np.unique(pairs, axis=0)) == len(pairs)
        assert pairs.min() >= 0 and pairs.max() < number
        counts[number] = len(pairs)
        reached = {0}
        while True:
            touching = np.isin(pairs, list(reached)).any(axis=1)
            wider = reached | set(pairs[touching].ravel().tolist())
            if wider == reached:
                break
            reached = wider
        assert len(reached) == number
    assert counts[1000] <= 1000 * config.pairs_per_image
    assert counts[1000] / counts[500] < 2.3 and counts[500] / counts[250] < 2.3
    assert len(pairs_to_match(None, 1000, FeatureConfig(pairs_per_image=10))) < 0.4 * counts[1000]


def test_all_pairs_of_few_images():
    assert len(pairs_to_match(None, 150, FeatureConfig())) == 150 * 149 // 2
    assert pairs_to_match(arc(3), 3, FeatureConfig()).tolist() == [[0, 1], [0, 2], [1, 2]]


def test_settings_out_of_range_are_refused():
    with pytest.raises(HashPoseError, match="pairs-per-image must be at least 1"):
        FeatureConfig(pairs_per_image=0).validate()


# -- the library -------------------------------------------------------------------------------------------------------


def test_a_library_that_is_missing_or_old_is_a_reason(monkeypatch):
    monkeypatch.setattr(sys.modules["pycolmap"], "__version__", "4.1.0")
    with pytest.raises(NoMatches, match="pycolmap 4.1.0 is too old"):
        pycolmap()
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(NoMatches, match="not installed"):
        pycolmap()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("handler, code, said", [("signal.SIG_DFL", -15, ""), ("stop", 7, "stopping")])
def test_signals_do_what_they_did_before_the_library_came(handler, code, said):
    """pycolmap's log has SIGTERM print a stack trace, unless somebody undoes that."""
    program = f"""
    import os, signal, sys
    def stop(*_):
        print("stopping", flush=True)
        sys.exit(7)
    signal.signal(signal.SIGTERM, {handler})
    from hashpose_ns.stopping import keeps_handlers
    with keeps_handlers():
        import pycolmap
    os.kill(os.getpid(), signal.SIGTERM)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (code, said, "")
