"""Settings of the live viewer: nerfstudio's, closed to other machines and other sites' pages by default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Tuple

from nerfstudio.configs import base_config

THIS_MACHINE = "127.0.0.1"


@dataclass
class ViewerConfig(base_config.ViewerConfig):
    """Settings of the live viewer. It has no password: anyone who reaches its port has full control."""

    websocket_host: str = THIS_MACHINE
    """Address to listen on; the default admits this machine alone.
    0.0.0.0 opens it to the whole network: everyone there sees images and poses, pauses training and writes exports.
    Better: ssh -L 7007:localhost:7007 HOST."""
    host_names: Tuple[str, ...] = ()
    """Further names of this machine for browsers, such as a proxy's.
    localhost, IP addresses and its own name need no entry."""
    make_share_url: bool = False
    """Publish the viewer on the internet, through the relay share.viser.studio.
    Anyone with the address gets in."""

    @classmethod
    def of(cls, config: base_config.ViewerConfig) -> "ViewerConfig":
        """nerfstudio's settings, with this machine's address in place of nerfstudio's default.

        Args:
            config: nerfstudio's, in which the default host and a chosen 0.0.0.0 look alike.
        """
        shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(base_config.ViewerConfig)}
        if config.websocket_host == base_config.ViewerConfig.websocket_host:
            shared["websocket_host"] = THIS_MACHINE
        return cls(**shared)
