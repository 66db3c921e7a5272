"""From a run of a suite to the nerfstudio config it trains with, and the record of what was asked."""

from __future__ import annotations

import copy
import math
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

from hashpose_ns import methods
from hashpose_ns.bench.settings import apply_setting, nearest, plain
from hashpose_ns.bench.suites import Run
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.peers.methods import PEERS, PROTOCOLS, Protocol, peer_config
from hashpose_ns.trainer import HashPoseTrainerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.plugins.types import MethodSpecification

DATAPARSER = "pipeline.datamanager.dataparser"
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
        method: `hashpose`, which is this package's method for the protocol; another of its methods; or a peer.
        protocol: whose settings of data, initial poses and evaluation it has.

    Raises:
        HashPoseError: there is no such method.
    """
    if method in PEERS:
        return peer_config(method, protocol)
    found = [value.config for value in vars(methods).values() if isinstance(value, MethodSpecification)]
    known = {str(config.method_name): config for config in found} | {"hashpose": PROTOCOLS[protocol].config}
    if method not in known:
        raise HashPoseError(f"there is no method '{method}' to build on{nearest(method, [*known, *PEERS])}")
    return copy.deepcopy(known[method])  # type: ignore


def apply(config: HashPoseTrainerConfig, key: str, value: Any) -> Any:
    """Sets one setting; a dataparser by its name. Returns the value as it was set.

    Raises:
        HashPoseError: there is no such setting, or the value is not of its type.
    """
    if key != DATAPARSER:
        return apply_setting(config, key, value)
    from nerfstudio.configs.dataparser_configs import all_dataparsers

    if value not in all_dataparsers:
        raise HashPoseError(f"there is no dataparser '{value}'{nearest(str(value), all_dataparsers)}")
    config.pipeline.datamanager.dataparser = copy.deepcopy(all_dataparsers[value])
    return value


def configured(run: Run) -> Tuple[HashPoseTrainerConfig, Dict[str, Any]]:
    """A run's config, and all settings in which it differs from its base method.

    Raises:
        HashPoseError: a setting is wrong; the message says where it comes from.
    """
    settings: Dict[str, Any] = {}
    source = f"The preset '{run.preset.name}'"
    try:
        config = base_config(run.preset.base, run.scenario.protocol)
        for source, layer in run.layers:
            for key, value in layer.items():
                settings[key] = plain(apply(config, key, value))
    except HashPoseError as error:
        raise HashPoseError(f"{source}: {error}") from None
    return config, settings


class ImageHeights:
    """Heights of scenes' images; every scene is read once."""

    def __init__(self) -> None:
        self.known: Dict[str, int] = {}

    def __call__(self, scene: str, config: HashPoseTrainerConfig) -> int:
        """Height in pixels of a scene's first training image, by the dataparser that will read it.

        Raises:
            HashPoseError: the scene cannot be read.
        """
        parser: DataParserConfig = config.pipeline.datamanager.dataparser
        parser.data = Path(str(config.pipeline.datamanager.data))
        key = repr(parser)
        if key not in self.known:
            try:
                outputs = parser.setup().get_dataparser_outputs(split="train")
            except HashPoseError as error:
                raise HashPoseError(f"The scene '{scene}': {error}") from error
            except (OSError, AssertionError, ValueError, KeyError) as error:  # how dataparsers say so
                raise HashPoseError(
                    f"The scene '{scene}' in {parser.data} cannot be read: {one_line(error)}."
                ) from error
            self.known[key] = int(outputs.cameras.height[0])
        return self.known[key]


def resolution_factor(height: int, wanted: int) -> float:
    """Factor on images of a height that makes them as high as wanted, at most 1.

    nerfstudio rounds sizes down twice, in float32 for cameras and in float64 for images. Halves are exact; elsewhere a
    fraction of a pixel more keeps the two from falling on different sides of a whole number.
    """
    if wanted >= height:
        return 1.0
    halvings = math.log2(height / wanted)
    return wanted / height if halvings.is_integer() else (wanted + math.exp(-1)) / height


def record_of(run: Run, heights: ImageHeights, said: Sequence[str] = ()) -> Dict[str, Any]:
    """What run.json says of a run before it begins.

    Args:
        run: the run.
        heights: of images of scenes.
        said: what the command line said beyond scene, preset, seed and scale.

    Raises:
        HashPoseError: a setting is wrong, or the scene cannot be read.
    """
    config, settings = configured(run)
    height = heights(run.scene, config)
    if run.scenario.image_height is not None and RESOLUTION not in settings:
        wanted = round(run.scenario.image_height * run.scale.resolution)
        settings[RESOLUTION] = resolution_factor(height, wanted)
    command = (
        *("hashpose-bench", "run", *said, "--scale", run.scale.name, "--scenes", run.scene),
        *("--presets", run.preset.name, "--seeds", f"{run.seed}-{run.seed}"),
    )
    return {
        "suite": run.suite,
        "scale": run.scale.name,
        "scene": run.scene,
        "preset": run.preset.name,
        "seed": run.seed,
        "title": run.preset.title or run.preset.name,
        "family": run.preset.family,
        "scenario": run.scenario.name,
        "protocol": run.scenario.protocol,
        "base_method": str(config.method_name),
        "steps": config.max_num_iterations,
        "settings": settings,
        "command": shlex.join(command),
    }


def trainer_config(record: Dict[str, Any], folder: Path) -> BenchTrainerConfig:
    """The config of a recorded run.

    Args:
        record: content of run.json.
        folder: the run's folder.
    """
    base = base_config(record["base_method"], record["protocol"])
    for key, value in record["settings"].items():
        apply(base, key, value)
    config = BenchTrainerConfig(
        **{entry.name: getattr(base, entry.name) for entry in fields(base)}, preset=folder.parent.name
    )
    folder = folder.absolute()
    config.method_name = PROTOCOLS[record["protocol"]].config.method_name
    config.output_dir, config.experiment_name = folder.parents[2], folder.parents[1].name
    config.timestamp = folder.name
    return config
