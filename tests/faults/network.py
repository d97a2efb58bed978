"""A network that is lost while a model is downloaded: the hub's real client, a stand-in for the hub.

The stand-in is a process of its own that answers what a download asks. At a request that it is told, and
at all later ones, it closes the connection: without a word, or in the middle of a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from tests.faults.ground import Ground, Outcome, Undisturbed, brief
from tests.faults.points import spread
from tests.faults.scenarios import REPOSITORY
from tests.faults.trees import put, take

LOST = "lost network"
NETWORK_ERROR = 9
_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_SILENT, _HALF = "without an answer", "in the middle of it"


class Hub:
    """The stand-in: a model's directory, which may appear later, served until this is closed."""

    def __init__(self, model: Path, scratch: Path) -> None:
        self._scratch = scratch
        scratch.mkdir()
        self.break_at(None)
        server = HTTPServer(("127.0.0.1", 0), _handler(model, scratch))
        self.address = f"http://127.0.0.1:{server.server_port}"
        self._pid = os.fork()
        if self._pid == 0:
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
            os._exit(0)
        server.server_close()

    def break_at(self, request: int | None, way: str = _SILENT) -> None:
        """Count requests from 0 again, and be lost from this one on."""
        (self._scratch / "count").write_text("0")
        (self._scratch / "orders").write_text(json.dumps([request, way]))

    @property
    def num_requests(self) -> int:
        return int((self._scratch / "count").read_text())

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _handler(model: Path, scratch: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            count = int((scratch / "count").read_text())
            (scratch / "count").write_text(str(count + 1))
            request, way = json.loads((scratch / "orders").read_text())
            is_lost = request is not None and count >= request
            if is_lost and (way == _SILENT or count > request):
                self.close_connection = True
                return
            self._send(_content(model, self.path.split("?")[0].strip("/")), is_half=is_lost)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _send(self, content: bytes | None, *, is_half: bool) -> None:
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            data = content or b""
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", _COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[: len(data) // 2] if is_half else data)

    return Handler


def _content(model: Path, path: str) -> bytes | None:
    """What the hub has at a path; None is nothing."""
    files = {file.name: file.read_bytes() for file in sorted(model.iterdir())}
    if path.startswith(f"api/models/{REPOSITORY}/tree/"):
        listed = [
            {"type": "file", "path": name, "size": len(content), "oid": ""} for name, content in files.items()
        ]
        return json.dumps(listed).encode()
    if path.startswith(f"api/models/{REPOSITORY}"):
        siblings = [{"rfilename": name} for name in files]
        return json.dumps({"id": REPOSITORY, "sha": _COMMIT, "siblings": siblings}).encode()
    return files.get(path.split(f"/resolve/{_COMMIT}/", 1)[-1])


def lost_networks(
    ground: Ground, found: Undisturbed, hub: Hub, cache: Path, count: int | None = None
) -> Iterator[Outcome]:
    """Lost at each request of the download: exit 9 in one message; with a network the same command succeeds.

    A request that the client repeats, or can do without, may also end well.
    """
    shutil.rmtree(cache, ignore_errors=True)
    hub.break_at(None)
    put(ground.work, found.start)
    ground.run(found.scenario.words)
    moments = [(request, way) for request in range(hub.num_requests) for way in (_SILENT, _HALF)]
    for request, way in spread(moments, count):
        shutil.rmtree(cache, ignore_errors=True)
        put(ground.work, found.start)
        hub.break_at(request, way)
        done = ground.run(found.scenario.words)
        problem = ""
        if done.code not in (0, NETWORK_ERROR) or "Traceback" in done.stderr:
            problem = f"exit {done.code}: {brief(done.stderr)}"
        elif done.code and done.errors != 1:
            problem = f"not one message: {brief(done.stderr)}"
        hub.break_at(None)
        again = ground.run(found.scenario.words)
        if not problem and again.code != 0:
            problem = f"with a network: exit {again.code}: {brief(again.stderr)}"
        problem = problem or found.differs(take(ground.work))
        point = f"at request {request}, {way}"
        yield Outcome(scenario=found.scenario.name, fault=LOST, point=point, problem=problem)
