"""What the live viewer's port gives to strangers: requests over real sockets to viser's own server."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import socket
from pathlib import Path
from typing import Iterator, Optional

import msgspec
import pytest
import viser
from client import CAMERA, eventually
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from hashpose_ns import methods
from hashpose_ns.errors import HashPoseError
from hashpose_ns.peers import methods as peers
from hashpose_ns.viewer import port as port_module
from hashpose_ns.viewer.access import Access, files_below
from hashpose_ns.viewer.config import ViewerConfig
from hashpose_ns.viewer.port import GuardedConnection, Port, opened
from nerfstudio.configs import base_config

SECRET = b"not for strangers"
PAGE = Path(viser.__file__).parent / "client" / "build"


class Served:
    """viser's server, made as nerfstudio makes it from the settings that it is given."""

    def __init__(self) -> None:
        settings = opened(ViewerConfig(websocket_port=0))
        self.port: Port = settings.websocket_host
        self.server = viser.ViserServer(host=settings.websocket_host, port=settings.websocket_port, verbose=False)
        self.port.complete(self.server)
        self.slider = self.server.gui.add_slider("Max res", 64, 2048, 100, 512)
        self.choice = self.server.gui.add_dropdown("Output", ("rgb", "depth"), "rgb")
        self.text = self.server.gui.add_text("Render name", "today")

    @property
    def number(self) -> int:
        """Of the port."""
        return self.server.get_port()

    def ask(self, request: bytes) -> bytes:
        """Sends bytes, and returns all that is answered."""
        with socket.create_connection(("127.0.0.1", self.number), timeout=30) as connection:
            connection.sendall(request)
            answer = b""
            while received := connection.recv(65536):
                answer += received
        return answer

    def get(self, path: str, *headers: str) -> bytes:
        """The answer to a browser's request."""
        lines = [f"GET {path} HTTP/1.1", *(headers or (f"Host: 127.0.0.1:{self.number}",))]
        return self.ask("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape"))

    def connect(self, origin: Optional[str] = None) -> ClientConnection:
        """A client that viser counts."""
        client = connect(f"ws://127.0.0.1:{self.number}", max_size=None, open_timeout=30, origin=origin)
        client.send(msgspec.msgpack.encode(CAMERA))
        eventually(lambda: len(self.server.get_clients()) > 0)
        return client

    def is_left(self) -> bool:
        """Whether viser knows of no client."""
        return not self.server.get_clients() and not self.server._websock_server._client_state_from_id

    def is_forgotten(self) -> bool:
        """Whether nothing is kept of any connection that there was, tasks that send to it included."""
        gc.collect()
        loop = self.server._websock_server._broadcast_buffer.event_loop
        kept = any(type(each) is GuardedConnection for each in gc.get_objects())
        return self.is_left() and not kept and len(asyncio.all_tasks(loop)) < 3


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.server.stop()


@pytest.fixture
def quiet(served: Served, capfd: pytest.CaptureFixture) -> Iterator[None]:
    """Nobody is a client afterwards, and nothing was printed."""
    yield
    eventually(served.is_left)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


# -- files -------------------------------------------------------------------------------------------------------------

DOTS = ("..", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "..;", "%c0%ae%c0%ae", "\u2025")
SLASHES = ("/", "%2f", "//", "\\", "%5c", "/./")


@pytest.mark.parametrize("dots", DOTS)
@pytest.mark.parametrize("slash", SLASHES)
def test_no_spelling_of_a_path_leads_out_of_the_page(served, quiet, tmp_path, dots, slash):
    (tmp_path / "secret.txt").write_bytes(SECRET)
    way_out = os.path.relpath(tmp_path / "secret.txt", PAGE)
    for start in ("/", "/assets/../"):
        answer = served.get(start + way_out.replace("..", dots).replace("/", slash))
        assert answer.startswith(b"HTTP/1.1 404 ") and SECRET not in answer


@pytest.mark.parametrize(
    "path",
    [
        "//{secret}",
        "///{secret}",
        "{secret}",
        "/{secret}",
        "file://{secret}",
        "http://127.0.0.1/{secret}",
        "/%2f{secret}",
        "/index.html/../{secret}",
        "/index.html%00",
        "/index.html%00/{secret}",
        "/{secret}%00.html",
        "/\udcff",
        "/assets",
        "/assets/",
        "/.",
        "/..",
        "*",
        "/" + "a" * 5000,
        "/" + "../" * 1000 + "{secret}",
        "/~root/.bashrc",
        "/index.html;{secret}",
        "/?/../{secret}",
        "/C:\\{secret}",
    ],
)
def test_nothing_else_is_a_file_of_the_page(served, quiet, tmp_path, path):
    (tmp_path / "secret.txt").write_bytes(SECRET)
    answer = served.get(path.replace("{secret}", str(tmp_path / "secret.txt").lstrip("/")))
    assert SECRET not in answer
    assert (b" 200 " in answer.split(b"\r\n")[0]) == path.startswith("/?")  # which is the page itself


