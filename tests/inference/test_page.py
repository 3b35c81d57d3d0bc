"""The service's page in a real browser, asked of a real server."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

import browser
from fitwithin.files import bytecode_environment
from inference.test_handed_over import REFERENCE, handed_over

#: A file's bytes are put into the page's input as a user's choice would.
CHOOSE = """
(async () => {
  const given = new DataTransfer();
  for (const [name, text] of FILES) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    given.items.add(new File([bytes], name, { type: "image/jpeg" }));
  }
  const input = document.getElementById("files");
  input.files = given.files;
  input.dispatchEvent(new Event("change"));
  for (let n = 0; n < 500; n++) {
    await new Promise((done) => setTimeout(done, 10));
    const said = document.getElementById("status").textContent;
    if (said && !said.startsWith("Looking")) return said;
  }
})()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """That of a server with a token."""
    run, port = tmp_path_factory.mktemp("run"), free_port()
    handed_over(run, "test_resnet")
    command = [sys.executable, "-P", "-m", "fitwithin", "serve", str(run), "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, env={**bytecode_environment(), "FITWITHIN_TOKEN": "secret"}) as server:
        where = f"http://127.0.0.1:{port}"
        ended_by = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{where}/readyz")
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None
                assert time.monotonic() < ended_by
                time.sleep(0.05)
        yield where
        server.terminate()
        assert server.wait(20) in (0, -15)


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Tab]:
    path = browser.found()
    if path is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with browser.browser(path) as opened:
        yield opened


def choose(tab: browser.Tab, *files: tuple[str, bytes]) -> str:
    """What the page says once these files were chosen."""
    listed = [[name, base64.b64encode(content).decode()] for name, content in files]
    said: str = tab.run(CHOOSE.replace("FILES", str(listed)))
    return said


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1440, True)])
def test_pictures_are_answered_with_the_token_and_the_page_fits(
    tab: browser.Tab, address: str, width: int, dark: bool, tmp_path: Path
) -> None:
    tab.complaints.clear()
    tab.open(f"{address}/?{width}", width=width, dark=dark)
    assert choose(tab, ("a.jpg", REFERENCE["1.jpg"])) == "This server wants a token."
    assert tab.run("document.activeElement.id") == "token"
    tab.run("document.getElementById('token').value = 'secret'")
    said = choose(tab, ("a.jpg", REFERENCE["1.jpg"]), ("broken.jpg", REFERENCE["2.jpg"][:300]))
    assert said.startswith("2 pictures in")
    assert tab.run("document.querySelectorAll('#found li').length") == 2
    shown = tab.run("[...document.querySelectorAll('#found h2')].map((each) => each.textContent)")
    assert shown[0] == "not readable"
    assert tab.run("document.querySelectorAll('#found progress').length") == 4
    assert tab.run("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("FITWITHIN_SHOTS"):
        (Path(folder) / f"page-{width}.png").write_bytes(tab.picture())
    unexpected = [each for each in tab.complaints if "401" not in each]
    assert not unexpected


def test_what_is_no_picture_is_said(tab: browser.Tab, address: str) -> None:
    tab.open(f"{address}/?none", width=800)
    tab.run("document.getElementById('token').value = 'secret'")
    assert "no picture" in choose(tab, ("a.jpg", b"not one"))
    assert tab.run("document.getElementById('status').className") == "bad"


def test_everything_is_reached_by_the_keyboard_and_has_a_name(tab: browser.Tab, address: str) -> None:
    tab.open(f"{address}/?keys", width=800)
    for kind in ("keyDown", "keyUp"):
        tab.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert tab.run("document.activeElement.id") == "files"
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    for node in nodes:
        role, name = node.get("role", {}).get("value"), node.get("name", {}).get("value", "")
        if not node.get("ignored") and role in ("button", "textbox", "list", "image", "progressbar"):
            assert name, node
