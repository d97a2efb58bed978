"""The GGUF files whose logits and tokens llama.cpp was asked for, and where its answers lie.

`python -m tests.oracles.record` asks again and writes the answers (it needs `make oracles`'s environment);
the unit tests compare with the recorded answers, the oracle's tests with fresh ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressor.models.tokenizer import TOKENIZER_TEXTS
from tests.gguf_files import TRAINING_TEXT, TinyGguf

GOLDEN = Path(__file__).parent / "golden" / "gguf"
TOKENS_FILE = GOLDEN / "tokens.json"
_NUM_POSITIONS = 6
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@dataclass(frozen=True, kw_only=True)
class LogitCase:
    """One file, and what may differ from llama.cpp's logits.

    Attributes:
        model: The file.
        tolerance: Largest difference over largest logit. llama.cpp rounds the inputs of a matrix to its
            type: not at all for F32, to 8 bits for quantised ones.
        num_tokens: Length of the sequence: past the original context where rope is scaled.
    """

    model: TinyGguf
    tolerance: float = 1e-4
    num_tokens: int = 60

    @property
    def token_ids(self) -> list[int]:
        """The sequence."""
        generator = np.random.Generator(np.random.PCG64(7))
        return [int(index) for index in generator.integers(5, 400, self.num_tokens)]

    @property
    def settings(self) -> dict[str, float]:
        """YaRN's two borders: the file states them, and llama.cpp's loader of these families skips them."""
        rope = self.model.rope
        return {f"yarn_{key}": rope[key] for key in ("beta_fast", "beta_slow") if key in rope}

    @property
    def positions(self) -> list[int]:
        """The positions whose logits are recorded."""
        return [int(index) for index in np.linspace(0, self.num_tokens - 1, _NUM_POSITIONS)]


CASES = {
    "llama": LogitCase(model=TinyGguf(tied=False)),
    "llama-key-length": LogitCase(model=TinyGguf(head_dim=32)),
    "llama-defaults": LogitCase(
        model=TinyGguf(leave_out=("rope.freq_base", "attention.key_length", "attention.value_length"))
    ),
    "llama-f16": LogitCase(model=TinyGguf(kind="F16"), tolerance=5e-3),
    "llama-bf16": LogitCase(model=TinyGguf(kind="BF16"), tolerance=2e-2),
    "llama-q8_0": LogitCase(model=TinyGguf(kind="Q8_0", head_dim=32), tolerance=5e-2),
    "llama-q4_1": LogitCase(model=TinyGguf(kind="Q4_1", head_dim=32), tolerance=5e-2),
    "llama-q4_k": LogitCase(
        model=TinyGguf(kind="Q4_K", hidden_size=256, head_dim=64, intermediate_size=256, num_layers=1),
        tolerance=5e-2,
    ),
    "llama-llama3": LogitCase(
        model=TinyGguf(rope=_LLAMA3, rope_theta=500_000.0, context=512, head_dim=32), num_tokens=300
    ),
    "llama-linear": LogitCase(
        model=TinyGguf(rope={"rope_type": "linear", "factor": 4.0}, context=256), num_tokens=200
    ),
    "llama-yarn": LogitCase(model=TinyGguf(rope=_YARN, context=256), num_tokens=200),
    "qwen2": LogitCase(model=TinyGguf(architecture="qwen2", tied=False, rope_theta=1_000_000.0)),
    "qwen2-yarn": LogitCase(
        model=TinyGguf(
            architecture="qwen2", rope={**_YARN, "beta_fast": 16.0, "beta_slow": 2.0}, context=256
        ),
        num_tokens=200,
    ),
    "qwen3": LogitCase(model=TinyGguf(architecture="qwen3", head_dim=32)),
    "qwen3-linear": LogitCase(
        model=TinyGguf(architecture="qwen3", rope={"rope_type": "linear", "factor": 2.5}), num_tokens=200
    ),
    "nemotron": LogitCase(model=TinyGguf(architecture="nemotron", tied=False, rotated=8)),
}

# One file per way of splitting; the merges reach across every border.
PRE_TOKENIZERS = (
    *("default", "deepseek-coder", "falcon3", "gpt-2", "gpt-4o", "llama-bpe", "phi-2", "qwen2", "refact"),
    *("smaug-bpe", "smollm", "starcoder", "tekken"),
)
TOKEN_CASES = {
    **{f"pre-{name}": TinyGguf(pre=name, num_layers=1) for name in PRE_TOKENIZERS},
    "sentencepiece": TinyGguf(tokenizer="llama", num_layers=1),
    "sentencepiece-no-prefix": TinyGguf(
        tokenizer="llama",
        num_layers=1,
        tokenizer_fields={"ggml.add_space_prefix": False, "ggml.add_bos_token": False},
    ),
    "adds-both": TinyGguf(
        num_layers=1, tokenizer_fields={"ggml.add_bos_token": True, "ggml.add_eos_token": True}
    ),
}
TEXTS = (
    *TOKENIZER_TEXTS,
    TRAINING_TEXT[:250],
    "<|im_start|>user\n12 <|tool|>x</s> <s>\n\n",
    "Don't WE'RE he'Ll 0001234 \u0664\u0665\u0666 x\u00b2 \u2167 ... ---\n---\r\n\r\n  \t\n a",
)