@pytest.mark.parametrize("name", ["/", "/index.html", "/index.html?websocket=x", "/Inter-VariableFont_slnt%2Cwght.ttf"])
def test_files_of_the_page_are_served(served, quiet, name):
    answer = served.get(name)
    assert answer.startswith(b"HTTP/1.1 200 ")
    file = "Inter-VariableFont_slnt,wght.ttf" if "Inter" in name else "index.html"
    assert answer.endswith((PAGE / file).read_bytes())


def test_links_out_of_the_page_are_no_files_of_it(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_bytes(SECRET)
    page = tmp_path / "page"
    (page / "assets").mkdir(parents=True)
    for file in ("index.html", "assets/script.js"):
        (page / file).write_text("")
    (page / "file").symlink_to(tmp_path / "outside" / "secret.txt")
    (page / "folder").symlink_to(tmp_path / "outside")
    (page / "broken").symlink_to(tmp_path / "nowhere")
    assert files_below(page) == {"/index.html", "/assets/script.js"}
    links = tmp_path / "links"  # as some installers do it
    links.mkdir()
    (links / "index.html").symlink_to(page / "index.html")
    assert files_below(links) == {"/index.html"}


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nOrigin: http://localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\nAccept-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        b"GET /" + b"a" * 100_000,
    ],
)
def test_what_is_no_request_is_refused(served, quiet, request_):
    with socket.create_connection(("127.0.0.1", served.number), timeout=30) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 426", b"")


# -- other sites -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://evil.example:{port}",
        "http://127.0.0.1.evil.example:{port}",
        "http://localhost.evil.example:{port}",
        "http://localhost:{other}",
        "http://127.0.0.1:{other}",
        "http://127.0.0.1",
        "http://localhost:{port}@evil.example",
        "http://evil.example/http://localhost:{port}",
        "http://[::2]:{port}",
        "http://127.0.0.1:{port} http://evil.example",
        "https://share.viser.studio",
        "file://",
        "null",
        "",
    ],
)
def test_a_page_of_another_site_is_refused(served, quiet, origin):
    origin = origin.format(port=served.number, other=served.number + 1)
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{served.number}", origin=origin)
    host = f"Host: 127.0.0.1:{served.number}"
    assert served.get("/", host, f"Origin: {origin}").startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("origin", [None, "http://127.0.0.1:{port}", "http://localhost:{port}", "http://[::1]:{port}"])
def test_the_page_itself_and_programs_are_let_in(served, quiet, origin):
    client = served.connect(origin and origin.format(port=served.number))
    assert msgspec.msgpack.decode(client.recv(timeout=30))
    client.close()


HERE = Access(network=False)
NETWORK = Access(network=True)
NAMED = Access(network=False, names=frozenset({"lab.example"}))
SHARED = Access(network=False, shared=True)
OWN_NAME = socket.gethostname().partition(".")[0].lower()


@pytest.mark.parametrize(
    "access, host, origin, admitted",
    [
        (HERE, "localhost:7007", "http://localhost:7007", True),
        (HERE, "LOCALHOST.:7007", "http://localhost:7007", True),
        (HERE, "localhost:8080", "http://localhost:8080", True),  # ssh -L 8080:localhost:7007
        (HERE, "viewer.localhost", None, True),
        (HERE, "[::1]:7007", "http://[::1]:7007", True),
        (HERE, "127.0.0.2", "http://127.0.0.2:443", False),
        (HERE, "evil.example:7007", "http://evil.example:7007", False),  # a name that leads to 127.0.0.1
        (HERE, "evil.example:7007", None, False),
        (HERE, "localhost.evil.example", None, False),
        (HERE, "127.0.0.1.evil.example", None, False),
        (HERE, "", None, False),
        (HERE, "localhost:7007:7007", None, False),
        (HERE, "evil.example@localhost", None, False),
        (HERE, f"{OWN_NAME}.evil.example", None, False),
        (NETWORK, f"{OWN_NAME}.lab.example:7007", f"http://{OWN_NAME}.lab.example:7007", True),
        (NETWORK, "192.0.2.7:7007", "http://192.0.2.7:7007", True),
        (NETWORK, "192.0.2.7:7007", "http://192.0.2.8:7007", False),
        (NETWORK, "evil.example:7007", "http://evil.example:7007", False),
        (NAMED, "lab.example", "https://lab.example", True),
        (NAMED, "127.0.0.1:7007", "https://lab.example", True),  # a proxy that passes on a Host of its own
        (NAMED, "lab.example:7007", "http://lab.example:7007", True),
        (NAMED, "127.0.0.1:7007", "https://lab.example:9000", False),  # another server on that machine
        (NAMED, "evil.example", "https://evil.example", False),
        (SHARED, "some-name.share.viser.studio", "https://some-name.share.viser.studio", True),
        (SHARED, "127.0.0.1:7007", "https://some-name.share.viser.studio", True),
        (SHARED, "evilshare.viser.studio", None, False),
        (HERE, "some-name.share.viser.studio", None, False),
    ],
)
def test_names_of_this_machine_and_no_others(access, host, origin, admitted):
    headers = {"Host": host} if origin is None else {"Host": host, "Origin": origin}
    assert (access.refusal(headers) is None) == admitted


