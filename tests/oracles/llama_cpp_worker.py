"""What llama.cpp makes of GGUF files; run by an interpreter that has llama-cpp-python, and nothing of ours.

Reads from stdin a JSON list of requests {"path", "ids", "texts", "settings", "out"}; writes for each an
.npz with the logits of every position and the token ids of every text. Prints llama-cpp-python's version.
"""

import json
import sys

import llama_cpp
import numpy as np

# The keys and values in float32 and every setting of rope from the file: only then is it the file's model.
_FROM_THE_FILE = {f"yarn_{name}": -1.0 for name in ("ext_factor", "attn_factor", "beta_fast", "beta_slow")}
_F32 = 0


def answer(request: dict) -> None:
    ids, texts = request["ids"], request["texts"]
    llm = llama_cpp.Llama(
        model_path=request["path"],
        n_ctx=max(len(ids), 64),
        n_batch=512,
        n_threads=1,
        logits_all=True,
        vocab_only=not ids,
        verbose=False,
        type_k=_F32,
        type_v=_F32,
        flash_attn=False,
        **{**_FROM_THE_FILE, **request["settings"]},
    )
    answers = {
        f"tokens_{number}": np.array(
            llm.tokenize(text.encode("utf-8"), add_bos=True, special=True), dtype=np.int32
        )
        for number, text in enumerate(texts)
    }
    if ids:
        llm.eval(ids)
        answers["logits"] = np.array(llm.scores[: len(ids)], dtype=np.float32)
    np.savez(request["out"], **answers)


if __name__ == "__main__":
    for one in json.load(sys.stdin):
        answer(one)
    print(llama_cpp.__version__)
