"""From a run of a suite to the nerfstudio config it trains with, and the record of what was asked."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import math
import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence, Tuple

import tyro

from hashpose_ns import methods
from hashpose_ns.bench.measures import MEASURES, OF_FIELDS
from hashpose_ns.bench.suites import DATAPARSER, SFM_METHODS, Run, Settings, nearest
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.peers.methods import PEERS, PROTOCOLS, Protocol, peer_config
from hashpose_ns.trainer import HashPoseTrainerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.plugins.types import MethodSpecification

RESOLUTION = "pipeline.datamanager.camera_res_scale_factor"


@dataclass
class BenchTrainerConfig(HashPoseTrainerConfig):
    """A training whose folder is named after its preset. `method_name` stays that of a registered method, by which
    ns-eval, ns-viewer and hashpose-export find the datamanager's class."""

    preset: str = ""
    """Name of the folder between the scene's and the seed's."""

    def get_base_dir(self) -> Path:
        """output_dir / scene / preset / seed."""
        self.set_experiment_name()
        return Path(self.output_dir) / str(self.experiment_name) / self.preset / self.timestamp


def base_config(method: str, protocol: Protocol) -> HashPoseTrainerConfig:
    """A new config of the method that a preset is built on.

    Args:
        method: `hashpose`, which is this package's method for the protocol; another of its methods; a peer; or
            structure from motion, which has the protocol's data and no use for the rest.
        protocol: whose settings of data, initial poses and evaluation it has.

    Raises:
        HashPoseError: there is no such method.
    """
    if method in PEERS:
        return peer_config(method, protocol)
    found = [value.config for value in vars(methods).values() if isinstance(value, MethodSpecification)]
    known = {str(config.method_name): config for config in found}
    known |= {name: PROTOCOLS[protocol].config for name in ("hashpose", *SFM_METHODS)}
    if method not in known:
        raise HashPoseError(f"there is no method '{method}' to build on{nearest(method, [*known, *PEERS])}")
    config: HashPoseTrainerConfig = copy.deepcopy(known[method])  # type: ignore[assignment]
    if config.picture_size == "auto":
        config.picture_size = "small"  # a preset's numbers are those of the settings that it names
    return config


def parse(config: HashPoseTrainerConfig, settings: Mapping[str, str]) -> HashPoseTrainerConfig:
    """A config with settings changed: what ns-train makes of them as flags.

    Args:
        config: the method's; it is left as it is.
        settings: dotted path -> value. `pipeline.datamanager.dataparser` is a dataparser's name.

    Raises:
        HashPoseError: there is no such setting, or a value is not of its type; tyro's words in one sentence.
    """
    words: Dict[bool, list] = {False: [], True: []}  # those of the dataparser follow its name
    for key, value in settings.items():
        inner = key.removeprefix(f"{DATAPARSER}.")
        if key != DATAPARSER:
            words[inner != key] += [f"--{inner.replace('_', '-')}", *shlex.split(value)]
    parser = [settings[DATAPARSER]] if DATAPARSER in settings else []
    said = io.StringIO()
    as_ns_train = tyro.conf.SuppressFixed[tyro.conf.FlagConversionOff[type(config)]]  # type: ignore
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(as_ns_train, default=config, args=[*words[False], *parser, *words[True]])  # type: ignore
    except SystemExit:
        raise HashPoseError(_complaint(said.getvalue())) from None


def _complaint(panel: str) -> str:
    """tyro's error message, a panel with a title, as a sentence: what is wrong, and which flag may be meant."""
    lines = [line.strip(" \u2502\u256d\u256e\u2570\u256f\u2500") for line in panel.splitlines()]
    _, *lines = [line for line in lines if line.strip("-")] or [""]
    text = " ".join(lines)
    wrong = re.split(
        r"Perhaps you meant|Similar arguments|Argument helptext|Available subcommands|For full helptext", text
    )
    meant = re.search(r"(?:Perhaps you meant|Similar arguments)\W*?:\s*(--[\w.-]+)", text)
    sentence = wrong[0].strip().rstrip(".") or "the settings cannot be read"
    return sentence[0].lower() + sentence[1:] + (f"; did you mean {meant[1]}?" if meant else ".")


def configured(run: Run) -> HashPoseTrainerConfig:
    """A run's config.

    Raises:
        HashPoseError: a setting is wrong; the message says which layer it comes from.
    """
    try:
        base = base_config(run.preset.base, run.scenario.protocol)
    except HashPoseError as error:
        raise HashPoseError(f"The preset '{run.preset.name}': {error}") from None
    try:
        return parse(base, run.settings)
    except HashPoseError as error:
        said = str(error).replace("-", "_")
        sources = [source for source, layer in run.layers.items() if any(f"__{key}" in said for key in layer)]
        raise HashPoseError(f"{sources[-1] if sources else run.preset.name}: {error}") from None


