"""A hub on this machine that the real client of huggingface_hub uploads to: repositories are directories."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

USER, ORGANIZATION = "me", "company"
WRITE_TOKEN, READ_TOKEN = "hf_write", "hf_read"
ADDRESS = "https://huggingface.co"  # the client looks at addresses that it is given
_COMMIT = "0" * 40
_ROLES = {WRITE_TOKEN: "write", READ_TOKEN: "read"}


class HubStandIn:
    """What the hub holds and was asked for.

    Attributes:
        root: Where a repository's files lie, below its name.
        created: What each request to create a repository asked for.
        requests: Method and path of every request.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.created: list[dict[str, Any]] = []
        self.requests: list[str] = []

    def files(self, name: str) -> set[str]:
        """Relative names of a repository's files."""
        directory = self.root / name
        return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Apply a commit as the client sends it, a line for every operation."""
        for line in lines:
            path = self.root / name / line["value"].get("path", "")
            if line["key"] == "file":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "deletedFile":
                path.unlink()


@contextmanager
def hub_stand_in(root: Path, monkeypatch: pytest.MonkeyPatch, token: str | None) -> Iterator[HubStandIn]:
    """Serve a hub to this process's client, which has this token."""
    hub = HubStandIn(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    constants, endpoint = huggingface_hub.constants, f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(root / "no-token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    huggingface_hub.close_session()
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: HubStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_HEAD(self) -> None:
            self._answer("HEAD")

        def do_POST(self) -> None:
            self._answer("POST")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _answer(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            path = self.path.split("?")[0].strip("/")
            hub.requests.append(f"{method} {path}")
            role = _ROLES.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
            status, content, code = _reply(hub, path, body, role)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", '"0"')
            self.send_header("X-Repo-Commit", _COMMIT)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if method != "HEAD":
                self.wfile.write(data)

    return Handler


def _reply(hub: HubStandIn, path: str, body: bytes, role: str | None) -> tuple[int, Any, str | None]:
    """Status, content and the hub's code of an error."""
    if path == "api/whoami-v2":
        who = {"name": USER, "orgs": [{"name": ORGANIZATION}], "auth": {"accessToken": {"role": role}}}
        return (200, who, None) if role else (401, {"error": "Invalid username or password."}, None)
    if path == "api/validate-yaml":
        return 200, {"errors": [], "warnings": []}, None
    if path == "api/repos/create":
        wanted = json.loads(body)
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if not _may_write(name, role):
            return 403, {"error": "You don't have the rights to create a model here."}, None
        hub.created.append(wanted)
        (hub.root / name).mkdir(parents=True, exist_ok=True)
        return 200, {"url": f"{ADDRESS}/{name}"}, None
    is_api = path.startswith("api/models/")
    owner, name, *rest = path.removeprefix("api/models/").split("/")
    repository = f"{owner}/{name}"
    if not (hub.root / repository).is_dir():
        return 404, {"error": "Repository not found"}, "RepoNotFound"
    if not is_api:  # OWNER/NAME/resolve/REVISION/FILE
        is_there = (hub.root / repository / "/".join(rest[2:])).is_file()
        return (200, "", None) if is_there else (404, "", "EntryNotFound")
    if not _may_write(repository, role):
        return 403, {"error": "You don't have write access to this repository."}, None
    return 200, _write(hub, repository, rest[0], body), None


def _may_write(repository: str, role: str | None) -> bool:
    return role == "write" and repository.split("/", maxsplit=1)[0] in (USER, ORGANIZATION)


def _write(hub: HubStandIn, repository: str, what: str, body: bytes) -> dict[str, Any]:
    if what == "preupload":
        names = [one["path"] for one in json.loads(body)["files"]]
        return {"files": [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in names]}
    if what == "commit":
        hub.commit(repository, [json.loads(line) for line in body.splitlines()])
        return {"commitUrl": f"{ADDRESS}/{repository}/commit/{_COMMIT}", "commitOid": _COMMIT}
    return {}  # auth-check
