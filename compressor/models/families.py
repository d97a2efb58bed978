"""The one table of architectures, keyed by Hugging Face `model_type`.

Everything the project knows about a family stands here: module names by role, the MLP's and norm's
kind, what may shrink, and what the model class and the runtimes demand of a shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from compressor.core.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class TensorRTLLM:
    """What TensorRT-LLM's checkpoint of a family holds besides what its tensors say.

    Attributes:
        architecture: Class name in `config.json`.
        norm_epsilon: The Hugging Face field that becomes `norm_epsilon`.
        activation: Hugging Face's `hidden_act` and TensorRT-LLM's name for it.
        mlp_inputs: Names of the gate's projection and of the input's; one for a plain MLP.
        config: Further fields of `config.json`, as they are.
        writes_rotary_fraction: Whether `rotary_pct` says which part of a head is rotated.
        writes_seq_length: Whether its decoder layer reads `seq_length`, for which it has no default.
    """

    architecture: str
    norm_epsilon: str = "rms_norm_eps"
    activation: tuple[str, str] = ("silu", "silu")
    mlp_inputs: tuple[str, ...] = ("fc", "gate")
    config: tuple[tuple[str, str | bool], ...] = (("attn_bias", False), ("mlp_bias", False))
    writes_rotary_fraction: bool = False
    writes_seq_length: bool = False


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """What a GGUF file of an architecture, which llama.cpp names as Hugging Face does, leaves unsaid.

    Attributes:
        config: Fields of the Hugging Face config that every such file stands for.
        norm_epsilon: Key of the file and the Hugging Face field of the norms' epsilon.
        rope_scalings: Kinds of `rope.scaling.type` that the Hugging Face class computes.
        pairs_neighbours: Whether q and k are stored for a rotation of neighbouring channels, and rope
            factors may stand in a tensor.
        rotates_part: Whether only a part of each head may be rotated.
    """

    config: tuple[tuple[str, object], ...]
    norm_epsilon: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    rope_scalings: tuple[str, ...] = ("linear", "yarn")
    pairs_neighbours: bool = False
    rotates_part: bool = False


@dataclass(frozen=True, kw_only=True)
class GenAI:
    """What ONNX Runtime GenAI's graph builder builds right of a family, by trial.

    Attributes:
        rope_types: Methods of rope scaling that its own tables express.
        window: The windows it leaves out rightly: of a class that has none (`absent`), of one whose window
            is switched on by a field (`switched`), or one no shorter than the context (`whole context`).
    """

    rope_types: tuple[str, ...] = ("default", "linear")
    window: Literal["absent", "switched", "whole context"] = "switched"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture. Module names are relative to the model, or to a layer where said.

    Attributes:
        norm_offset: What the norms add to their stored weight.
        qkv_has_bias: Whether q, k and v always carry a bias (o never does).
        head_norms: Norms of every query and key head, `[head_dim]`; none in most families.
        unsupported_flags: Config fields that would add tensors no rule here covers.
        activation: `hidden_act` as the rest of the project assumes it.
        norm_epsilon: The config's field of the norms' epsilon.
        rotary_fraction: Which part of a head the class rotates by default; None: always all of it.
        scales_rope_before_5: Whether the class read `rope_scaling` before transformers 5.
        window_by_layer: Whether every layer has a window, or none, by `layer_types` or its index.
        reads_layer_types: False where transformers 5 takes a config with `layer_types` for another
            architecture's.
        defaults: What the model class of both generations takes for an absent field that decides the
            computation; a dimension that depends on another one is not here.
    """

    model_type: str
    gated_mlp: bool = True
    norm_has_bias: bool = False
    norm_offset: float = 0.0
    qkv_has_bias: bool = False
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
    head_norms: tuple[str, ...] = ()
    mlp_inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down_proj: str = "mlp.down_proj"
    unsupported_flags: tuple[str, ...] = ("attention_bias", "mlp_bias")
    activation: str = "silu"
    norm_epsilon: str = "rms_norm_eps"
    rotary_fraction: float | None = None
    scales_rope_before_5: bool = True
    window_by_layer: bool = False
    reads_layer_types: bool = True
    defaults: dict[str, float | str | None] = field(default_factory=dict)
    tensorrt_llm: TensorRTLLM | None = None
    gguf: Gguf | None = None
    genai: GenAI | None = None

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """Names of a decoder layer's linear layers, relative to the layer."""
        return (self.q_proj, self.k_proj, self.v_proj, self.o_proj, *self.mlp_inputs, self.down_proj)


