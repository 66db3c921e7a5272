"""A browser's end of the live viewer without a browser: viser's websocket, and what it was told."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, List, Optional

import msgspec
import numpy as np
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

CAMERA = {
    "type": "ViewerCameraMessage",
    "wxyz": [1.0, 0.0, 0.0, 0.0],
    "position": [5.0, 5.0, 5.0],
    "fov": 0.8,
    "aspect": 1.0,
    "look_at": [0.0, 0.0, 0.0],
    "up_direction": [0.0, 0.0, 1.0],
}


class Client:
    """Connects, reads on a thread, and keeps the scene and the controls as a browser would.

    Args:
        port: of viser's server.
    """

    def __init__(self, port: int) -> None:
        self.nodes: Dict[str, Dict[str, Any]] = {}
        """Name -> what the last messages about a node of the scene said."""
        self.gui: Dict[str, Dict[str, Any]] = {}
        """Id -> properties of a control."""
        self.received: List[str] = []
        """Types of messages, in order."""
        self.on_move: Optional[Callable[[str, str, Any], None]] = None
        """Called with a node's name, `position` or `wxyz`, and its value."""
        self.socket = connect(f"ws://127.0.0.1:{port}", max_size=None, open_timeout=60)
        self.send(CAMERA)  # viser counts a client from its first camera on
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def send(self, message: Dict[str, Any]) -> None:
        """Sends one message."""
        self.socket.send(msgspec.msgpack.encode(message))

    def _read(self) -> None:
        try:
            for data in self.socket:
                for message in msgspec.msgpack.decode(data):
                    self._take(message)
        except ConnectionClosed:
            pass

    def _take(self, message: Dict[str, Any]) -> None:
        kind = message.pop("type")
        self.received.append(kind)
        if kind == "GuiUpdateMessage":
            self.gui.setdefault(message["id"], {}).update(message["updates"])
        elif kind.startswith("GuiAdd"):
            self.gui[message["id"]] = {**message, "kind": kind}
        elif "name" in message:
            node = self.nodes.setdefault(message.pop("name"), {})
            node.update(message)
            for key in ("position", "wxyz"):
                if key in message and self.on_move is not None and kind.startswith("Set"):
                    self.on_move(next(n for n, v in self.nodes.items() if v is node), key, message[key])

    def control(self, label: str) -> Dict[str, Any]:
        """The control with a label; with an id."""
        (found,) = [props for props in list(self.gui.values()) if props.get("label") == label]
        return found

    def set(self, label: str, value: Any) -> None:
        """Does what a person does with a control: gives it a value, or presses the button."""
        control = self.control(label)
        control["value"] = value
        self.send({"type": "GuiUpdateMessage", "id": control["id"], "updates": {"value": value}})

    def press(self, label: str) -> None:
        """Presses a button."""
        self.set(label, True)

    def texts(self) -> str:
        """All visible texts of the panel."""
        return "\n\n".join(props["markdown"] for props in list(self.gui.values()) if props.get("markdown"))

    def poses(self, count: int) -> torch.Tensor:
        """Camera-to-world poses [count, 3, 4] at which nerfstudio's frustums are drawn."""
        nodes = [self.nodes[f"/cameras/camera_{index:05d}"] for index in range(count)]
        return torch.stack([drawn_pose(node["position"], node["wxyz"]) for node in nodes])

    def drop(self) -> None:
        """Vanishes in the middle of a message, without a word."""
        self.socket.socket.sendall(b"\x82\x7e\x10\x00half")  # a binary frame of 4096 bytes begins
        self.socket.socket.close()

    def close(self) -> None:
        """Leaves."""
        self.socket.close()
        self.reader.join(timeout=10)


def drawn_pose(position: List[float], wxyz: List[float]) -> torch.Tensor:
    """A pose [3, 4] with OpenGL axes from viser's, whose cameras look along +z with y down, ten times as large."""
    w, x, y, z = np.asarray(wxyz, dtype=np.float64) / np.linalg.norm(wxyz)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = np.concatenate([rotation * [1.0, -1.0, -1.0], np.asarray(position)[:, None] / 10.0], axis=1)
    return torch.from_numpy(pose).float()


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until something holds; that long is for busy machines."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
