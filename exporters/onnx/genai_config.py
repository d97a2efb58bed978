"""`genai_config.json` against the student: what the runtime reads beside the graph.

A wrong length cuts generation short or lets it run beyond the rope tables, a missing end token lets it run
for ever, and a wrong name of an input stops the runtime.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.models.checkpoint import read_config
from compressor.models.config.class_defaults import value_of
from compressor.models.dims import dims_of_config
from compressor.models.tokenizer_files import GENERATION_CONFIG_FILE
from exporters.onnx.builder import GENAI_CONFIG_FILE, GRAPH_FILE, load_graph
from exporters.verification.logits import tokenizer_of

# Generation settings that the runtime reads by transformers' names.
_SEARCH = (
    *("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "length_penalty"),
    *("no_repeat_ngram_size", "num_beams", "num_return_sequences", "diversity_penalty"),
)


def complete_genai_config(out_dir: Path, student: Path) -> None:
    """Write what the builder leaves out: generation settings beside sampling's, and end tokens.

    The file is left as it is where nothing is missing.
    """
    file = out_dir / GENAI_CONFIG_FILE
    document = read_json_mapping(file, what="the GenAI config")
    generation = _generation_config(student)
    settings = {name: generation[name] for name in _SEARCH if generation.get(name) is not None}
    document["search"] |= settings
    ends = _listed({**read_config(student), **_stated(generation)}.get("eos_token_id"))
    found = _listed(document["model"]["eos_token_id"])
    missing = [end for end in ends if end not in found]
    if missing:
        document["model"]["eos_token_id"] = [*found, *missing]
    if read_json_mapping(file, what="the GenAI config") != document:
        file.write_text(json.dumps(document, indent=4), encoding="utf-8")


def check_genai_config(out_dir: Path, student: Path, *, trust_remote_code: bool = False) -> str:
    """Refuse (VerificationError) a `genai_config.json` of another model, or another way to generate."""
    file = out_dir / GENAI_CONFIG_FILE
    document = read_json_mapping(file, what="the GenAI config")
    model, search = document.get("model"), document.get("search")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not (isinstance(model, dict) and isinstance(search, dict) and isinstance(decoder, dict)):
        raise VerificationError(
            "the GenAI config lacks a section", where=str(file), expected="model, model.decoder and search"
        )
    config, generation = read_config(student), _generation_config(student)
    _check_model(model, decoder, config)
    graph = load_graph(out_dir).graph
    _check_names(decoder, {entry.name for entry in (*graph.input, *graph.output)})
    length = value_of(config, "max_position_embeddings")
    _expect("model.context_length", length, model.get("context_length"))
    _expect("search.max_length", length, search.get("max_length"))
    for name in _SEARCH:
        if generation.get(name) is not None:
            _expect(f"search.{name}", generation[name], search.get(name))
    tokenizer = tokenizer_of(student, trust_remote_code=trust_remote_code)
    _check_token_ids(model, {**config, **_stated(generation)}, tokenizer)
    return "dimensions, lengths, tokens, search settings and names equal"


def _check_model(model: Mapping[str, Any], decoder: Mapping[str, Any], config: dict[str, object]) -> None:
    dims = dims_of_config(config)
    wanted = {
        "filename": GRAPH_FILE,
        "head_size": dims.head_dim,
        "hidden_size": dims.hidden_size,
        "num_attention_heads": dims.num_attention_heads,
        "num_hidden_layers": dims.num_hidden_layers,
        "num_key_value_heads": dims.num_key_value_heads,
    }
    for name, value in wanted.items():
        _expect(f"model.decoder.{name}", value, decoder.get(name))
    _expect("model.vocab_size", dims.vocab_size, model.get("vocab_size"))
    _expect("model.type", dims.model_type, model.get("type"))


def _check_names(decoder: Mapping[str, Any], names: set[str]) -> None:
    """Every input and output that the runtime will bind is one of the graph's; `%d` stands for a layer."""
    for kind in ("inputs", "outputs"):
        for role, name in (decoder.get(kind) or {}).items():
            if str(name).replace("%d", "0") not in names:
                raise _differs(f"model.decoder.{kind}.{role}", "a name in the graph", name)


def _check_token_ids(model: Mapping[str, Any], stated: Mapping[str, Any], tokenizer: Any) -> None:
    """End tokens are all the student's, and at most the tokenizer's beside; others where they are stated."""
    ends, found = _listed(stated.get("eos_token_id")), _listed(model.get("eos_token_id"))
    own = _listed(getattr(tokenizer, "eos_token_id", None))
    if not found or not set(ends) <= set(found) <= {*ends, *own}:
        expected = f"{ends}, and at most the tokenizer's {own}"
        raise _differs("model.eos_token_id", expected, model.get("eos_token_id"))
    for name in ("bos_token_id", "pad_token_id"):
        if stated.get(name) is not None:
            _expect(f"model.{name}", stated[name], model.get(name))


def _generation_config(student: Path) -> Mapping[str, Any]:
    file = student / GENERATION_CONFIG_FILE
    return read_json_mapping(file, what=GENERATION_CONFIG_FILE) if file.is_file() else {}


def _stated(generation: Mapping[str, Any]) -> dict[str, object]:
    """Token ids of the generation config, which come before the model's own."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: generation[name] for name in names if generation.get(name) is not None}


def _listed(ids: Any) -> list[Any]:
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list) else [ids]


def _expect(name: str, expected: object, found: object) -> None:
    if expected != found or isinstance(expected, bool) != isinstance(found, bool):
        raise _differs(name, expected, found)


def _differs(name: str, expected: object, found: object) -> VerificationError:
    return VerificationError(
        "the GenAI config differs from the student",
        where=f"{GENAI_CONFIG_FILE}: {name}",
        expected=expected,
        found=found,
        hint="export again",
    )