class Checks:
    """Configs of runs and heights of their images; seeds apart, every run is checked once and every scene read once."""

    def __init__(self) -> None:
        self.configs: Dict[Tuple[str, str], HashPoseTrainerConfig] = {}
        self.heights: Dict[str, int] = {}

    def __call__(self, run: Run) -> Tuple[HashPoseTrainerConfig, int]:
        """A run's config, of any seed, and the height in pixels of its scene's first training image.

        Raises:
            HashPoseError: a setting is wrong, or the scene cannot be read by the dataparser that will read it.
        """
        name = (run.scene, run.preset.name)
        if name not in self.configs:
            self.configs[name] = configured(run)
        config = self.configs[name]
        parser: DataParserConfig = config.pipeline.datamanager.dataparser
        parser.data = Path(str(config.pipeline.datamanager.data))
        key = repr(parser)
        if key not in self.heights:
            try:
                outputs = parser.setup().get_dataparser_outputs(split="train")
            except HashPoseError as error:
                raise HashPoseError(f"The scene '{run.scene}': {error}") from error
            except (OSError, AssertionError, ValueError, KeyError) as error:  # how dataparsers say so
                raise HashPoseError(
                    f"The scene '{run.scene}' in {parser.data} cannot be read: {one_line(error)}."
                ) from error
            self.heights[key] = int(outputs.cameras.height[0])
        return config, self.heights[key]


def resolution_factor(height: int, wanted: int) -> float:
    """Factor on images of a height that makes them as high as wanted, at most 1.

    nerfstudio rounds sizes down twice, in float32 for cameras and in float64 for images. Halves are exact; elsewhere a
    fraction of a pixel more keeps the two from falling on different sides of a whole number.
    """
    if wanted >= height:
        return 1.0
    halvings = math.log2(height / wanted)
    return wanted / height if halvings.is_integer() else (wanted + math.exp(-1)) / height


def record_of(run: Run, checks: Checks, said: Sequence[str] = ()) -> Dict[str, Any]:
    """What run.json says of a run before it begins.

    Args:
        run: the run.
        checks: shared by the runs of a suite.
        said: what the command line said beyond scene, preset, seed and scale.

    Raises:
        HashPoseError: a setting or a measure is wrong, or the scene cannot be read.
    """
    (config, height), settings = checks(run), run.settings
    sfm = run.preset.base in SFM_METHODS
    train = run.suite.train and not sfm
    measures = {**run.suite.measures, **run.preset.measures}
    for name, options in measures.items():
        if name not in MEASURES:
            raise HashPoseError(f"There is no measure '{name}'; choose among {', '.join(MEASURES)}.")
        known = inspect.signature(MEASURES[name]).parameters
        for option in options:
            if option not in known:
                raise HashPoseError(f"The measure '{name}' has no option '{option}'{nearest(option, known)}")
    if sfm:
        measures = {name: options for name, options in measures.items() if name not in OF_FIELDS}
    full, fraction = run.scenario.image_height, run.scale.resolution
    if full is not None and fraction is not None and RESOLUTION not in settings:
        settings[RESOLUTION] = repr(resolution_factor(height, round(full * fraction)))
    command = (
        *("hashpose-bench", "run", *said, "--scale", run.scale.name, "--scenes", run.scene),
        *("--presets", run.preset.name, "--seeds", f"{run.seed}-{run.seed}"),
    )
    return {
        "suite": run.suite.name,
        "scale": run.scale.name,
        "scene": run.scene,
        "preset": run.preset.name,
        "seed": run.seed,
        "title": run.preset.title or run.preset.name,
        "family": run.preset.family,
        "scenario": run.scenario.name,
        "protocol": run.scenario.protocol,
        "base_method": run.preset.base if sfm else str(config.method_name),
        "steps": config.max_num_iterations if train else 0,
        "train": train,
        "evaluate": run.suite.evaluate,
        "measures": measures,
        "settings": settings,
        "command": shlex.join(command),
    }


def trainer_config(record: Mapping[str, Any], folder: Path) -> BenchTrainerConfig:
    """The config of a recorded run.

    Args:
        record: content of run.json.
        folder: the run's folder.
    """
    settings: Settings = record["settings"]
    base = parse(base_config(record["base_method"], record["protocol"]), settings)
    config = BenchTrainerConfig(
        **{entry.name: getattr(base, entry.name) for entry in fields(base)}, preset=folder.parent.name
    )
    folder = folder.absolute()
    config.method_name = PROTOCOLS[record["protocol"]].config.method_name
    config.output_dir, config.experiment_name = folder.parents[2], folder.parents[1].name
    config.timestamp = folder.name
    return config
