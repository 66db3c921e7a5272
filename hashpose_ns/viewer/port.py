"""The live viewer's port: opened for this machine by default, and guarded whatever it is opened for.

viser, in the version that nerfstudio pins, answers requests for any file of the machine, talks to pages of any site,
and keeps clients whose messages it cannot read. nerfstudio makes viser's server itself, and all that it can be told is
a host and a port. But asyncio takes an iterable of hosts too, and iterates in the server's own event loop, just before
it would listen. So the host that nerfstudio is given is a `Port`: an iterable that yields no address, and has this one
loop listen on a socket of its own, with a subclass of websockets' connection, which is the library's way to extend it.

Nothing of nerfstudio, viser or websockets is replaced for anybody else. viser never listens unguarded, not for a
moment. Where another version does not work that way, it listens nowhere.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import functools
import http
import ipaddress
import os
import socket
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Tuple

from websockets.frames import CloseCode
from websockets.legacy.server import WebSocketServerProtocol

from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.viewer.access import Access, fits, is_usable, page_file
from hashpose_ns.viewer.boundary import Boundary
from hashpose_ns.viewer.config import ViewerConfig
from nerfstudio.configs import base_config
from nerfstudio.utils.rich_utils import CONSOLE

if TYPE_CHECKING:
    from viser import ClientHandle, ViserServer
    from viser.infra import Message

TRIES = 1000
"""Ports that are tried, one after the other, as viser does."""

MAX_CONNECTIONS = 100
"""At a time. Each holds a file descriptor, of which a process often has 1024, and training needs some."""

OPEN_SECONDS = 10.0
"""Time that a client has for its request."""

CLOSE_SECONDS = 2.0
"""Time that a client has to leave, once it has sent what is no message."""

WAKE_SECONDS = 0.1
"""Until viser has sent what it was given, which it does 60 times a second."""

RENDER_NAME = "Render name"
"""nerfstudio's control whose text becomes the name of a file."""

Response = Tuple[Any, Any, bytes]
"""Status, headers and body."""


class GuardedConnection(WebSocketServerProtocol):
    """A connection to viser's server that serves the viewer's page and its messages, and nothing else.

    Args:
        access: which requests are answered.
    """

    def __init__(self, *args: Any, access: Access, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access = access

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes a new connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.ws_server.websockets) > MAX_CONNECTIONS:
            self.transport.abort()

    async def process_request(self, path: str, request_headers: Any) -> Optional[Response]:
        """Refuses a request, leaves a file of the page to viser, or lets a websocket's handshake continue."""
        try:
            refusal = self.access.refusal(request_headers)
            if refusal is not None:
                return _answer(http.HTTPStatus.FORBIDDEN, refusal)
            if request_headers.get("Upgrade", "").lower() == "websocket":
                return None
            file = page_file(path)
            if file is None:
                return _answer(http.HTTPStatus.NOT_FOUND, "There is no such file.")
            return await super().process_request(file, request_headers)
        except Exception:  # such as a header that comes twice; websockets would log a traceback
            return _answer(http.HTTPStatus.BAD_REQUEST, "This request cannot be read.")

    async def recv(self) -> Any:
        """The next message that viser can take. A client that sends anything else is disconnected, which viser takes
        for a client that left; an exception in its place would keep the client for good."""
        while True:
            raw = await super().recv()
            try:
                if is_usable(raw):
                    return raw
            except Exception:
                self.messages.clear()
                self.close_timeout = CLOSE_SECONDS
                self.fail_connection(CloseCode.INVALID_DATA, "not a message of this viewer")


def _answer(status: http.HTTPStatus, sentence: str) -> Response:
    return status, [("Content-Type", "text/plain; charset=utf-8")], (sentence + "\n").encode()


