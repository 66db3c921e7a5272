"""What is left after a kill, a stop, a full disk, or damage to a file of a run?

    PYTHONPATH=. python benchmarks/chaos.py --rounds 200 --seed 0

Every round takes a tiny training and one of these, at a random moment or place. It fails where a command ends with a
traceback or by a signal that nobody sent, where a resumed run ends elsewhere than an uninterrupted one, where an export
of a damaged run holds other poses, or where a file of the dataset has changed. Commands run in forks of this process,
which has imported everything. The numbers of a failing round repeat it: --first N --rounds 1 with the same seed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork

import torch  # noqa: E402
import tyro  # noqa: E402

import hashpose_ns  # noqa: E402

SCENE = Path(hashpose_ns.__file__).parent / "data" / "demo_chair"
STEPS = 12
TRAIN = [
    *("hashpose-blender", "--data", SCENE, "--experiment-name", "e", "--timestamp", "t", "--vis", "tensorboard"),
    *("--max-num-iterations", STEPS, "--steps-per-save", 2, "--save-only-latest-checkpoint", "False"),
    *("--steps-per-eval-batch", 0, "--steps-per-eval-image", 0, "--steps-per-pose-log", 3, "--guard.mode", "off"),
    *("--pipeline.datamanager.camera-res-scale-factor", 0.2, "--pipeline.datamanager.train-num-rays-per-batch", 64),
    *("--pipeline.model.num-samples", 16, "--pipeline.held-out-rays", 64, "--pipeline.model.field.decoder.width", 16),
    *("--pipeline.model.field.encoding.num-levels", 3, "--pipeline.model.field.encoding.log2-hashmap-size", 8),
    *("--pipeline.model.field.encoding.base-resolution", 4, "--pipeline.model.field.encoding.max-resolution", 16),
]
FOLDER = Path("e") / "hashpose-blender" / "t"
TIMEOUT = 300
"""Seconds that a command may take."""
CHECKPOINTS = "nerfstudio_models"


class Failed(Exception):
    """What a round has found."""


# -- commands ----------------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """A command in a fork of this process."""

    pid: int
    output: int
    """Descriptor of a pipe with what it prints."""
    sent: int = 0
    """The signal that it was sent."""

    def send(self, number: int) -> None:
        """Sends a signal."""
        self.sent = number
        os.kill(self.pid, number)

    def wait(self, *codes: int) -> str:
        """What it printed.

        Raises:
            Failed: it ended with another exit code, by another signal than it was sent, or with a traceback.
        """
        with os.fdopen(self.output, errors="replace") as pipe:
            output = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        expected = [*codes, *([-self.sent, 128 + self.sent, 1] if self.sent else [])]
        if code not in expected or "Traceback" in output:
            raise Failed(f"exit code {code}, expected {expected}:\n{output[-3000:]}")
        if code == 1 and not self.sent and len(re.findall("^Error: ", output, flags=re.MULTILINE)) != 1:
            raise Failed(f"exit code 1 without one sentence:\n{output[-3000:]}")
        return output


def start(entrypoint: Callable[[], None], *arguments: Any, file_limit: Optional[int] = None) -> Process:
    """Starts a command.

    Args:
        entrypoint: its function.
        arguments: its command line.
        file_limit: bytes that a file it writes may have, as if the disk were full then.
    """
    sys.stdout.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Process(pid, reading)
    code = 70
    try:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        signal.alarm(TIMEOUT)
        sys.argv = ["command", *map(str, arguments)]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        entrypoint()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        code = 1
        if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            code = 130  # nerfstudio still reads its command line, and nothing of hashpose has run
        else:
            traceback.print_exc()
    finally:
        os._exit(code)


# -- rounds ------------------------------------------------------------------------------------------------------------


@dataclass
class Chaos:
    """The uninterrupted run that all others are compared with, and rounds."""

    work: Path
    """Folder for everything."""
    dataset: str = ""
    """Hash of the dataset's files."""
    end: Dict[str, Any] = field(default_factory=dict)
    """Its last checkpoint."""
    seconds: float = 0.0
    """How long the fastest of uninterrupted ones took."""
    poses: Dict[str, Any] = field(default_factory=dict)
    """What it exports."""
    kinds: Tuple[str, ...] = ()
    """What may happen in a round."""

    def __post_init__(self) -> None:
        self.dataset = hash_of(SCENE)
        begin = time.monotonic()
        self.train(self.work / "whole").wait(0)
        self.seconds = time.monotonic() - begin
        self.end = last_state(self.work / "whole")
        self.export(self.work / "whole").wait(0)
        self.poses = self.exported()

    def train(self, output: Path, *more: Any, file_limit: Optional[int] = None) -> Process:
        """Starts training."""
        from nerfstudio.scripts import train

        return start(train.entrypoint, *TRAIN, "--output-dir", output, *more, file_limit=file_limit)

    def export(self, output: Path) -> Process:
        """Starts an export of a run's poses."""
        from hashpose_ns.export import cli

        shutil.rmtree(self.work / "export", ignore_errors=True)
        arguments = ["json", "--load-config", output / FOLDER / "config.yml", "--output-dir", self.work / "export"]
        return start(cli.entrypoint, *arguments)

    def exported(self) -> Dict[str, Any]:
        """What the last export wrote, but for the run's name."""
        content = json.loads((self.work / "export" / "poses.json").read_text())
        del content["run"]
        return content

    def round(self, seed: str) -> str:
        """One round; what was done.

        Raises:
            Failed: something is not as it should be.
        """
        generator = random.Random(seed)
        output = self.work / "run"
        shutil.rmtree(output, ignore_errors=True)
        what = getattr(self, generator.choice(self.kinds))
        try:
            done = what(generator, output)
            if hash_of(SCENE) != self.dataset:
                raise Failed("the dataset has changed")
        except Failed as error:
            raise Failed(f"{what.__name__}: {error}") from None
        return done

    def resumed(self, output: Path) -> str:
        """Goes on with a run that was interrupted, and compares its end."""
        found = sorted((output / FOLDER / CHECKPOINTS).glob("step-*.ckpt"))
        if found and found[-1].stem == f"step-{STEPS - 1:09d}":
            left = "had finished"
        else:
            more = ["--load-dir", output / FOLDER / CHECKPOINTS] if found else []
            begin = time.monotonic()
            self.train(output, *more).wait(0)
            if not found:
                self.seconds = min(self.seconds, time.monotonic() - begin)
            left = f"resumed from {found[-1].stem}" if found else "started anew"
        if not equal(last_state(output), self.end):
            raise Failed(f"{left}, and ended elsewhere than the uninterrupted run")
        return left

    def killed(self, generator: random.Random, output: Path) -> str:
        """An end without warning at a random moment."""
        return self.interrupted(signal.SIGKILL, generator, output)

    def stopped(self, generator: random.Random, output: Path) -> str:
        """A signal at a random moment, by which one asks a process to end."""
        return self.interrupted(generator.choice([signal.SIGTERM, signal.SIGINT]), generator, output)

    def interrupted(self, number: signal.Signals, generator: random.Random, output: Path) -> str:
        """A signal at a random moment; what came of it."""
        after = generator.uniform(0.1, 1.0) * self.seconds
        process = self.train(output)
        time.sleep(after)
        process.send(number)
        process.wait(0)
        return f"{number.name} after {after:.2f} s, {self.resumed(output)}"

    def full_disk(self, generator: random.Random, output: Path) -> str:
        """No file may become larger than some size."""
        largest = max(path.stat().st_size for path in (self.work / "whole").rglob("*") if path.is_file())
        limit = generator.choice([generator.randrange(10_000), generator.randrange(int(1.1 * largest))])
        self.train(output, file_limit=limit).wait(0, 1)
        return f"files of at most {limit} bytes, {self.resumed(output)}"

    def damaged(self, generator: random.Random, output: Path) -> str:
        """A file of a finished run is damaged; then it is resumed, exported or made a film of."""
        shutil.copytree(self.work / "whole", output)
        run = output / FOLDER
        generator.choice([lambda: None, sorted((run / CHECKPOINTS).iterdir())[-1].unlink])()
        newest = sorted((run / CHECKPOINTS).iterdir())[-1]
        path = generator.choice([newest, newest, *sorted(path for path in run.iterdir() if path.is_file())])
        how = damage(generator, path)
        command = generator.choice(["resume", "json", "film"])
        done = f"{path.name} {how}, {command}"
        if command == "resume":
            process = self.train(self.work / "resumed", "--load-dir", run / CHECKPOINTS)
            output = process.wait(0, 1)
            if "Error:" not in output and not equal(last_state(self.work / "resumed"), self.end):
                raise Failed(f"{done}: ended elsewhere than the uninterrupted run")
            shutil.rmtree(self.work / "resumed", ignore_errors=True)
        elif command == "json":
            output = self.export(output).wait(0, 1)
            if "Error:" not in output:
                exported = self.exported()
                used = torch.load(sorted((run / CHECKPOINTS).glob("step-*.ckpt"))[-1])["step"]
                if used == STEPS - 1 and path.name != "config.yml" and exported != self.poses:
                    raise Failed(f"{done}: exported other poses")
        else:
            from hashpose_ns.export import cli

            film = self.work / "film.gif"
            arguments = ["video", "--load-config", run / "config.yml", "--output-path", film, "--overwrite", "True"]
            arguments += ["--seconds", "0.2", "--hold-start", "0", "--hold-end", "0.1", "--size", "160", "120"]
            output = start(cli.entrypoint, *arguments).wait(0, 1)
        said = re.search("^Error: (.*)$", output, flags=re.MULTILINE)
        return f"{done}: {said[1] if said else 'fine'}"


