"""Breaks datasets at random and reads them: what is no sensible dataset must be refused by a `HashPoseError`.

    python tests/fuzz/inputs.py --count 500 --seed 0

A case is a tiny dataset of one of the formats with up to three mutations of its files. Reading it must end in one of
two ways: images, poses and intrinsics that are finite and rigid, or a HashPoseError. Anything else is printed with the
case's number; `--case N` repeats that one alone, with its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import struct
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from scenes import blender_scene, colmap_scene, llff_scene, nerfstudio_scene  # noqa: E402

NUMBERS = [0, -1, 1, 0.5, -0.5, 1e-30, 1e30, 1e300, -1e19, 2**31, 2**63, float("nan"), float("inf"), float("-inf")]
OTHERS: List[Any] = [
    None,
    True,
    "",
    "x",
    "../x",
    "images",
    "nan",
    "\ud800",
    "a\nb",
    [],
    {},
    [[1, 0], [0, 1]],
    [1.0] * 16,
]


@dataclass
class Format:
    """A kind of dataset."""

    make: Callable[[Path], Path]
    """Writes a small one."""
    config: Callable[[Path], Any]
    """Its dataparser's configuration."""


def _formats() -> Dict[str, Format]:
    from hashpose_ns.data.llff_dataparser import LLFFDataParserConfig
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
    from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
    from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    def colmap(data: Path) -> ColmapDataParserConfig:
        return ColmapDataParserConfig(data=data, colmap_path=Path("sparse/0"))

    def rich_transforms(folder: Path) -> Path:
        """transforms.json with what else nerfstudio looks at."""
        path = nerfstudio_scene(folder, 6, 16) / "transforms.json"
        meta = json.loads(path.read_text())
        meta.update(k1=0.01, k2=0.0, p1=0.0, p2=0.0, applied_transform=np.eye(4)[:3].tolist())
        names = [frame["file_path"] for frame in meta["frames"]]
        meta.update(train_filenames=names[:4], val_filenames=names[4:], test_filenames=names[4:])
        (folder / "masks").mkdir()
        for frame in meta["frames"]:
            frame["mask_path"] = frame["file_path"].replace("images", "masks")
            Image.new("L", (16, 16), 255).save(folder / frame["mask_path"])
        path.write_text(json.dumps(meta))
        return folder

    return {
        "transforms.json": Format(
            lambda folder: nerfstudio_scene(folder, 6, 16), lambda data: NerfstudioDataParserConfig(data=data)
        ),
        "transforms.json with masks": Format(rich_transforms, lambda data: NerfstudioDataParserConfig(data=data)),
        "instant-ngp": Format(
            lambda folder: nerfstudio_scene(folder, 11, 16), lambda data: InstantNGPDataParserConfig(data=data)
        ),
        "blender": Format(
            lambda folder: blender_scene(folder, 4, 2, 16), lambda data: BlenderDataParserConfig(data=data)
        ),
        "COLMAP, binary": Format(lambda folder: colmap_scene(folder, 6, 16), colmap),
        "COLMAP, text": Format(lambda folder: colmap_scene(folder, 6, 16, binary=False), colmap),
        "llff": Format(lambda folder: llff_scene(folder, 6, 16), lambda data: LLFFDataParserConfig(data=data)),
    }


# -- mutations ---------------------------------------------------------------------------------------------------------