_QWEN_DEFAULTS: dict[str, float | str | None] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        model_type="llama",
        hidden_divisible_by_heads=True,
        defaults={"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
        tensorrt_llm=TensorRTLLM(architecture="LlamaForCausalLM"),
        gguf=Gguf(
            config=(
                ("architectures", ["LlamaForCausalLM"]),
                ("hidden_act", "silu"),
                ("mlp_bias", False),
                ("attention_bias", False),
            ),
            pairs_neighbours=True,
        ),
        genai=GenAI(rope_types=("default", "llama3"), window="absent"),
    ),
    "mistral": Family(
        model_type="mistral",
        reads_layer_types=False,
        defaults={
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        tensorrt_llm=TensorRTLLM(architecture="MistralForCausalLM"),
        genai=GenAI(window="whole context"),
    ),
    "nemotron": Family(
        model_type="nemotron",
        gated_mlp=False,
        norm_has_bias=True,
        norm_offset=1.0,
        prunable=False,
        activation="relu2",
        norm_epsilon="norm_eps",
        rotary_fraction=0.5,
        scales_rope_before_5=False,
        defaults={"hidden_act": "relu2", "norm_eps": 1e-5, "max_position_embeddings": 4096},
        mlp_inputs=("mlp.up_proj",),
        tensorrt_llm=TensorRTLLM(
            architecture="NemotronForCausalLM",
            norm_epsilon="norm_eps",
            activation=("relu2", "squared-relu"),
            mlp_inputs=("fc",),
            config=(("bias", False), ("gpt_variant", "nemotron")),
            writes_rotary_fraction=True,
        ),
        gguf=Gguf(
            config=(
                ("architectures", ["NemotronForCausalLM"]),
                ("hidden_act", "relu2"),
                ("mlp_bias", False),
                ("attention_bias", False),
            ),
            norm_epsilon=("attention.layer_norm_epsilon", "norm_eps"),
            rope_scalings=("linear",),
            rotates_part=True,
        ),
    ),
    "qwen2": Family(
        model_type="qwen2",
        qkv_has_bias=True,
        window_by_layer=True,
        defaults=_QWEN_DEFAULTS,
        tensorrt_llm=TensorRTLLM(
            architecture="Qwen2ForCausalLM",
            config=(("attn_bias", True), ("mlp_bias", False), ("qwen_type", "qwen2")),
            writes_seq_length=True,
        ),
        gguf=Gguf(
            config=(
                ("architectures", ["Qwen2ForCausalLM"]),
                ("hidden_act", "silu"),
                ("use_sliding_window", False),
            )
        ),
        genai=GenAI(),
    ),
    "qwen3": Family(
        model_type="qwen3",
        window_by_layer=True,
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
        head_norms=("self_attn.q_norm", "self_attn.k_norm"),
        tensorrt_llm=TensorRTLLM(
            architecture="Qwen3ForCausalLM",
            config=(("attn_bias", False), ("mlp_bias", False), ("qwen_type", "qwen3")),
            writes_seq_length=True,
        ),
        gguf=Gguf(
            config=(
                ("architectures", ["Qwen3ForCausalLM"]),
                ("hidden_act", "silu"),
                ("use_sliding_window", False),
                ("attention_bias", False),
            )
        ),
        genai=GenAI(),
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
            hint="another architecture needs rules of its own, even where its name is similar",
        )
    return FAMILIES[model_type]
