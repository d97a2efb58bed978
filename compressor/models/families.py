"""The one table of architectures, keyed by Hugging Face `model_type`.

Everything the project knows about a family stands here: module names by role, the MLP's and norm's
kind, what may shrink, and what the model class and the runtimes demand of a shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from compressor.errors import UnsupportedError, nearest


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture. Module names are relative to the model, or to a layer where said."""

    model_type: str
    gated_mlp: bool = True
    norm_has_bias: bool = False
    prunable: bool = True
    hidden_divisible_by_heads: bool = False
    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    q_proj: str = "self_attn.q_proj"
    k_proj: str = "self_attn.k_proj"
    v_proj: str = "self_attn.v_proj"
    o_proj: str = "self_attn.o_proj"
    mlp_inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down_proj: str = "mlp.down_proj"
    runtimes: frozenset[str] = field(default_factory=lambda: frozenset({"huggingface"}))

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """Names of a decoder layer's linear layers, relative to the layer."""
        return (self.q_proj, self.k_proj, self.v_proj, self.o_proj, *self.mlp_inputs, self.down_proj)


FAMILIES: dict[str, Family] = {
    "llama": Family(
        model_type="llama",
        hidden_divisible_by_heads=True,
        runtimes=frozenset({"huggingface", "onnxruntime-genai", "tensorrt-llm", "vllm"}),
    ),
    "mistral": Family(
        model_type="mistral",
        prunable=False,
        runtimes=frozenset({"huggingface", "onnxruntime-genai", "tensorrt-llm", "vllm"}),
    ),
    "nemotron": Family(
        model_type="nemotron",
        gated_mlp=False,
        norm_has_bias=True,
        prunable=False,
        mlp_inputs=("mlp.up_proj",),
        runtimes=frozenset({"huggingface", "onnxruntime-genai", "vllm"}),
    ),
}


def family_of(model_type: str) -> Family:
    """The table's row for a Hugging Face `model_type`.

    Raises:
        UnsupportedError: when there is none.
    """
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"model type {model_type!r} is not supported",
            expected=" or ".join(sorted(FAMILIES)),
            hint=nearest(model_type, FAMILIES),
        )
    return FAMILIES[model_type]