def mutate(folder: Path, rng: random.Random) -> str:
    """Breaks one file of a dataset, more often one of those with cameras; says which and how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    images = [path for path in files if path.suffix == ".png"]
    others = [path for path in files if path.suffix != ".png"]
    path = rng.choice(others) if others and (rng.random() < 0.7 or not images) else rng.choice(images)
    special = {".json": _json, ".npy": _npy, ".txt": _text, ".bin": _numbers, ".png": _image}[path.suffix]
    how = special if rng.random() < 0.8 else rng.choice([_cut, _bits, _gone, _replaced])
    return f"{path.relative_to(folder)} {how(path, rng)}"


def _cut(path: Path, rng: random.Random) -> str:
    content = path.read_bytes()
    length = rng.randint(0, len(content))
    path.write_bytes(content[:length])
    return f"cut at {length}"


def _bits(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    flipped = [rng.randrange(8 * len(content)) for _ in range(rng.choice([1, 1, 8]))] if content else []
    for bit in flipped:
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bits {flipped}"


def _gone(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "gone"


def _replaced(path: Path, rng: random.Random) -> str:
    path.unlink()
    kind = rng.choice(["a folder", "a link to itself", "zeros", "nothing"])
    if kind == "a folder":
        path.mkdir()
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    else:
        path.write_bytes(bytes(200) if kind == "zeros" else b"")
    return f"is {kind}"


def _json(path: Path, rng: random.Random) -> str:
    """Changes a value anywhere in the tree."""
    try:
        content = json.loads(path.read_text())
    except ValueError:  # an earlier mutation
        return _bits(path, rng)
    node, way = content, []
    while isinstance(node, (dict, list)) and node:
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node, way = node[key], [*way, key]
        if rng.random() < 0.15:
            break
    if not way:
        return _bits(path, rng)
    what = rng.choice(["number", "number", "other", "remove", "double", "swap"])
    if what == "remove":
        del parent[key]
    elif what == "double" and isinstance(parent, list):
        parent.append(parent[key])
    elif what == "swap" and isinstance(parent, list):
        parent.reverse()
    else:
        parent[key] = what = rng.choice(NUMBERS if what == "number" else OTHERS)
    path.write_text(json.dumps(content))
    return f"{way} {what!r}"


def _text(path: Path, rng: random.Random) -> str:
    """Changes a word or a line."""
    lines = path.read_text(errors="replace").split("\n")
    data = [i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    if not data:
        return _bits(path, rng)
    line = rng.choice(data)
    words = lines[line].split(" ")
    what = rng.choice(["number", "number", "other", "remove", "double", "line removed", "line doubled"])
    word = rng.randrange(len(words))
    if what == "line removed":
        del lines[line]
    elif what == "line doubled":
        lines.insert(line, lines[line])
    elif what == "remove":
        del words[word]
        lines[line] = " ".join(words)
    elif what == "double":
        lines[line] = " ".join([*words, words[word]])
    else:
        words[word] = what = str(rng.choice(NUMBERS)) if what == "number" else rng.choice(["x", "FOV", "ä", "#", "-"])
        lines[line] = " ".join(words)
    path.write_text("\n".join(lines))
    return f"line {line} word {word} {what}"


def _numbers(path: Path, rng: random.Random) -> str:
    """Writes a number over some bytes, mostly where one starts."""
    content = bytearray(path.read_bytes())
    format, value = rng.choice(
        [("<d", float(number)) for number in NUMBERS] + [("<Q", 2**64 - 1), ("<Q", 2**31), ("<Q", 3), ("<i", 7)]
    )
    length = struct.calcsize(format)
    if len(content) < length:
        return _bits(path, rng)
    offset = rng.randrange(len(content) - length + 1) if rng.random() < 0.4 else rng.choice(_starts(content, length))
    struct.pack_into(format, content, offset, value)
    path.write_bytes(content)
    return f"at {offset} {value}"


def _starts(content: bytes, length: int) -> List[int]:
    """Where values of a COLMAP file start, near enough: of the first record, whole numbers of four bytes."""
    return list(range(0, min(80, len(content) - length) + 1, 4))


def _npy(path: Path, rng: random.Random) -> str:
    """Changes numbers, the shape or the type of an array."""
    try:
        array = np.load(path)
    except Exception:  # an earlier mutation
        return _bits(path, rng)
    what = rng.choice(["number", "number", "number", "column", "row", "type", "shape"])
    if what == "number" and array.size:
        index = rng.randrange(array.size)
        with contextlib.suppress(OverflowError, ValueError, TypeError):
            array.flat[index] = what = rng.choice(NUMBERS)
        what = f"[{index}] {what}"
    elif what == "column":
        array = array[..., :-1]
    elif what == "row":
        array = array[:-1]
    elif what == "type":
        array = array.astype(rng.choice(["f2", "i1", "c8", "U8"]))
    else:
        array = array.reshape(-1)
    np.save(path, array)
    return what


def _image(path: Path, rng: random.Random) -> str:
    """Writes another kind of image under the name."""
    try:
        image = Image.open(path).copy()
    except Exception:  # an earlier mutation
        return _bits(path, rng)
    what = rng.choice(["size", "empty", "mode", "format", "bomb"])
    if what == "size":
        image = image.resize((rng.choice([1, 15, 17, 40]), rng.choice([1, 16])))
    elif what == "empty":
        image = Image.new(image.mode, image.size)
    elif what == "mode":
        what = rng.choice(["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "F"])
        image = Image.new("I;16", image.size) if what == "I;16" else image.convert("RGB").convert(what)
    if what == "bomb":
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", 30_000, 30_000)
        path.write_bytes(content)
        return what
    save_as = "PNG" if what != "format" else rng.choice(["JPEG", "BMP", "GIF", "TIFF", "WEBP"])
    if image.mode in ("CMYK", "F"):
        save_as = "TIFF"
    elif save_as == "JPEG":
        image = image.convert("RGB")
    image.save(path, format=save_as)
    return f"{what} {save_as}"


# -- what must hold ----------------------------------------------------------------------------------------------------


def read(config: Any) -> Any:
    """The datamanager, made as training makes it."""
    import torch

    from hashpose_ns.datamanager import HashPoseDataManagerConfig

    torch.manual_seed(0)
    settings = HashPoseDataManagerConfig(
        dataparser=config, train_num_rays_per_batch=16, eval_num_rays_per_batch=16, camera_res_scale_factor=1.0
    )
    return settings.setup(device="cpu", test_mode="val")


def complaint(manager: Any) -> Optional[str]:
    """What is wrong with data that were accepted; None if nothing is."""
    import torch

    rays, batch = manager.next_train(0)
    if not (torch.isfinite(rays.origins).all() and torch.isfinite(rays.directions).all()):
        return "rays are not finite"
    if not (torch.isfinite(batch["image"]).all() and 0 <= batch["image"].min() and batch["image"].max() <= 1):
        return "colours are not between 0 and 1"
    for name, dataset in (("training", manager.train_dataset), ("held-out", manager.eval_dataset)):
        cameras = dataset.cameras
        poses = cameras.camera_to_worlds.double()
        if poses.shape != (len(dataset), 3, 4):
            return f"{name} poses have the shape {tuple(poses.shape)}"
        if not len(dataset):
            continue
        if not torch.isfinite(poses).all():
            return f"a {name} pose is not finite"
        rotations = poses[:, :, :3]
        if (rotations.mT @ rotations - torch.eye(3, dtype=torch.float64)).abs().max() > 2e-3:
            return f"a {name} pose is not rigid"
        if (torch.linalg.det(rotations) < 0).any():
            return f"a {name} pose is mirrored"
        for key in ("fx", "fy", "cx", "cy", "distortion_params"):
            value = getattr(cameras, key)
            if value is not None and not torch.isfinite(value).all():
                return f"{key} of a {name} camera is not finite"
        if (cameras.fx <= 0).any() or (cameras.fy <= 0).any():
            return f"the focal length of a {name} camera is not positive"
    return None


def run_case(base: Path, format: Format, rng: random.Random) -> Tuple[str, str]:
    """Breaks a copy of a dataset and reads it.

    Returns:
        How it ended ("read", "refused", or what went wrong), and the mutations.
    """
    from hashpose_ns.errors import HashPoseError

    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = Path(temporary) / "scene"
        shutil.copytree(base, folder)
        mutations = "; ".join(mutate(folder, rng) for _ in range(rng.choice([1, 1, 2, 3])))
        before = sorted(Path(temporary).rglob("*"))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                wrong = complaint(read(format.config(folder)))
        except HashPoseError as error:
            sentence = str(error)
            wrong = None if sentence.endswith(".") and len(sentence) > 20 else f"is no sentence: {sentence}"
            outcome = wrong or "refused"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()
            outcome = f"{type(error).__name__}: {error}"
        else:
            outcome = f"accepted, but {wrong}" if wrong else "read"
        if sorted(Path(temporary).rglob("*")) != before:
            outcome = "files were left in the dataset's folder"
    return outcome, mutations


def fuzz(count: int, seed: int, only: Optional[int] = None) -> Tuple[Counter, List[str]]:
    """Runs cases.

    Returns:
        How many were read and refused by format, and a line for every case that ended otherwise.
    """
    warnings.simplefilter("ignore")
    formats = _formats()
    ends: Counter = Counter()
    failures = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        bases = {name: format.make(Path(temporary) / str(i)) for i, (name, format) in enumerate(formats.items())}
        for case in range(count) if only is None else [only]:
            name = list(formats)[case % len(formats)]
            outcome, mutations = run_case(bases[name], formats[name], random.Random(f"{seed}-{case}"))
            ends[name, outcome] += 1
            if outcome not in ("read", "refused"):
                failures.append(f"case {case} ({name}): {outcome} [{mutations}]")
            elif only is not None:
                print(f"{outcome} [{mutations}]")
    return ends, failures


def main() -> None:
    """Runs the fuzzer and prints what it found; exit code 1 if that is anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case alone")
    arguments = parser.parse_args()
    ends, failures = fuzz(arguments.count, arguments.seed, arguments.case)
    for (name, outcome), number in sorted(ends.items()):
        if outcome in ("read", "refused"):
            print(f"{number:5d}  {name}: {outcome}")
    print(*failures, sep="\n")
    print(f"{sum(ends.values())} cases, {len(failures)} wrong.")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
