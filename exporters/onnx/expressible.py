"""What a graph for ONNX Runtime GenAI can express, by trial, and the refusal of the rest before any work.

Tried with tiny models of every family, fp32, at positions beyond the original context or window, against
transformers: the builder of 0.14.1 under transformers 4.57, and of 0.18 under transformers 5. A family's
`GenAI` says what both build right. Forms that turn every channel by one fixed frequency and factor are
built right by writing their tables into the graph (exporters/onnx/rope.py). The rest is refused: dynamic
and longrope choose their frequencies by the length of the sequence, and windows are applied to all layers,
to none, or need a cache that is never empty, depending on the builder's version.
"""

from __future__ import annotations

from compressor.models.config.class_defaults import declared_window, reads_window, value_of
from compressor.models.config.portable import portable_config
from compressor.models.families import family_of
from exporters.expressible import Expressible

FIXED = ("default", "linear", "llama3", "yarn")
_FORMAT = Expressible(what="a graph for ONNX Runtime GenAI", option="onnx")


def check_expressible(config: dict[str, object]) -> None:
    """Refuse (UnsupportedError) a model whose graph would fail or compute something else, from its config."""
    family = family_of(str(config.get("model_type")))
    if family.genai is None:
        raise _FORMAT.refusal("model_type", what=f"{family.model_type} models cannot be exported to ONNX")
    stated = config.get("architectures", [class_name(config)])
    _FORMAT.expect("architectures", stated == [class_name(config)], [class_name(config)], stated)
    form = rope_form(config)
    _FORMAT.expect("rope_scaling", form in FIXED, " or ".join(FIXED), form)
    length = value_of(config, "max_position_embeddings")
    # The builder takes these for the context's length and for a window where no class here reads them.
    _FORMAT.expect("seq_length", config.get("seq_length", length) == length, length, config.get("seq_length"))
    if reads_window(config):
        window = declared_window(config)
        _FORMAT.expect(
            "sliding_window", window is None or window >= length, f"none, or at least {length}", window
        )
    else:
        stated = config.get("sliding_window")
        _FORMAT.expect("sliding_window", stated is None, "null: this family has no windows", stated)


def class_name(config: dict[str, object]) -> str:
    """The class of transformers for a config's `model_type`: the graph builder looks at its name alone."""
    return f"{str(config['model_type']).capitalize()}ForCausalLM"


def builder_knows_rope(config: dict[str, object]) -> bool:
    """Whether the builder's own tables express a config's rope."""
    genai = family_of(str(config["model_type"])).genai
    return genai is not None and rope_form(config) in genai.rope_types


def rope_form(config: dict[str, object]) -> str:
    """The form of the rope's scaling; `default` without any."""
    scaling = portable_config(config).get("rope_scaling") or {}
    return str(scaling.get("rope_type") or scaling.get("type") or "default")
