"""A real browser for the live viewer: a Chromium that is installed, without a screen, driven by playwright."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Optional, Tuple

from commands import command, environment

if TYPE_CHECKING:
    from playwright.sync_api import Page

FLAGS = (
    *("--no-sandbox", "--disable-gpu-sandbox"),  # containers
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # WebGL without a graphics card
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)


@lru_cache
def chromium() -> Optional[str]:
    """The program; None where there is none, or one that does not start (Ubuntu's asks for a snap)."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


@contextmanager
def browser_page(size: Tuple[int, int] = (1280, 720)) -> Iterator["Page"]:
    """A page of a browser of its own, which is gone afterwards with its profile. Nothing outside this machine is asked,
    which leaves nerfstudio's logo out."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.set_default_timeout(60_000)
            page.route(lambda url: "//127.0.0.1" not in url, lambda route: route.abort())
            yield page
        finally:
            browser.close()


@dataclass
class Training:
    """ns-train with the viewer on, in a process of its own."""

    process: "subprocess.Popen[bytes]"
    log: Path
    """What it has printed."""
    url: str

    def wait_for_viewer(self, timeout: float = 180.0) -> None:
        """Until the page is served."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            assert self.process.poll() is None, f"ns-train stopped:\n{self.log.read_text()[-3000:]}"
            with suppress(OSError):
                urllib.request.urlopen(self.url, timeout=2).close()
                return
            time.sleep(0.3)
        raise TimeoutError(f"No viewer after {timeout} s:\n{self.log.read_text()[-3000:]}")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def training(log: Path, port: int, *arguments) -> Iterator[Training]:
    """ns-train in a process of its own, until the block ends.

    Args:
        log: file for what it prints.
        port: of its viewer, on this machine, as the arguments say.
        arguments: of ns-train.
    """
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command("ns-train", *arguments), env=environment(), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Training(process, log, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
