"""All that only a GPU can tell, in one command of at most nine minutes, and its rehearsal without one.

    python benchmarks/gpu.py kit --data path/to/chair_400
    python benchmarks/gpu.py rehearse --data path/to/chair_400 --python BARE
    python3 benchmarks/gpu.py measure --output $OUT --data .scene/chair_400 --commit HASH

`kit` downloads into `.whl` what such a machine lacks beside Python and PyTorch (gpu_machine.txt is what it has), and
copies the scene into `.scene` with fewer test images. `measure` needs no network and no git. It writes gpu.json, whole
and anew after every row, and log.txt. Its parts, in order of their value:

* gate: kernels against float64, and whether they are used at all. Else everything ends there, with another exit code
  than 0: times would be of something else.
* step: ms of a training step of hashpose-blender, BARF and nerfacto, by turns, and their memory.
* encoding: forward and backward passes at 131 072 points, then fewer, then more.
* best, paper: chair by BARF's protocol, in as many steps as fit. Errors and PSNR over time, and an evaluation.
* compiled: the step with decoder and rendering as CUDA graphs, by turns with the plain one.
* profile: kernels, copies and their ms in a step, and how often Python waits.
* decoder: in which precision, compiled or not.

Every part has a process of its own. All start at once, so that start-up is paid once, and wait for their turn. This
file needs the standard library alone. Not run on a GPU so far: no number in this repository comes from it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
MOST_MIB = 60
"""What may travel to the machine, of the 64 MiB that can."""
MOST_TEST = 25
"""Test images that travel."""
MOST_FILES, MOST_FILE_MIB = 8, 16
"""What can come back."""
LAST_SECONDS = 8.0
"""Kept for the end."""
STARTING = {"paper": 100.0, "tiny": 600.0}
"""Seconds after which a process that has not started is given up, by size; a small machine starts them slowly."""
PATIENCE = {"paper": 1.0, "tiny": 4.0}
"""Factor on the limits of parts, by size."""


class Part(NamedTuple):
    """A process that measures something."""

    name: str
    seconds: float
    """The most that it may take."""
    share: float = 0.0
    """Of the time that is left but for what later parts take at most: the most it may take if that is more."""


PARTS = (
    Part("gate", 75),
    Part("step", 70),
    Part("encoding", 40),
    Part("best", 60, share=0.5),
    Part("paper", 60, share=1.0),
    Part("compiled", 45),
    Part("profile", 25),
    Part("decoder", 25),
)
NO_KIT, NO_IMPORTS, NOT_USED, WRONG, NO_GATE = 2, 3, 4, 5, 6
"""Exit codes: the kit cannot be installed; imports fail; Triton is passed over; its kernels are wrong; the gate failed
or took too long."""

WHEELS = """nerfstudio==1.1.5 nerfacc==0.5.2 gsplat==1.4.0 viser==0.2.7 tyro==1.0.17 typeguard==4.6.1 roma==1.8.0
rawpy==0.28.0 tensorly==0.10.0 msgspec==0.22.0 multiprocess==0.70.19 dill==0.4.1 pathos==0.3.5 pox==0.3.7 ppft==1.7.8
fpsample==0.3.3 docstring-parser==0.18.0 splines==0.3.3 defusedxml==0.7.1 pyquaternion==0.9.9 PySocks==1.7.1
appdirs==1.4.4 pytorch-msssim==1.0.0 websockets==17.4""".split()
"""What a machine with Python 3.12, PyTorch 2.11 and the usual around it lacks."""
PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2014", "1", "2_34", "2_31")


# -- the record --------------------------------------------------------------------------------------------------------


class Record:
    """gpu.json: rows of all parts, and how each of them ended. Whole at any moment.

    Args:
        path: the file.
        content: what stands at its head.
    """

    def __init__(self, path: Path, **content: Any) -> None:
        self.path = path
        self.content: dict[str, Any] = {"benchmark": "gpu", **content, "parts": {}, "summary": {}, "rows": []}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self, **more: Any) -> None:
        """Writes everything, with additions at the head."""
        self.content.update({key: value for key, value in more.items() if key not in ("rows", "parts", "summary")})
        self.content["summary"] = summary(self.content["rows"])
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)

    def add(self, row: dict[str, Any]) -> None:
        """Takes in a row."""
        self.content["rows"].append(row)
        self.write()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median ms of a step of each method, and what the slowest parts are for."""
    steps: dict[str, list[float]] = {}
    for row in rows:
        if row["part"] in ("step", "compiled") and "ms" in row:
            steps.setdefault(f"{row['part']}: {row['method']}", []).append(row["ms"])
    found: dict[str, Any] = {f"{name}, ms": round(statistics.median(ms), 4) for name, ms in steps.items()}
    ours, barf = (found.get(f"step: {name}, ms") for name in ("hashpose-blender", "barf-blender"))
    if ours and barf:
        found["BARF's step over ours"] = round(barf / ours, 2)
    for row in rows:
        if row["part"] in ("best", "paper") and "scores" in row:
            found[row["part"]] = {**row["scores"], "train_seconds": row["train_seconds"], "steps": row["steps"]}
    return found


