"""What llama.cpp makes of GGUF files; run by an interpreter that has llama-cpp-python, and nothing of ours.

Reads from stdin a JSON list of requests {"path", "ids", "texts", "settings", "out"}; writes for each an
.npz with the logits of every position and the token ids of every text. Prints llama-cpp-python's version.
"""

import json
import sys

import llama_cpp
import numpy as np

# The keys and values in float32 and every setting of rope from the file: only then is it the file's model.
_FROM_THE_FILE = {
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
}
_F32 = 0


def answer(request: dict) -> None:
    """Compute one file's logits and token ids."""
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