class Port:
    """A listening socket, in the place of a host name.

    Args:
        config: address to listen on, and the first port to try.

    Raises:
        HashPoseError: the address is not one of this machine, or its port cannot be listened on.
    """

    def __init__(self, config: ViewerConfig) -> None:
        self.shared = config.make_share_url
        """Whether to publish the viewer through the relay."""
        self.is_open = False
        """Whether viser's server listens."""
        self._server: Optional[asyncio.Server] = None
        self._socket = _listen(config)
        listening = weakref.ref(self._socket)  # which a child that outlives this process would keep from others
        os.register_at_fork(after_in_child=lambda: getattr(listening(), "close", int)())
        address, self.number = self._socket.getsockname()[:2]
        self.network = not ipaddress.ip_address(address).is_loopback
        """Whether other machines can connect."""
        if ipaddress.ip_address(address).is_unspecified:
            address = "::1" if ":" in address else "127.0.0.1"
        self._name = f"[{address}]" if ":" in address else address
        self._access = Access(self.network, frozenset(name.lower() for name in config.host_names), self.shared)

    @property
    def url(self) -> str:
        """Address of the viewer's page on this machine."""
        return f"http://{self}:{self.number}"

    def __str__(self) -> str:
        return self._name

    def __reduce__(self):  # in records of the settings
        return str, (self._name,)

    def __iter__(self):
        """Called by asyncio, once the server's event loop is to listen. viser takes the error for a port that is taken,
        and tries the next."""
        loop = asyncio.get_running_loop()
        setattr(loop, "create_server", functools.partial(self._create_server, loop))
        raise OSError(errno.EADDRINUSE, "to be tried once more")

    async def _create_server(self, loop: Any, factory: Any, host: Any, port: Any, **kwargs: Any) -> Any:
        """The loop's `create_server` for viser's next try.

        Args:
            loop: viser's event loop.
            factory: of connections, a partial of websockets'.
            host: this.
            port: ignored.
            kwargs: others of `create_server`.
        """
        del loop.create_server  # the loop's own again
        try:
            assert issubclass(GuardedConnection, factory.func)
            options = {**factory.keywords, "open_timeout": OPEN_SECONDS, "access": self._access}
            guarded = functools.partial(GuardedConnection, *factory.args, **options)
            self._server = await loop.create_server(guarded, sock=self._socket, start_serving=False, **kwargs)
        except Exception as error:  # viser gives up after an OSError, and waits for ever after any other
            raise OSError(one_line(error)) from error
        self.is_open = True
        return self._server

    @property
    def banner(self) -> List[str]:
        """What the console says of the viewer."""
        if not self.is_open:
            return ["The viewer is off: it cannot be secured with this version of viser."]
        return [f"Viewer running locally at: {self.url}"]

    def complete(self, server: "ViserServer") -> None:
        """Mends what viser's server does with messages and with clients that left, lets clients in, who have waited
        until now, and publishes it if asked to.

        Args:
            server: that was given this as its host.
        """
        _handle_safely(server)
        server.on_client_connect(functools.partial(_forget_if_gone, server))
        server._websock_server.on_client_disconnect(lambda connection: _wake_senders(server))
        if self._server is not None:
            asyncio.run_coroutine_threadsafe(self._server.start_serving(), self._server.get_loop())
        if self.shared:  # which viser waits for, and for ever where there is no internet; it prints the address
            threading.Thread(target=server.request_share_url, daemon=True).start()


@dataclass
class OpenedViewerConfig(base_config.ViewerConfig):
    """Settings that nerfstudio's viewer is started with."""

    websocket_host: Any = None
    """A `Port`."""