# -- messages ----------------------------------------------------------------------------------------------------------


def deeply_nested() -> bytes:
    return b"\x91" * 100_000 + b"\xc0"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\xfe\x00",
        os.urandom(4096),
        "text",
        msgspec.msgpack.encode("text"),
        msgspec.msgpack.encode([CAMERA]),
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode({"type": 3}),
        msgspec.msgpack.encode({"type": ["ViewerCameraMessage"]}),
        msgspec.msgpack.encode({"type": "NoSuchMessage"}),
        msgspec.msgpack.encode({"type": "ViewerCameraMessage"}),
        msgspec.msgpack.encode({**CAMERA, "wxyz": [1.0, 0.0]}),
        msgspec.msgpack.encode({**CAMERA, "position": ["a", "b", "c"]}),
        msgspec.msgpack.encode({**CAMERA, "fov": None}),
        msgspec.msgpack.encode({**CAMERA, "excluded_self_client": 1}),
        msgspec.msgpack.encode({"type": "GuiUpdateMessage", "id": "x", "updates": [1]}),
        deeply_nested(),
        b"\x00" * (2 << 20),
    ],
    ids=range(18),
)
def test_a_client_that_sends_no_message_is_dropped_and_forgotten(served, quiet, message):
    client = served.connect()
    with pytest.raises(ConnectionClosed):
        client.send(message)
        while True:
            client.recv(timeout=30)
    client.close()


@pytest.mark.parametrize(
    "message",
    [
        {**CAMERA, "position": [float("nan"), 0.0, 0.0]},
        {**CAMERA, "position": [1e300, 0.0, 0.0]},
        {**CAMERA, "wxyz": [0.0, 0.0, 0.0, 0.0]},
        {**CAMERA, "aspect": 1e7},
        {**CAMERA, "aspect": float("nan")},
        {**CAMERA, "fov": 0.0},
        {"type": "ShareUrlRequest"},
        {"type": "ResetSceneMessage"},
        {"type": "GuiUpdateMessage", "id": "no such control", "updates": {"value": 1}},
        {"type": "GuiUpdateMessage", "id": "{slider}", "updates": {"update_cb": []}},
        {"type": "GuiUpdateMessage", "id": "{slider}", "updates": {"value": 1e6}},
        {"type": "GuiUpdateMessage", "id": "{slider}", "updates": {"value": "many"}},
        {"type": "GuiUpdateMessage", "id": "{slider}", "updates": {"value": None}},
        {"type": "GuiUpdateMessage", "id": "{choice}", "updates": {"value": "../../x"}},
        {"type": "GuiUpdateMessage", "id": "{text}", "updates": {"value": "../../../x"}},
        {"type": "GuiUpdateMessage", "id": "{text}", "updates": {"value": ["x"]}},
        {
            "type": "FileTransferStart",
            "source_component_id": "{slider}",
            "transfer_uuid": "u",
            "filename": "f",
            "mime_type": "m",
            "part_count": 9,
            "size_bytes": 1 << 40,
        },
    ],
)
def test_a_message_that_makes_no_sense_changes_nothing(served, quiet, message):
    controls = {"{slider}": served.slider, "{choice}": served.choice, "{text}": served.text}
    message = {key: controls[value]._impl.id if str(value) in controls else value for key, value in message.items()}
    client = served.connect()
    (handle,) = served.server.get_clients().values()
    camera, values = handle.camera.position, [control.value for control in controls.values()]
    client.send(msgspec.msgpack.encode(message))
    # handled in order, so the next one shows that this one is through
    client.send(msgspec.msgpack.encode({**CAMERA, "position": [7.0, 7.0, 7.0]}))
    eventually(lambda: handle.camera.position[0] == 7.0)
    assert camera[0] == 5.0 and [control.value for control in controls.values()] == values
    assert not served.server.gui._current_file_upload_states and served.server._share_tunnel is None
    client.close()