# -- processes ---------------------------------------------------------------------------------------------------------


class Worker:
    """The process of a part. It imports what it needs, says so, and waits for its turn. It ends with this one.

    Args:
        part: its name.
        settings: for all parts.
        log: file for what it prints.
    """

    def __init__(self, part: str, settings: dict[str, Any], log: Any, environment: dict[str, str]) -> None:
        self.part = part
        self.rows, other = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), part, str(other), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[other],
            start_new_session=True,
            text=True,
        )
        os.close(other)
        self.unread = b""

    def tell(self, **what: Any) -> None:
        """Sends a line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
        except OSError:  # it has ended
            pass

    def row(self, until: float) -> dict[str, Any] | None:
        """The next row; None at its end, or at a time of `time.monotonic`."""
        while b"\n" not in self.unread:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.rows], [], [], left)[0]:
                return None
            read = os.read(self.rows, 1 << 16)
            if not read:
                return None
            self.unread += read
        line, self.unread = self.unread.split(b"\n", 1)
        return json.loads(line)

    def end(self) -> int:
        """Ends it and all that it started; its exit code, negative where that took a signal."""
        try:
            code = self.process.wait(0.2)
        except subprocess.TimeoutExpired:
            code = None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        code = self.process.wait() if code is None else code
        os.close(self.rows)
        return code


class Workers:
    """The processes of all parts, started as early as the machine's cores allow.

    Args:
        parts: names of those wanted.
        start: starts one.
    """

    def __init__(self, parts: list[str], start: Callable[[str], Worker]) -> None:
        self.names, self.start = [part.name for part in PARTS if part.name in parts], start
        self.started: dict[str, Worker] = {}

    def take(self, name: str) -> Worker:
        """One whose turn it is; those that come next have begun to start."""
        first = self.names.index(name)
        for each in self.names[first : first + max(2, (os.cpu_count() or 2) // 2)]:
            if each not in self.started:
                self.started[each] = self.start(each)
        return self.started[name]


def run_part(worker: Worker, record: Record, begin: float, seconds: Callable[[], float], more: dict[str, Any]) -> int:
    """Has a part measure for `seconds()` at most, asked once it has started. Its exit code; -9 where it was stopped."""
    starting = min(STARTING[record.content["size"]], record.content["limit"] - (time.monotonic() - begin))
    ready = worker.row(time.monotonic() + starting)  # the others import at the same time
    started, most = time.monotonic(), seconds()
    until = started + most if ready is not None else started
    worker.tell(seconds=most, **more)
    while (row := worker.row(until)) is not None:
        if "head" in row:
            record.write(**row["head"])
        else:
            record.add({"part": worker.part, "at": round(time.monotonic() - begin, 2), **row})
    code = worker.end()
    done = {"exit_code": code, "seconds": round(time.monotonic() - started, 1), "limit": round(most, 1)}
    record.content["parts"][worker.part] = done
    record.write()
    print(f"{time.monotonic() - begin:6.1f} s  {worker.part}: {done}", flush=True)
    return code


# -- measure -----------------------------------------------------------------------------------------------------------


def commit(given: str | None) -> str:
    """The commit that is measured; empty where nobody knows it."""
    if given is not None or "HASHPOSE_COMMIT" in os.environ:
        return given if given is not None else os.environ["HASHPOSE_COMMIT"]
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def installed(kit: Path, site: Path) -> str | None:
    """Why what nerfstudio needs cannot be installed; None where it is there, and `site` has it if it was not."""
    if all(importlib.util.find_spec(name) is not None for name in ("nerfstudio", "roma", "typeguard")):
        return None
    wheels = sorted(map(str, kit.glob("*.whl")))
    if not wheels:
        return f"nerfstudio is not installed and {kit} has no wheels; `benchmarks/gpu.py kit` downloads them"
    flags = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *flags, *wheels], capture_output=True, text=True, check=False
    )
    return f"the kit cannot be installed: {done.stdout}{done.stderr}".strip() if done.returncode else None


def limit(index: int, left: float) -> float:
    """Seconds of a part when so many are left for it and those after it."""
    part = PARTS[index]
    free = left - LAST_SECONDS - sum(other.seconds for other in PARTS[index + 1 :] if not other.share)
    return max(min(left - LAST_SECONDS, max(part.seconds, part.share * free)), 0.0)


def measure(args: argparse.Namespace) -> int:
    """Runs the parts; an exit code."""
    begin = time.monotonic()
    out: Path = args.output
    settings = {"size": args.size, "data": str(args.data.resolve()) if args.data else None}
    head = {"size": args.size, "limit": args.seconds, "command": ["benchmarks/gpu.py", *sys.argv[1:2]]}
    record = Record(out / "gpu.json", commit=commit(args.commit), **head)
    with tempfile.TemporaryDirectory() as temporary:
        site, log_file = Path(temporary) / "site", Path(temporary) / "log.txt"
        reason = installed(args.kit, site)
        if reason is not None:
            record.write(stopped=reason)
            print(reason)
            return NO_KIT
        path = [str(REPOSITORY), str(REPOSITORY / "benchmarks"), str(site), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            "HASHPOSE_COMMIT": record.content["commit"],
            "TMPDIR": temporary,
        }
        with log_file.open("a") as log:
            workers = Workers(args.parts, lambda name: Worker(name, settings, log, environment))
            try:
                return _in_turn(workers, record, begin, args, log_file)
            finally:
                for worker in workers.started.values():
                    if worker.process.poll() is None:
                        os.killpg(worker.process.pid, signal.SIGKILL)
                    worker.process.wait()
                _keep_log(log_file, out)


def _in_turn(workers: Workers, record: Record, begin: float, args: argparse.Namespace, log: Path) -> int:
    end = begin + args.seconds
    for index, part in enumerate(PARTS):
        if part.name not in workers.names:
            continue

        def seconds(index: int = index) -> float:
            left = end - time.monotonic()
            return min(limit(index, left) * PATIENCE[args.size], max(left - LAST_SECONDS, 0.0))

        if seconds() < 3 and part.name != "gate":
            record.content["parts"][part.name] = {"left_out": "no time was left"}
            record.write()
            continue
        worker = workers.take(part.name)
        ms = record.content["summary"].get("step: hashpose-blender, ms")
        code = run_part(worker, record, begin, seconds, {"ms": ms})
        _keep_log(log, record.path.parent)
        if part.name == "gate" and code:
            stopped = {
                NO_IMPORTS: "what the benchmarks need cannot be imported, or there is no GPU",
                NOT_USED: "the Triton kernels are not used on this device",
                WRONG: "the Triton kernels do not agree with float64",
            }.get(code, "the gate failed or took too long")
            record.write(stopped=stopped)
            print(f"Stopped: {stopped}. The last lines of the log:\n{_tail(log)}")
            return code if code in (NO_IMPORTS, NOT_USED, WRONG) else NO_GATE
    record.write(seconds=round(time.monotonic() - begin, 1))
    print(json.dumps(record.content["summary"], indent=1))
    return 0


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def _keep_log(log: Path, out: Path) -> None:
    """The log's end, a MiB of it, to where it comes back from."""
    (out / "log.txt").write_bytes(log.read_bytes()[-(1 << 20) :])


