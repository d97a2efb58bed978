"""Ask llama.cpp again and write its answers as golden files: `python -m tests.oracles.record`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from compressor.runs.artifact import sha256_of_file
from tests.assets import fetch
from tests.gguf_cases import CASES, GOLDEN, TEXTS, TOKEN_CASES, TOKENS_FILE
from tests.oracles.asking import Question, ask, question


def main() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        _record_logits(scratch)
        _record_tokens(scratch)


def _record_logits(scratch: Path) -> None:
    paths = {name: case.model.write(scratch / f"{name}.gguf") for name, case in CASES.items()}
    version, answers = ask([question(paths[name], case) for name, case in CASES.items()], scratch)
    for (name, case), answer in zip(CASES.items(), answers, strict=True):
        np.savez_compressed(
            GOLDEN / f"{name}.npz",
            logits=answer["logits"][case.positions],
            sha256=np.array(sha256_of_file(paths[name])),
            version=np.array(f"llama-cpp-python {version}"),
        )


def _record_tokens(scratch: Path) -> None:
    paths = {name: model.write(scratch / f"{name}.gguf") for name, model in TOKEN_CASES.items()}
    paths["smollm2"] = fetch().gguf
    version, answers = ask([Question(path=path, texts=TEXTS) for path in paths.values()], scratch)
    recorded = {
        name: {
            "sha256": sha256_of_file(path),
            "tokens": [answer[f"tokens_{number}"].tolist() for number in range(len(TEXTS))],
        }
        for (name, path), answer in zip(paths.items(), answers, strict=True)
    }
    document = {"version": f"llama-cpp-python {version}", "files": recorded}
    TOKENS_FILE.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
