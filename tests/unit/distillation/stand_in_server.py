"""A stand-in for the servers of vLLM and TensorRT-LLM, which need a GPU: neither of them.

It answers OpenAI's completions with text that follows from a request's seed alone, so that a test can compute
it: the seed repeated, and where it is a multiple of three the sample ends early.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

PROGRAM = """\
#!{python} -IS
import http.server, json, pathlib, sys, time
words = sys.argv[1:]
port = int(words[words.index("--port") + 1])
if {behaviour!r} == "out of memory":
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    raise SystemExit(1)

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def reply(self, document, status=200):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply({{}}, 200 if self.path == "/health" else 404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open({calls!r}, "a") as calls:
            calls.write(json.dumps([words, asked]) + "\\n")
        if {behaviour!r} == "refuses":
            self.reply({{"error": "no such model"}}, 404)
            return
        ends = asked["seed"] % 3 == 0
        count = 2 if ends else asked["max_tokens"] - (1 if {behaviour!r} == "answers less" else 0)
        choice = dict(text=f" <{{asked['seed']}}>" * count, finish_reason="stop" if ends else "length")
        self.reply(dict(choices=[choice], usage=dict(completion_tokens=count + ends)))

class Server(http.server.ThreadingHTTPServer):
    # As many as are asked at once must fit: with the default of 5, a busy machine resets a connection.
    request_queue_size = 64

Server(("127.0.0.1", port), Handler).serve_forever()
"""


def install(directory: Path, name: str, *, behaviour: str = "answers") -> Path:
    """Put the stand-in into `directory`, part of a test's PATH; returns the file of the requests it got."""
    directory.mkdir(exist_ok=True)
    calls = directory / "calls.jsonl"
    path = directory / name
    text = PROGRAM.format(python=sys.executable, behaviour=behaviour, calls=str(calls))
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return calls