# -- before there is a machine -----------------------------------------------------------------------------------------


def kit(args: argparse.Namespace) -> int:
    """Downloads the wheels that a bare GPU machine lacks, about 24 MB, and makes the scene that travels, if any."""
    if args.data:
        shutil.rmtree(scene := REPOSITORY / ".scene" / args.data.name, ignore_errors=True)
        print(f"{scene}: {_scene_that_travels(args.data, scene) / 2**20:.1f} MiB")
    args.kit.mkdir(parents=True, exist_ok=True)
    for old in args.kit.glob("*.whl"):  # two versions of one package would stop the whole installation there
        old.unlink()
    platforms = [flag for name in PLATFORMS for flag in ("--platform", f"manylinux{'_' * ('_' in name)}{name}_x86_64")]
    flags = ["-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    command = [sys.executable, "-m", "pip", "download", *flags, *platforms, "-d", str(args.kit), *WHEELS]
    return subprocess.run(command, check=False).returncode


def _scene_that_travels(data: Path, target: Path) -> int:
    """Copies a scene of NeRF-Synthetic's format with 25 of its test images, spread over all; the bytes that it has."""
    wanted = sorted(data.rglob("*"))
    listed = data / "transforms_test.json"
    test = json.loads(listed.read_text()) if listed.is_file() else {"frames": []}
    count = len(test["frames"])
    kept = (
        [test["frames"][number * (count - 1) // (MOST_TEST - 1)] for number in range(MOST_TEST)]
        if count > MOST_TEST
        else test["frames"]
    )
    names = {Path(frame["file_path"]).name.removesuffix(".png") for frame in kept}
    for path in wanted:
        if path.is_file() and (path.parent.name != "test" or not count or path.stem in names):
            copy = target / path.relative_to(data)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    if count:
        (target / listed.name).write_text(json.dumps({**test, "frames": kept}))
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def travelling(args: argparse.Namespace) -> dict[str, list[Path]]:
    """What goes to the machine beside the scene: what -> files."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    return {
        "tracked and new files": [path for path in files if path.is_file()],
        "wheels": sorted(args.kit.glob("*.whl")),
    }


BARE = """
import importlib.util, platform, shutil
from importlib.metadata import version
names = ("torch", "torchvision", "triton", "numpy")
found = [f"{name} {version(name)}" for name in names if importlib.util.find_spec(name)]
there = [name for name in ("nerfstudio", "roma", "tyro", "hashpose_ns") if importlib.util.find_spec(name)]
print(f"Python {platform.python_version()}, {', '.join(found)};", "git" if shutil.which("git") else "no git;",
      f"it is not bare, {', '.join(there)} would come from there" if there else "no nerfstudio, roma, tyro")
"""
"""What is said of the Python that is rehearsed with."""


def rehearse(args: argparse.Namespace) -> int:
    """Measures at tiny size in a copy of what travels, without network and git and with nothing of this checkout: once
    to the end, then killed at random moments. An exit code."""
    parts = travelling(args)
    if not parts["wheels"]:
        print(f"There is no kit in {args.kit}: a bare machine needs it. `benchmarks/gpu.py kit` downloads it.")
    if not args.data:
        print("There is no scene (--data): the packaged one is trained on, which is smaller.")
    with tempfile.TemporaryDirectory() as temporary:
        copy, out, scene = (Path(temporary) / name for name in ("tree", "out", "tree/.scene"))
        sizes = {what: sum(path.stat().st_size for path in files) for what, files in parts.items()}
        sizes["scene"] = _scene_that_travels(args.data, scene) if args.data else 0
        for what, size in {**sizes, f"in all, of {MOST_MIB}": sum(sizes.values())}.items():
            print(f"{size / 2**20:7.1f} MiB  {what}")
        if sum(sizes.values()) > MOST_MIB << 20:
            print("That is too much.")
            return 1
        for path in parts["tracked and new files"]:
            target = copy / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        for path in parts["wheels"]:
            (copy / ".whl").mkdir(exist_ok=True)
            shutil.copyfile(path, copy / ".whl" / path.name)
        data = ["--data", scene] if args.data else []
        bare = {"PATH": str(Path(temporary) / "no_git"), "HOME": temporary, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        python = [*_without_network(), os.path.abspath(shutil.which(args.python) or args.python)]
        print("There is a network." if len(python) == 1 else "No network.", end=" ", flush=True)
        subprocess.run([*python, "-c", BARE], env=bare, cwd=temporary, check=True)
        command = [*python, "benchmarks/gpu.py", "measure", "--size", "tiny", "--output", str(out), *map(str, data)]
        command += ["--seconds", str(args.seconds)]
        begin = time.monotonic()
        process, moments, rows = subprocess.Popen(command, cwd=copy, env=bare), 0, 0
        while (code := process.poll()) is None:  # what is there at any moment is what a kill leaves
            time.sleep(0.2)
            content = _read(out / "gpu.json") if (out / "gpu.json").exists() else {"rows": []}
            if content is None or len(content["rows"]) < rows:
                process.kill()
                print("gpu.json was not whole for a moment, or lost rows.")
                return 1
            moments, rows = moments + 1, len(content["rows"])
        seconds = time.monotonic() - begin
        print(f"gpu.json was whole at {moments} moments on the way.")
        reason = _fault(out, code, seconds, args.seconds)
        if reason is not None:
            print(f"{reason} The last lines of the log:\n{_tail(out / 'log.txt') if out.is_dir() else ''}")
            return code or 1
        return 0 if all(_killed(command, copy, bare, out, seconds) for _ in range(args.kills)) else 1


def _without_network() -> list[str]:
    """What runs a command without a network; empty where that is not allowed."""
    unshare = shutil.which("unshare")
    command = [unshare, "--net"] if unshare else []
    allowed = unshare and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    return command if allowed else []


def _fault(out: Path, code: int, seconds: float, most: float) -> str | None:
    """What is wrong with a measurement that ran to its end."""
    came = sorted(out.iterdir()) if out.is_dir() else []
    sizes = ", ".join(f"{path.name} ({path.stat().st_size / 2**20:.2f} MiB)" for path in came)
    print(f"Exit code {code} after {seconds:.0f} s; {sizes} come back.")
    if code or seconds > most:
        return f"It failed, or took more than {most:.0f} s."
    if len(came) > MOST_FILES or any(path.stat().st_size > MOST_FILE_MIB << 20 for path in came):
        return f"At most {MOST_FILES} files of {MOST_FILE_MIB} MiB come back."
    content = _read(out / "gpu.json")
    if content is None:
        return "gpu.json is not whole."
    failed = [part.name for part in PARTS if content["parts"].get(part.name, {}).get("exit_code") != 0]
    return f"These parts failed or had no time: {', '.join(failed)}." if failed else None


def _killed(command: list[str], copy: Path, environment: dict[str, str], out: Path, seconds: float) -> bool:
    """Whether a measurement that is killed at some moment leaves all rows that were there before."""
    shutil.rmtree(out)
    moment = random.uniform(0.05, 0.95) * seconds
    process = subprocess.Popen(command, cwd=copy, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        pass
    before = _read(out / "gpu.json")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    after = _read(out / "gpu.json")
    whole = bool(before and after) and after["rows"][: len(before["rows"])] == before["rows"]
    rows = f"{len(after['rows'])} rows of {len(after['parts'])} parts that ended" if after else "nothing"
    print(f"Killed after {moment:.0f} s, it leaves {'valid' if whole else 'no valid'} JSON: {rows}.", flush=True)
    return whole


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        print(error)
        return None


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    names = [part.name for part in PARTS]
    for name, function in (("measure", measure), ("rehearse", rehearse), ("kit", kit)):
        one = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        one.set_defaults(function=function)
        one.add_argument("--kit", type=Path, default=REPOSITORY / ".whl", help="folder of the wheels")
        one.add_argument("--data", type=Path, help="chair of NeRF-Synthetic at 400x400; else the packaged one")
        if name == "kit":
            continue
        one.add_argument("--seconds", type=float, default=540.0, help="time limit of everything")
        if name == "rehearse":
            one.add_argument("--python", default=sys.executable, help="a bare Python with PyTorch, like the machine's")
            one.add_argument("--kills", type=int, default=1, help="how often it is killed")
            continue
        one.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", "out")), help="folder for gpu.json")
        one.add_argument("--commit", help="commit to note; by default HASHPOSE_COMMIT, or what git says; may be empty")
        one.add_argument("--size", choices=("tiny", "paper"), default="paper", help="tiny: to try it without a GPU")
        one.add_argument("--parts", nargs="+", choices=names, default=names, help="some of the parts alone")
    args = parser.parse_args()
    return args.function(args)


if __name__ == "__main__":
    sys.exit(main())
