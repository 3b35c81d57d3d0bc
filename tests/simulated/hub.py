"""A Hugging Face Hub on this machine: what its client asks of a repository, and downloads that break."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: The commit that every repository stands at.
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """A repository: its files, the licence on its card, and a false hash if it announces one."""

    files: dict[str, bytes]
    card: dict[str, Any] = field(default_factory=dict)
    false_sha256: str = ""

    def sha256(self, file: str) -> str:
        """What the Hub says of a file."""
        return self.false_sha256 or hashlib.sha256(self.files[file]).hexdigest()


@dataclass
class Hub:
    """What is served, what was asked, and how it fails.

    Attributes:
        cuts: after how many bytes the next downloads break, one for each; what is not in it goes through.
        down: every connection is closed without an answer.
        ranged: whether a download can go on in the middle of a file.
        asked: the requests, as ``GET /path`` or ``GET /path bytes=7-``.
        tokens: the hosts that were shown the user's token.
    """

    port: int
    repositories: dict[str, Repository] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    down: bool = False
    ranged: bool = True
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever is cut off goes without a word."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        """As the client's own downloads ask first."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer, or break."""
        hub = self.server.hub
        wanted = self.headers.get("Range")
        hub.asked.append(" ".join(filter(None, (self.command, self.path, wanted))))
        if self.headers.get("Authorization"):
            hub.tokens.add(self.headers["Host"].partition(":")[0])
        if hub.down:
            self._hang_up()
            return
        path = self.path.partition("?")[0].strip("/")
        for name, repository in hub.repositories.items():
            if path == f"api/models/{name}":
                self._card(name, repository)
                return
            for file in repository.files:
                if path == f"{name}/resolve/{REVISION}/{file}":
                    self._redirect(repository, file)
                    return
                if path == f"cdn/{name}/{file}":
                    self._content(repository.files[file], wanted)
                    return
        self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def _card(self, name: str, repository: Repository) -> None:
        siblings = [
            {
                "rfilename": file,
                "size": len(content),
                "blobId": "0" * 40,
                "lfs": {"sha256": repository.sha256(file), "size": len(content), "pointerSize": 130},
            }
            for file, content in repository.files.items()
        ]
        value = {"id": name, "sha": REVISION, "cardData": repository.card, "siblings": siblings, "tags": []}
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _redirect(self, repository: Repository, file: str) -> None:
        """To another host, as large files are; its name is another one for this machine."""
        name = self.path.split("/resolve/")[0].strip("/")
        headers = {
            "Location": f"http://localhost:{self.server.hub.port}/cdn/{name}/{file}",
            "X-Repo-Commit": REVISION,
            "X-Linked-Etag": f'"{repository.sha256(file)}"',
            "X-Linked-Size": str(len(repository.files[file])),
        }
        self._answer(302, b"", headers)

    def _content(self, content: bytes, wanted: str | None) -> None:
        hub, start = self.server.hub, 0
        headers = {"Content-Type": "application/octet-stream"}
        if wanted is not None and hub.ranged:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        until = hub.cuts.pop(0) if hub.cuts else len(rest)
        self._answer(206 if start else 200, rest, headers, until)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], until: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:until])
            if until is not None and until < len(body):
                self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def served() -> Iterator[Hub]:
    """A Hub without repositories, until the end of the block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = Hub(port=server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
