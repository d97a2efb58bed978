"""Checkpoints in every rope form that a `config.json` may have, and their logits by plain transformers.

A form is a method (default, linear, dynamic, yarn, llama3, longrope) in one of the spellings that
checkpoints have: before transformers 5 (`rope_scaling` with `rope_type` or `type`, beside a top-level
`rope_theta`) and since (`rope_parameters`). `config.json` is written by hand, not by a library, and the
prompt is longer than every context length in it, so that a lost factor shows in the logits.

`ROPE_CASES` are the pairs of family and form that the installed transformers accepts, for
`pytest.mark.parametrize`; `make_rope_model` writes one and computes its logits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from compressor.models.families import FAMILIES
from tests.tiny_models import BOS_ID, EOS_ID, MODEL_TYPES, PAD_ID, VOCAB_SIZE, make_model, make_tokenizer

GENERATION = int(transformers.__version__.split(".")[0])
FIRST_WITH_ROPE_PARAMETERS = 5
ORIGINAL_CONTEXT = 16
CONTEXT = 64
PROMPT_TOKENS = 96
THETA = 5_000.0
HEAD_DIM = 16
LARGEST_DIFFERENCE = 1e-3

METHODS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    },
    "longrope": {"rope_type": "longrope"},  # its factors are as many as half the rotated channels
}


@dataclass(frozen=True, kw_only=True)
class RopeForm:
    """How a `config.json` says its rope, by a key of `METHODS`.

    The spelling is `rope_type` or `type`, the key inside `rope_scaling`, or `rope_parameters`, or `absent`.
    """

    method: str
    spelling: str

    def __str__(self) -> str:
        return f"{self.method}-{self.spelling}"


@dataclass(frozen=True, kw_only=True)
class RopeModel:
    """A checkpoint on disk, a prompt and what plain transformers computes for it, fp32."""

    family: str
    directory: Path
    token_ids: torch.Tensor
    logits: torch.Tensor


def rope_fields(family: str, form: RopeForm) -> dict[str, Any]:
    """The rope's fields of `config.json`."""
    partial = 0.5 if family == "nemotron" else 1.0
    fraction = {"partial_rotary_factor": partial} if family == "nemotron" else {}
    method = dict(METHODS[form.method])
    if form.spelling == "absent":
        return {}
    if form.method == "longrope":
        pairs = int(HEAD_DIM * partial) // 2
        method["short_factor"] = [1.0 + 0.1 * index for index in range(pairs)]
        method["long_factor"] = [2.0 + 0.5 * index for index in range(pairs)]
    if form.spelling == "rope_parameters":
        if form.method == "longrope":
            method |= {"factor": CONTEXT / ORIGINAL_CONTEXT}
            method |= {"original_max_position_embeddings": ORIGINAL_CONTEXT}
        return {"rope_parameters": {"rope_theta": THETA, **method, **fraction}}
    fields: dict[str, Any] = {"rope_theta": THETA, **fraction}
    if form.method == "default":
        return fields | {"rope_scaling": None}
    if form.method == "longrope":
        fields["original_max_position_embeddings"] = ORIGINAL_CONTEXT
    method = {form.spelling: method.pop("rope_type"), **method}
    return fields | {"rope_scaling": method}


def accepts(family: str, form: RopeForm, *, generation: int = GENERATION) -> bool:
    """Whether this generation of transformers reads the form: before 5 there is no `rope_parameters`,
    Nemotron's class knows no scaling, and Phi-3's takes all for longrope."""
    if form.method != "default" and not FAMILIES[family].supports_rope_scaling:
        return False
    if generation >= FIRST_WITH_ROPE_PARAMETERS:
        # What 4.57 ignores in the older spelling means two things, and is refused.
        return family != "nemotron" or form.method == "default" or form.spelling == "rope_parameters"
    return form.spelling != "rope_parameters" and (family != "nemotron" or form.method == "default")


ROPE_FORMS = (
    *(RopeForm(method=m, spelling=s) for m in METHODS for s in ("rope_type", "rope_parameters")),
    RopeForm(method="linear", spelling="type"),
    RopeForm(method="yarn", spelling="type"),
    RopeForm(method="default", spelling="absent"),
)
ROPE_CASES = tuple((family, form) for family in MODEL_TYPES for form in ROPE_FORMS if accepts(family, form))


def case_name(case: object) -> str:
    """A test's id for a family or a form."""
    return str(case)


def make_rope_model(directory: Path, family: str, form: RopeForm) -> RopeModel:
    """Write a checkpoint in this form and compute its logits from its own files."""
    directory.mkdir(parents=True, exist_ok=True)
    write_source(directory, family, rope_fields(family, form))
    logits = plain_logits(directory, prompt())
    return RopeModel(family=family, directory=directory, token_ids=prompt(), logits=logits)


def write_source(directory: Path, family: str, fields: dict[str, Any]) -> None:
    """Write weights, tokenizer and a `config.json` by hand, `fields` as they are, as fp32."""
    config = {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "hidden_act": "relu2" if family == "nemotron" else "silu",
        "norm_eps" if family == "nemotron" else "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **({"sliding_window": None} if family == "mistral" else {}),
        **fields,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(_weights(family), directory / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer().save_pretrained(directory)


def prompt() -> torch.Tensor:
    """Random token ids, `[1, PROMPT_TOKENS]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCAB_SIZE, (1, PROMPT_TOKENS), generator=generator)


@torch.no_grad()
def plain_logits(directory: Path, token_ids: torch.Tensor) -> torch.Tensor:
    """What plain transformers computes from these files, fp32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    logits: torch.Tensor = model.eval()(token_ids).logits
    return logits


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


@cache
def _weights(family: str) -> dict[str, torch.Tensor]:
    model = make_model(family, tie_word_embeddings=False, intermediate_size=96, num_hidden_layers=2)
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
