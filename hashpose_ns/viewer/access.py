"""Who may talk to the live viewer, which files it hands out, and which messages it takes."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, FrozenSet, Iterator, Mapping, Optional, Tuple, Type, Union
from urllib.parse import unquote

import msgspec
import viser
from viser import _messages as messages

if TYPE_CHECKING:
    from viser.infra import Message

SHARE_DOMAIN = "share.viser.studio"
"""Of the relay that viser publishes a viewer through."""

LARGEST_NUMBER = 1e9
"""In a message. Larger ones overflow in the renderer's single precision."""

WIDEST_ASPECT = 100.0
"""Of a browser's window, as width over height or height over width. Pictures are made as wide as it asks."""

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::(\d{1,5}))?", re.ASCII)
_DEFAULT_PORT = {"http": 80, "https": 443}

INCOMING: Dict[str, Type["Message"]] = {
    kind.__name__: kind
    for kind in (
        messages.ViewerCameraMessage,
        messages.GuiUpdateMessage,
        messages.SceneNodeClickMessage,
        messages.ScenePointerMessage,
        messages.TransformControlsUpdateMessage,
    )
}
"""What nerfstudio's page sends. viser also takes uploads, which nothing here asks for and which it keeps in memory, and
requests to publish the viewer on the internet, which is for the person who started it."""


# -- requests ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Access:
    """Which requests are answered.

    A page of another site is refused by its Origin. A site whose name is made to resolve to this machine (DNS
    rebinding) has the right Origin, but gives itself away by its Host: a name that is not ours. An IP address cannot be
    rebound, and programs that are no browsers send no Origin.
    """

    network: bool
    """Whether other machines can connect, which call this one by its name."""
    names: FrozenSet[str] = frozenset()
    """Further names of this machine, lower case."""
    shared: bool = False
    """Whether the viewer is published through the relay."""

    def refusal(self, headers: Mapping[str, str]) -> Optional[str]:
        """Why a request is refused; None where it is not.

        Raises:
            LookupError: a header that may come once is repeated.
        """
        host = _authority(headers.get("Host", ""))
        if host is None or not self._is_ours(host[0]):
            return (
                "The viewer is not reached by this name; use its IP address, or start it with "
                "--viewer.host-names NAME if the name is yours."
            )
        origin = headers.get("Origin")
        if origin is not None and not self._is_same_site(origin, host):
            return "Pages of other sites have no access to the viewer."
        return None

    def _is_ours(self, name: str) -> bool:
        if _is_local(name) or _address(name) is not None or name in self.names:
            return True
        if self.network and name.partition(".")[0] == socket.gethostname().partition(".")[0].lower():
            return True
        return self._is_relay(name)

    def _is_relay(self, name: str) -> bool:
        return self.shared and (name == SHARE_DOMAIN or name.endswith("." + SHARE_DOMAIN))

    def _is_same_site(self, origin: str, host: Tuple[str, Optional[int]]) -> bool:
        scheme, separator, rest = origin.partition("://")
        page = _authority(rest)
        if not separator or scheme not in _DEFAULT_PORT or page is None:
            return False
        if page[0] in self.names or self._is_relay(page[0]):  # a proxy may have put its own Host in
            return True
        same_port = (page[1] or _DEFAULT_PORT[scheme]) == (host[1] or _DEFAULT_PORT[scheme])
        return same_port and (page[0] == host[0] or (_is_local(page[0]) and _is_local(host[0])))


def _authority(text: str) -> Optional[Tuple[str, Optional[int]]]:
    """Name (lower case, brackets of IPv6 removed) and port of `name:port`."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    name = found[1].lower().strip("[]")
    return name[:-1] if name.endswith(".") else name, None if found[2] is None else int(found[2])


def _address(name: str) -> Union[ipaddress.IPv4Address, ipaddress.IPv6Address, None]:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_local(name: str) -> bool:
    address = _address(name)
    return address.is_loopback if address is not None else name == "localhost" or name.endswith(".localhost")


# -- files -------------------------------------------------------------------------------------------------------------


def files_below(root: Path) -> FrozenSet[str]:
    """Request paths of the files of a page, without links that lead out of it.

    Args:
        root: folder with an index.html.
    """
    inside = (root / "index.html").resolve().parent  # some installers link every file to a cache
    files = (path for path in root.rglob("*") if path.is_file() and path.resolve().is_relative_to(inside))
    return frozenset("/" + path.relative_to(root).as_posix() for path in files)


@lru_cache
def page_files() -> FrozenSet[str]:
    """Request paths of the files that viser's page is made of."""
    return files_below(Path(viser.__file__).parent / "client" / "build")


def page_file(path: str) -> Optional[str]:
    """The file of viser's page that a request is for; None where there is none.

    The path is looked up and never joined to a folder, so that no spelling of it leads out.
    """
    name = unquote(path.partition("?")[0])
    name = "/index.html" if name == "/" else name
    return name if name in page_files() else None


# -- messages ----------------------------------------------------------------------------------------------------------


def is_usable(raw: Any) -> bool:
    """Whether a message from a browser can be handed on. viser itself checks neither types nor numbers.

    Raises:
        Exception: of any kind, where it is no message of viser's.
    """
    values = msgspec.msgpack.decode(raw)
    kind = values.pop("type")
    expected = INCOMING.get(kind)
    if expected is None:
        if kind not in {known.__name__ for known in messages.Message.get_subclasses()}:
            raise ValueError("unknown message")
        return False
    msgspec.convert(values, expected)
    if set(values) != {field.name for field in dataclasses.fields(expected)}:  # type: ignore[arg-type]
        raise ValueError("unknown field")
    if not all(abs(number) <= LARGEST_NUMBER for number in _numbers(values)):
        return False
    if expected is messages.ViewerCameraMessage:
        aspect_fits = 1 / WIDEST_ASPECT <= values["aspect"] <= WIDEST_ASPECT
        return aspect_fits and 0 < values["fov"] < math.pi and any(values["wxyz"])
    return expected is not messages.GuiUpdateMessage or set(values["updates"]) == {"value"}


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))


def fits(value: Any, current: Any, options: Optional[Tuple[str, ...]], bounds: Tuple[Any, Any]) -> bool:
    """Whether a value from a browser can be that of a control.

    Args:
        value: to be tested.
        current: value of the control.
        options: of a list to choose from.
        bounds: smallest and largest number, or None.
    """
    if isinstance(current, bool) or isinstance(value, bool):
        return isinstance(current, bool) and isinstance(value, bool)
    if isinstance(current, (int, float)):
        low, high = bounds
        return isinstance(value, (int, float)) and not (
            low is not None and value < low or high is not None and value > high
        )
    if isinstance(current, str):
        return isinstance(value, str) and (options is None or value in options)
    if isinstance(current, (list, tuple)):
        is_like = isinstance(value, (list, tuple)) and len(value) == len(current)
        return is_like and all(isinstance(each, (int, float)) for each in value)
    return False