def opened(config: ViewerConfig) -> OpenedViewerConfig:
    """Opens the viewer's port; settings with which nerfstudio's viewer, and viser, will use it.

    Args:
        config: where to listen.

    Raises:
        HashPoseError: that is not possible.
    """
    port = Port(config)
    if config.websocket_port not in (None, 0, port.number):
        CONSOLE.print(f"Port {config.websocket_port} is taken; the viewer uses {port.number}.")
    if port.network:
        CONSOLE.print(
            f"The viewer is open to the network ({config.websocket_host}:{port.number}), without a password: everyone "
            "there can see the images and poses, pause training, move cameras and write exports.",
            style="bold yellow",
        )
    if port.shared:
        CONSOLE.print(
            "The viewer is published on the internet: anyone with the address can see the images and poses, pause "
            "training, move cameras and write exports.",
            style="bold yellow",
        )
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(base_config.ViewerConfig)}
    # viser counts up after its first try, which `Port` makes fail.
    shared.update(websocket_host=port, websocket_port=port.number - 1, make_share_url=False)
    return OpenedViewerConfig(**shared)


def _listen(config: ViewerConfig) -> socket.socket:
    host = config.websocket_host
    first = config.websocket_port_default if config.websocket_port is None else config.websocket_port
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        for port in range(first, first + TRIES):
            try:
                return socket.create_server((address[0], port, *address[2:]), family=family, backlog=MAX_CONNECTIONS)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
    except (OSError, OverflowError, UnicodeError) as error:
        raise HashPoseError(
            f"The viewer cannot listen on {host}, port {first} (--viewer.websocket-host, --viewer.websocket-port): "
            f"{one_line(error)}."
        ) from error
    raise HashPoseError(f"The viewer found no free port from {first} on; give another --viewer.websocket-port.")


# -- what viser leaves to chance ---------------------------------------------------------------------------------------


def _forget_if_gone(server: "ViserServer", client: "ClientHandle") -> None:
    """Removes a client that left while its first message was being handled; viser would keep it for good.

    Args:
        server: viser's.
        client: that was just added to its clients.
    """
    connections = server._websock_server

    def check() -> None:  # in the loop that ends connections: one that is not there now has ended
        if client.client_id not in connections._client_state_from_id:
            for forget in connections._client_disconnect_cb:
                forget(client._websock_connection)

    connections._broadcast_buffer.event_loop.call_soon_threadsafe(check)


def _wake_senders(server: "ViserServer") -> None:
    """Sends browsers something they know. viser's tasks that send to a client end only when they find it gone, and
    keep what they hold of its connection meanwhile: for good, where no other client has anything sent."""
    server.gui.set_panel_label(None)
    asyncio.get_running_loop().call_later(WAKE_SECONDS, server.flush)  # ends what such a task has left waiting


def _handle_safely(server: "ViserServer") -> None:
    """Has messages about the scene and the controls handled only if they come from a client that is there and hold a
    value that the control can have. What fails nevertheless is one line on the console."""
    boundary = Boundary(lambda sentence: None)
    connections = server._websock_server

    def safely(handlers: List[Callable[[Any, Any], None]], client_id: int, message: "Message") -> None:
        with boundary:
            if client_id in server.get_clients() and _can_be_set(server, message):
                for handle in handlers:
                    handle(client_id, message)

    for kind, handlers in list(connections._incoming_handlers.items()):
        connections.unregister_handler(kind)
        connections.register_handler(kind, functools.partial(safely, handlers))


def _can_be_set(server: "ViserServer", message: Any) -> bool:
    """Whether a control can have the value of a message; True for messages about other things."""
    if not hasattr(message, "updates"):
        return True
    control = server.gui._gui_input_handle_from_id.get(message.id)
    if control is None:
        return False
    value, label = message.updates["value"], control._impl.label
    if label == RENDER_NAME and (not isinstance(value, str) or any(letter in value for letter in "/\\\0")):
        return False
    announced: Any = None
    for sent in list(server._websock_server._broadcast_buffer.message_from_id.values()):
        if getattr(sent, "id", None) == message.id and hasattr(sent, "label"):
            announced = sent
    bounds = getattr(announced, "min", None), getattr(announced, "max", None)
    return fits(value, control.value, getattr(control, "options", None), bounds)
