"""The one table of architectures, keyed by Hugging Face `model_type`.

Everything the project knows about an architecture stands here: its weights with their axes, and what the
model class and the runtimes demand of a shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from compressor.core.errors import UnsupportedError
from compressor.models.axes import Weight


@dataclass(frozen=True, kw_only=True)
class TensorRTLLM:
    """What TensorRT-LLM's checkpoint of a family holds besides what its tensors say.

    Attributes:
        architecture: Class name in `config.json`.
        norm_epsilon: The Hugging Face field that becomes `norm_epsilon`.
        activation: Hugging Face's `hidden_act` and TensorRT-LLM's name for it.
        mlp_inputs: Names of the MLP's input projections, in the order of the family's weights.
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
        off: Fields of the Hugging Face config that are false for every such file.
        norm_epsilon: Key of the file and the Hugging Face field of the norms' epsilon.
        rope_scalings: Kinds of `rope.scaling.type` that the Hugging Face class computes.
        pairs_neighbours: Whether q and k are stored for a rotation of neighbouring channels, and rope
            factors may stand in a tensor.
        rotates_part: Whether only a part of each head may be rotated.
    """

    off: tuple[str, ...] = ()
    norm_epsilon: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    rope_scalings: tuple[str, ...] = ("linear", "yarn")
    pairs_neighbours: bool = False
    rotates_part: bool = False


@dataclass(frozen=True, kw_only=True)
class GenAI:
    """What ONNX Runtime GenAI's graph builder builds right of a family, by trial.

    `rope_types` are the methods of rope scaling that its own tables express.
    """

    rope_types: tuple[str, ...] = ("default", "linear")


def _norm(part: str, module: str, *, axis: str = "hidden", bias: bool = False) -> tuple[Weight, ...]:
    kinds = ("weight", "bias") if bias else ("weight",)
    return tuple(Weight(f"{module}.{kind}", {part: axis}) for kind in kinds)


def _input(module: str, rows: dict[str, str], reads: str) -> Weight:
    """A projection of the hidden channels."""
    return Weight(f"{module}.weight", rows, columns="hidden", reads=reads)


_QUERY_KEY_VALUE = (
    _input("self_attn.q_proj", {"q": "heads"}, "attention_norm"),
    _input("self_attn.k_proj", {"k": "kv_heads"}, "attention_norm"),
    _input("self_attn.v_proj", {"v": "kv_heads"}, "attention_norm"),
)
_OUTPUT = (Weight("self_attn.o_proj.weight", {"o": "hidden"}, columns="heads", reads="attention"),)
_GATE = (_input("mlp.gate_proj", {"gate": "intermediate"}, "mlp_norm"),)
_UP = (_input("mlp.up_proj", {"up": "intermediate"}, "mlp_norm"),)
_DOWN = (Weight("mlp.down_proj.weight", {"down": "hidden"}, columns="intermediate", reads="activation"),)
_NORMS = (*_norm("attention_norm", "input_layernorm"), *_norm("mlp_norm", "post_attention_layernorm"))
_LLAMA = (*_QUERY_KEY_VALUE, *_OUTPUT, *_GATE, *_UP, *_DOWN, *_NORMS)
_EMBEDDING = (Weight("model.embed_tokens.weight", {"embedding": "vocab"}, columns="hidden"),)
_HEAD = (_input("lm_head", {"head": "vocab"}, "final_norm"),)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture.

    Attributes:
        layer: Every weight of a decoder layer, named relative to the layer; linear layers in forward order.
        network: Every weight outside the layers; a tied model has no `head`.
        layers: Name of the list of decoder layers.
        hidden_divisible_by_heads: Whether the class demands a hidden size that is a multiple of the heads.
        prunable: Whether the model can be pruned, and not only planned.
        rotatable: Whether the stream can be rotated: it is only added to, and only read through norms that
            divide it by its root mean square and multiply it with their weight.
        norm_offset: What the norms add to their stored weight.
        unsupported_flags: Config fields that would add tensors the lists here do not hold.
        activation: `hidden_act` as the rest of the project assumes it.
        norm_epsilon: The config's field of the norms' epsilon.
        rotary_fraction: Which part of a head the class rotates by default; None: always all of it.
        supports_rope_scaling: Whether models with a scaled rope are supported.
        scales_rope_before_5: Whether the class read `rope_scaling` before transformers 5.
        window_by_layer: Whether every layer has a window, or none, by `layer_types` or its index.
        reads_layer_types: False where transformers 5 takes a config with `layer_types` for another
            architecture's.
        defaults: What the model class of both generations takes for an absent field that decides the
            computation; a dimension that depends on another one is not here.
    """

    model_type: str
    layer: tuple[Weight, ...] = _LLAMA
    network: tuple[Weight, ...] = (*_EMBEDDING, *_norm("final_norm", "model.norm"), *_HEAD)
    layers: str = "model.layers"
    hidden_divisible_by_heads: bool = False
    prunable: bool = True
    rotatable: bool = False
    norm_offset: float = 0.0
    unsupported_flags: tuple[str, ...] = ("attention_bias", "mlp_bias")
    activation: str = "silu"
    norm_epsilon: str = "rms_norm_eps"
    rotary_fraction: float | None = None
    supports_rope_scaling: bool = True
    scales_rope_before_5: bool = True
    window_by_layer: bool = False
    reads_layer_types: bool = True
    defaults: dict[str, float | str | None] = field(default_factory=dict)
    tensorrt_llm: TensorRTLLM | None = None
    gguf: Gguf | None = None
    genai: GenAI | None = None

    def find(self, part: str, kind: str = "weight") -> Weight | None:
        """The weight or bias that holds a part, or None where the architecture has none."""
        found = (w for w in (*self.layer, *self.network) if part in w.rows and w.kind == kind)
        return next(found, None)

    def module(self, part: str) -> str:
        """Name of the module that holds a part, relative to the layer or to the model."""
        weight = self.find(part)
        assert weight is not None, f"{self.model_type} has no {part}"
        return weight.module

    @property
    def linears(self) -> tuple[Weight, ...]:
        """The matrices of a decoder layer."""
        return tuple(weight for weight in self.layer if weight.columns is not None)

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """Names of a decoder layer's linear layers, relative to the layer."""
        return tuple(weight.module for weight in self.linears)

    @property
    def sharing_input(self) -> tuple[tuple[str, ...], ...]:
        """The linear layers, those with one input together."""
        groups: dict[str | None, list[str]] = {}
        for weight in self.linears:
            groups.setdefault(weight.reads, []).append(weight.module)
        return tuple(tuple(group) for group in groups.values())

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP multiplies its activation with a second projection."""
        return self.find("gate") is not None

    @property
    def norm_has_bias(self) -> bool:
        """Whether the norms over hidden channels are layer norms."""
        return self.find("final_norm", "bias") is not None

    @property
    def qkv_has_bias(self) -> bool:
        """Whether q, k and v carry a bias."""
        return self.find("q", "bias") is not None

    @property
    def has_head_norms(self) -> bool:
        """Whether every query and key head has a norm."""
        return self.find("q_norm") is not None

    @property
    def embedding(self) -> str:
        """Name of the token embedding's module."""
        return self.module("embedding")

    @property
    def final_norm(self) -> str:
        """Name of the norm before the LM head."""
        return self.module("final_norm")

    @property
    def lm_head(self) -> str:
        """Name of the LM head's module."""
        return self.module("head")


