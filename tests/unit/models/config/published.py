"""Published `config.json` files, and a tiny one."""

from __future__ import annotations

from typing import Any

from compressor.models.families import FAMILIES

_COMMON: dict[str, Any] = (
    {"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "use_cache": True}
    | {"initializer_range": 0.02, "num_attention_heads": 32, "num_hidden_layers": 32, "rms_norm_eps": 1e-05}
    | {"tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32000}
)
LLAMA_2 = (
    _COMMON
    | {
        "_name_or_path": "meta-llama/Llama-2-7b-hf",
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
    }
    | {"intermediate_size": 11008, "num_key_value_heads": 32, "pretraining_tp": 1, "torch_dtype": "float16"}
    | {"max_position_embeddings": 4096, "rope_scaling": None, "transformers_version": "4.31.0.dev0"}
)
LLAMA_3 = (
    LLAMA_2
    | {"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "torch_dtype": "bfloat16"}
    | {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "vocab_size": 128256}
    | {"intermediate_size": 14336, "num_key_value_heads": 8, "rope_theta": 500000.0}
)
LLAMA_3_1_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
MISTRAL = (
    _COMMON
    | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "transformers_version": "4.34.0.dev0",
    }
    | {"intermediate_size": 14336, "num_key_value_heads": 8}
    | {"max_position_embeddings": 32768, "rope_theta": 10000.0, "sliding_window": 4096}
)
QWEN_2 = (
    _COMMON
    | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "transformers_version": "4.43.1"}
    | {"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "vocab_size": 152064}
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28}
    | {"num_key_value_heads": 4, "rms_norm_eps": 1e-06, "max_position_embeddings": 32768}
    | {
        "max_window_layers": 28,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "use_sliding_window": False,
    }
)
QWEN_3 = (
    QWEN_2
    | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False}
    | {"head_dim": 128, "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 36}
    | {"num_key_value_heads": 8, "vocab_size": 151936}
    | {"max_window_layers": 36, "rope_scaling": None, "sliding_window": None}
)
NEMOTRON = (
    {name: value for name, value in _COMMON.items() if name != "rms_norm_eps"}
    | {"architectures": ["NemotronForCausalLM"], "model_type": "nemotron", "norm_eps": 1e-05}
    | {"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "hidden_act": "relu2"}
    | {"bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.0134, "vocab_size": 256000}
    | {"head_dim": 128, "hidden_size": 3072, "intermediate_size": 9216, "num_attention_heads": 24}
    | {"num_key_value_heads": 8, "max_position_embeddings": 4096}
    | {"partial_rotary_factor": 0.5, "rope_theta": 10000.0}
)
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-2-7b": LLAMA_2,
    "Sheared-LLaMA-1.3B": LLAMA_2
    | {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16}
    | {"num_key_value_heads": 16, "num_hidden_layers": 24, "pad_token_id": 0},
    "LLaMA-2-7B-32K": LLAMA_2 | {"rope_scaling": {"factor": 8.0, "type": "linear"}},
    "TinyLlama-1.1B": LLAMA_2 | {"hidden_size": 2048, "intermediate_size": 5632, "num_key_value_heads": 4},
    "Meta-Llama-3-8B": LLAMA_3,
    "Llama-3.1-8B": LLAMA_3 | {"max_position_embeddings": 131072, "rope_scaling": LLAMA_3_1_ROPE},
    "Llama-3.2-1B": LLAMA_3
    | {"head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"max_position_embeddings": 131072, "rope_scaling": LLAMA_3_1_ROPE | {"factor": 32.0}}
    | {"tie_word_embeddings": True},
    "Llama-3.1-Minitron-4B-Width": LLAMA_3
    | {"head_dim": 128, "hidden_size": 3072, "intermediate_size": 9216, "rope_scaling": LLAMA_3_1_ROPE}
    | {"max_position_embeddings": 131072, "num_attention_heads": 32},
    "SmolLM2-135M": LLAMA_3
    | {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    | {"is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000, "vocab_size": 49152}
    | {"num_hidden_layers": 30, "tie_word_embeddings": True, "max_position_embeddings": 8192}
    | {"transformers.js_config": {"dtype": "q4"}, "bos_token_id": 0, "eos_token_id": 0},
    "deepseek-coder-6.7b": LLAMA_2
    | {"rope_theta": 100000, "rope_scaling": {"factor": 4.0, "type": "linear"}, "vocab_size": 32256}
    | {"max_position_embeddings": 16384},
    "DeepSeek-R1-Distill-Llama-8B": LLAMA_3
    | {"max_position_embeddings": 131072, "rope_scaling": LLAMA_3_1_ROPE, "head_dim": 128},
    "Yi-6B": LLAMA_2
    | {"num_key_value_heads": 4, "rope_theta": 5000000.0, "vocab_size": 64000, "pad_token_id": 0},
    "Mistral-7B-v0.1": MISTRAL,
    "Mistral-7B-v0.3": MISTRAL | {"sliding_window": None, "rope_theta": 1000000.0, "vocab_size": 32768}
    | {"attention_dropout": 0.0, "head_dim": None},
    "Mistral-NeMo-Minitron-8B": MISTRAL
    | {"head_dim": 128, "hidden_size": 4096, "intermediate_size": 11520, "num_hidden_layers": 40}
    | {"sliding_window": None, "vocab_size": 131072},
    "MegaBeam-Mistral-7B": MISTRAL | {"sliding_window": None, "rope_theta": 25000000.0},
    "Qwen2-7B": QWEN_2,
    "Qwen2.5-7B-Instruct-1M": QWEN_2 | {"rope_theta": 10000000.0, "max_position_embeddings": 1010000},
    "Qwen2.5-7B-yarn": QWEN_2
    | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
    "DeepSeek-R1-Distill-Qwen-7B": QWEN_2
    | {"use_mrope": False, "sliding_window": 4096, "max_window_layers": 28},
    "Qwen3-8B": QWEN_3,
    "Qwen3-8B-yarn": QWEN_3
    | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}
    | {"max_position_embeddings": 131072},
    "Minitron-4B": NEMOTRON,
    "nemotron-3-8b": {k: v for k, v in NEMOTRON.items() if k != "partial_rotary_factor"}
    | {"kv_channels": 128, "rope_percent": 0.5},
}  # fmt: skip
TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 331,
}
_FIELDS: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": None},
    "nemotron": {"hidden_act": "relu2"},
    "qwen3": {"head_dim": 16},
}
FAMILY_SHAPES = {name: {**TINY, "model_type": name, **_FIELDS.get(name, {})} for name in FAMILIES}
