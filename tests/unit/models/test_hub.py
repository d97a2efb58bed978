"""Downloading by the index: the real client of huggingface_hub against a small server on this machine.

The server stands in for the hub: it answers the three requests that a download makes (a repository's
files, a file's headers, a file) and the hub's two refusals.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}})
WANTED = {
    **dict.fromkeys(("config.json", "generation_config.json", "tokenizer.json"), "{}"),
    **dict.fromkeys(("tokenizer.model", "chat_template.jinja"), "x"),
    "additional_chat_templates/tool_use.jinja": "x",
    **dict.fromkeys(("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "Llama-License.md"), "x"),
    "LICENSES/MIT.txt": "x",
    "README.md": "---\nlicense: llama3.1\n---\n",
    "model.safetensors.index.json": INDEX,
    **dict.fromkeys(SHARDS, "weights"),
}
CODE = {"modeling_own.py": "x", "configuration_own.py": "x"}
OTHERS = dict.fromkeys(
    (
        *("consolidated.safetensors", "consolidated.00.pth", "pytorch_model-00001-of-00002.bin"),
        "model-00001-of-00003.safetensors",  # of an older upload
        *("checkpoint-100/model.safetensors", "checkpoint-100/config.json", "onnx/model.onnx"),
        *("global_step10/trainer_state.json", "original/params.json", "original/consolidated.00.pth"),
        *("trainer_state.json", "training_args.bin", "optimizer.pt"),
        *("evals/run.py", "picture.png", "docs/README.md"),
    ),
    "x",
)
PLAIN = {"config.json": "{}", "model.safetensors": "weights"}
GATED, DROPPED = "someone/gated", "someone/dropped"
REPOSITORIES = {
    "someone/sharded": WANTED | CODE | OTHERS,
    "someone/plain": PLAIN | {"original/model.safetensors": "x", "adapter.safetensors": "x"},
    **dict.fromkeys((GATED, DROPPED), PLAIN),
    "someone/card": PLAIN | {"README.md": "---\nlicense: llama3.1\n---\n"},
    "someone/pickled": {"config.json": "{}", "pytorch_model.bin": "x"},
}


_PROGRAM = """
import json, sys
from pathlib import Path
from compressor.bundle.licence import terms_of
from compressor.models.hub import download_card, download_config, download_model

def files_of(snapshot):
    files = (str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file())
    return " ".join(sorted(files))

def outcome(work):
    try:
        return str(eval(work))
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps([outcome(work) for work in sys.argv[1:]]))
"""


class Hub(BaseHTTPRequestHandler):
    """The requests that `huggingface_hub` makes for a download."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        path = self.path.split("?")[0].strip("/")
        api = path.startswith("api/models/")
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if name not in REPOSITORIES:
            return self._refuse(404, "RepoNotFound")
        files = REPOSITORIES[name]
        if api and f"{name}/tree/" in path:
            tree = [
                {"type": "file", "path": file, "size": len(text), "oid": ""} for file, text in files.items()
            ]
            return self._send(json.dumps(tree))
        if api:
            siblings = [{"rfilename": file} for file in files]
            return self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}))
        if name == GATED:
            return self._refuse(403, "GatedRepo")
        if name == DROPPED:
            self.close_connection = True  # without a word, as a network that is lost
            return None
        file = path.split(f"/resolve/{COMMIT}/", 1)[-1]
        return self._send(files[file]) if file in files else self._refuse(404, "EntryNotFound")

    def _send(self, text: str) -> None:
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def outcomes(works: list[str], home: Path, endpoint: str, *, offline: bool = False) -> list[str]:
    """What lines of Python return or raise, in one fresh process: the client reads its settings once."""
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *works],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def model(name: str, *, trusted: bool = False) -> str:
    return f"download_model({name!r}, trust_remote_code={trusted})"


PLAN, CARD = "download_config('someone/sharded')", "download_card('someone/card')"
ONLINE = (PLAN, model("someone/plain"), model("someone/nothing"), model(GATED), model("someone/pickled"))
LATER = (model("some one"), model(DROPPED), model("someone/sharded"), model("someone/sharded", trusted=True))
TERMS = (f"terms_of('someone/sharded', {LATER[2]})", f"terms_of('someone/card', {CARD})")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(endpoint: str, home: Path) -> dict[str, str]:
    """Outcomes with the server, with the files that a snapshot then held."""
    downloads = (*ONLINE, *LATER, CARD)
    works = [*(work for download in downloads for work in (download, f"files_of({download})")), *TERMS]
    return dict(zip(works, outcomes(works, home, endpoint), strict=True))


def test_a_plan_downloads_the_config_alone(online: dict[str, str]) -> None:
    assert online[f"files_of({PLAN})"] == "config.json"


def test_a_model_in_one_file(online: dict[str, str]) -> None:
    assert online[f"files_of({ONLINE[1]})"].split() == sorted(PLAIN)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_model_is_downloaded_by_its_index(online: dict[str, str], trusted: bool) -> None:
    found = online[f"files_of({model('someone/sharded', trusted=trusted)})"]

    assert found.split() == sorted({*WANTED, *(CODE if trusted else ())})


def test_the_licence_of_a_re_upload_is_known_by_its_card(online: dict[str, str]) -> None:
    known = "identifier='llama3.1' known_from='its model card' notices=('Built with Llama'"
    for terms in TERMS:
        assert known in online[terms]
        assert "name_begins='Llama'" in online[terms]
    assert online[f"files_of({CARD})"] == "README.md"


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("someone/nothing", "NetworkError", "the hub has no such model"),
        (GATED, "NetworkError", "restricted"),
        (DROPPED, "NetworkError", "cannot be downloaded"),
        ("someone/pickled", "UsageError", "no safetensors"),
        ("some one", "UsageError", "not a Hugging Face id"),
    ],
)
def test_what_cannot_be_downloaded(online: dict[str, str], name: str, error: str, message: str) -> None:
    assert online[model(name)].startswith(error)
    assert message in online[model(name)]


def test_without_a_network_the_cache_serves(online: dict[str, str], home: Path, endpoint: str) -> None:
    works = [model("someone/sharded"), model("someone/plain"), model("someone/other"), PLAN]
    found = outcomes(works, home, endpoint, offline=True)

    assert found[:2] == [online[model("someone/sharded")], online[model("someone/plain")]]
    assert found[2].startswith("NetworkError: the model cannot be downloaded")
    assert found[3] == online[PLAN]


def test_a_hub_out_of_reach_or_a_config_alone(endpoint: str, tmp_path: Path) -> None:
    """A plan's snapshot is no model, and says so once the hub is gone."""
    outcomes([PLAN], tmp_path, endpoint)
    found = outcomes([model("someone/sharded")], tmp_path, "http://127.0.0.1:9")

    assert found[0].startswith("NetworkError: the model cannot be downloaded")