def damage(generator: random.Random, path: Path) -> str:
    """Damages a file; how."""
    content = bytearray(path.read_bytes())
    place = generator.randrange(max(len(content), 1))
    how = generator.choice(["cut", "emptied", "bit flipped", "zeroed", "garbage", "removed", "appended to"])
    if how == "removed":
        path.unlink()
        return how
    if how == "cut":
        del content[place:]
    elif how == "emptied":
        content.clear()
    elif how == "bit flipped" and content:
        content[place] ^= 1 << generator.randrange(8)
    elif how == "zeroed":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif how == "garbage":
        content[place : place + 64] = generator.randbytes(64)
    elif how == "appended to":
        content += generator.randbytes(30)
    path.write_bytes(content)
    return f"{how} at {place} of {len(content)}"


def hash_of(folder: Path) -> str:
    """Of names and content of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def last_state(output: Path) -> Dict[str, Any]:
    """A run's last checkpoint."""
    return torch.load(sorted((output / FOLDER / CHECKPOINTS).glob("step-*.ckpt"))[-1], weights_only=True)


def equal(one: Any, two: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def main(
    rounds: int = 200,
    seed: int = 0,
    first: int = 0,
    kinds: Tuple[str, ...] = ("killed", "stopped", "full_disk", "damaged", "damaged"),
) -> int:
    """Runs rounds and prints a line for each.

    Args:
        rounds: how many.
        seed: of all of them.
        first: number of the first.
        kinds: what may happen in a round, by the names of `Chaos`' methods; one that stands twice happens more often.

    Returns:
        How many failed.
    """
    from nerfstudio.configs import method_configs  # noqa: F401  # what every fork would import
    from nerfstudio.scripts import train  # noqa: F401

    failed = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(Path(folder), kinds=kinds)
        for number in range(first, first + rounds):
            try:
                print(f"{number:4d}  {chaos.round(f'{seed} {number}')}")
            except Failed as error:
                failed += 1
                print(f"{number:4d}  FAILED  {error}")
    print(f"{failed} of {rounds} rounds failed.")
    return failed


if __name__ == "__main__":
    sys.exit(min(tyro.cli(main), 1))