def test_controls_take_what_they_can_be(served, quiet):
    client = served.connect()
    for control, value in ((served.slider, 128), (served.choice, "depth"), (served.text, "tomorrow")):
        before = control.value
        for value_ in (value, before):
            update = {"type": "GuiUpdateMessage", "id": control._impl.id, "updates": {"value": value_}}
            client.send(msgspec.msgpack.encode(update))
            eventually(lambda control=control, value_=value_: control.value == value_)
    client.close()


# -- storms ------------------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_clients_that_vanish(served, quiet):
    """Some while their first message is being handled, some in the middle of one, some without a word."""
    for last in (b"", b"\x82\x7e\x10\x00half", b"\x82\x82\x00\x00\x00\x00no", b"\xff\xff"):
        for _ in range(3):
            client = connect(f"ws://127.0.0.1:{served.number}", max_size=None, open_timeout=30)
            client.send(msgspec.msgpack.encode(CAMERA))
            client.socket.sendall(last)
            client.socket.shutdown(socket.SHUT_RDWR)
            client.close()
    eventually(served.is_forgotten)


def ending(connection: socket.socket) -> bytes:
    """What a connection ends with."""
    with connection:
        try:
            return connection.recv(100)
        except ConnectionResetError:
            return b""


def test_connections_that_say_nothing_neither_stay_nor_are_too_many(monkeypatch, capfd):
    monkeypatch.setattr(port_module, "MAX_CONNECTIONS", 5)
    monkeypatch.setattr(port_module, "OPEN_SECONDS", 0.5)
    other = Served()
    silent = [socket.create_connection(("127.0.0.1", other.number), timeout=30) for _ in range(20)]
    for connection in silent[:3]:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: loc")
    assert [ending(connection) for connection in silent] == 20 * [b""]
    assert other.get("/").startswith(b"HTTP/1.1 200 ")
    eventually(other.is_forgotten)
    assert capfd.readouterr().err == ""
    other.server.stop()


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hashpose", "blender", "llff", "small", "object_", *peers.PEERS])
def test_every_method_listens_on_this_machine_alone(name):
    config = peers.peer_config(name) if name in peers.PEERS else getattr(methods, name).config
    assert type(config.viewer) is ViewerConfig and config.viewer.websocket_host == "127.0.0.1"
    assert not config.viewer.make_share_url


def test_a_port_that_is_taken_is_not_the_address_that_is_told(capfd):
    first = Served()
    settings = opened(ViewerConfig(websocket_port=first.number))
    second = settings.websocket_host
    server = viser.ViserServer(host=second, port=settings.websocket_port)
    printed = capfd.readouterr().out
    assert f"Port {first.number} is taken; the viewer uses {second.number}." in printed
    assert f"http://127.0.0.1:{second.number} " in printed  # in viser's own box
    assert server.get_port() == second.number != first.number
    assert second.banner == [f"Viewer running locally at: http://127.0.0.1:{second.number}"]
    server.stop(), first.server.stop()


def test_an_open_port_says_so(capfd):
    port = opened(ViewerConfig(websocket_host="0.0.0.0", websocket_port=0)).websocket_host
    assert port.network and port.url == f"http://127.0.0.1:{port.number}"
    assert "open to the network" in capfd.readouterr().out


def test_a_server_that_cannot_be_guarded_listens_nowhere(monkeypatch):
    class Unlike:
        """No websockets' connection."""

    settings = opened(ViewerConfig(websocket_port=0))
    port = settings.websocket_host
    monkeypatch.setattr(port_module, "GuardedConnection", Unlike)
    viser.ViserServer(host=port, port=settings.websocket_port, verbose=False)
    assert not port.is_open and "is off" in port.banner[0]


@pytest.mark.parametrize("host, number", [("192.0.2.1", 0), ("127.0.0.1", 70_000), ("127.0.0.1", -1), ("1.2.3.4.5", 0)])
def test_an_address_that_cannot_be_listened_on_is_a_sentence(host, number):
    with pytest.raises(HashPoseError, match=f"cannot listen on {host}"):
        opened(ViewerConfig(websocket_host=host, websocket_port=number))


@pytest.mark.parametrize("chosen, network", [((), False), (("--viewer.websocket-host", "0.0.0.0"), True)])
def test_ns_viewer_opens_a_run_as_training_did(monkeypatch, chosen, network):
    """It puts settings of nerfstudio's into the run's configuration, and starts the viewer with what is there then."""
    config = copy.deepcopy(methods.small.config)
    monkeypatch.setattr("sys.argv", ["ns-viewer", "--load-config", "config.yml", *chosen])
    config.viewer = base_config.ViewerConfig(websocket_port_default=0)
    assert isinstance(config.viewer.websocket_host, Port) and config.viewer.websocket_host.network == network


def test_settings_of_a_run_hold_no_socket():
    settings = opened(ViewerConfig(websocket_port=0))
    assert copy.deepcopy(settings).websocket_host == "127.0.0.1"
