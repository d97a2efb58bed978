"""The guard inside the process that renders chat templates: what it sees is told in a file of the parent's.

There is nothing in that process to write or to start, and the compiled template is no code of the input's as
long as Jinja's sandbox holds: whatever gets out of it must do something, and that is seen.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.fuzz.guard import ForbiddenError, Guard

SEEN_VARIABLE = "FUZZ_TEMPLATE_SEEN"
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from tests.fuzz.template_guard import serve_guarded; serve_guarded()"
)


def serve_guarded() -> None:
    """Serve as the real process does, under the guard while it renders."""
    from compressor.data import template_worker

    guard = Guard(root=Path(os.environ[SEEN_VARIABLE]).parent, writable=(), may_compile=True)
    answer = template_worker._answer

    def guarded(*arguments: object) -> object:
        try:
            with guard.watching():
                return answer(*arguments)  # type: ignore[arg-type]
        except ForbiddenError as error:
            Path(os.environ[SEEN_VARIABLE]).write_text(f"{error}\n", encoding="utf-8")
            raise

    template_worker._answer = guarded
    guard.install()
    template_worker.serve()