_QWEN_DEFAULTS: dict[str, float | str | None] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        model_type="llama",
        rotatable=True,
        hidden_divisible_by_heads=True,
        defaults={"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
        tensorrt_llm=TensorRTLLM(architecture="LlamaForCausalLM"),
        gguf=Gguf(off=("attention_bias", "mlp_bias"), pairs_neighbours=True),
        genai=GenAI(rope_types=("default", "llama3")),
    ),
    "mistral": Family(
        model_type="mistral",
        rotatable=True,
        reads_layer_types=False,
        defaults={
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        tensorrt_llm=TensorRTLLM(architecture="MistralForCausalLM"),
        genai=GenAI(),
    ),
    "nemotron": Family(
        model_type="nemotron",
        layer=(
            *(*_QUERY_KEY_VALUE, *_OUTPUT, *_UP, *_DOWN),
            *_norm("attention_norm", "input_layernorm", bias=True),
            *_norm("mlp_norm", "post_attention_layernorm", bias=True),
        ),
        network=(*_EMBEDDING, *_norm("final_norm", "model.norm", bias=True), *_HEAD),
        norm_offset=1.0,
        prunable=False,
        activation="relu2",
        norm_epsilon="norm_eps",
        rotary_fraction=0.5,
        scales_rope_before_5=False,
        defaults={"hidden_act": "relu2", "norm_eps": 1e-5, "max_position_embeddings": 4096},
        tensorrt_llm=TensorRTLLM(
            architecture="NemotronForCausalLM",
            norm_epsilon="norm_eps",
            activation=("relu2", "squared-relu"),
            mlp_inputs=("fc",),
            config=(("bias", False), ("gpt_variant", "nemotron")),
            writes_rotary_fraction=True,
        ),
        gguf=Gguf(
            off=("attention_bias", "mlp_bias"),
            norm_epsilon=("attention.layer_norm_epsilon", "norm_eps"),
            rope_scalings=("linear",),
            rotates_part=True,
        ),
    ),
    "phi3": Family(
        model_type="phi3",
        rotatable=True,
        layer=(
            _input("self_attn.qkv_proj", {"q": "heads", "k": "kv_heads", "v": "kv_heads"}, "attention_norm"),
            *_OUTPUT,
            _input("mlp.gate_up_proj", {"gate": "intermediate", "up": "intermediate"}, "mlp_norm"),
            *_DOWN,
            *_NORMS,
        ),
        rotary_fraction=1.0,
        # The class takes other methods for longrope, which it reads from fields that contradict each other.
        supports_rope_scaling=False,
        defaults={
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "sliding_window": None,
        },
    ),
    "qwen2": Family(
        model_type="qwen2",
        rotatable=True,
        layer=(
            *_LLAMA,
            Weight("self_attn.q_proj.bias", {"q": "heads"}),
            Weight("self_attn.k_proj.bias", {"k": "kv_heads"}),
            Weight("self_attn.v_proj.bias", {"v": "kv_heads"}),
        ),
        window_by_layer=True,
        defaults=_QWEN_DEFAULTS,
        tensorrt_llm=TensorRTLLM(
            architecture="Qwen2ForCausalLM",
            config=(("attn_bias", True), ("mlp_bias", False), ("qwen_type", "qwen2")),
            writes_seq_length=True,
        ),
        gguf=Gguf(off=("use_sliding_window",)),
        genai=GenAI(),
    ),
    "qwen3": Family(
        model_type="qwen3",
        rotatable=True,
        layer=(
            *_LLAMA,
            *_norm("q_norm", "self_attn.q_norm", axis="head_dim"),
            *_norm("k_norm", "self_attn.k_norm", axis="head_dim"),
        ),
        window_by_layer=True,
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
        tensorrt_llm=TensorRTLLM(
            architecture="Qwen3ForCausalLM",
            config=(("attn_bias", False), ("mlp_bias", False), ("qwen_type", "qwen3")),
            writes_seq_length=True,
        ),
        gguf=Gguf(off=("attention_bias", "use_sliding_window")),
        genai=GenAI(),
    ),
}


def family_of(model_type: str) -> Family:
    """The table's row for a Hugging Face `model_type`; an UnsupportedError where there is none."""
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"model type {model_type!r} is not supported",
            expected=" or ".join(sorted(FAMILIES)),
            hint="use a model of one of the expected types; similar names do not mean the same architecture",
        )
    return FAMILIES[model_type]
