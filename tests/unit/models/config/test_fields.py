"""Which fields of a config.json are computed as they say: transformers' own classes, published configs."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from compressor.core.errors import UnsupportedError
from compressor.models.config import fields as config_fields
from compressor.models.config.fields import check_config, layer_types
from compressor.models.config.portable import portable_config
from compressor.models.dims import dims_of_config
from compressor.models.families import FAMILIES
from tests.rope_forms import FIRST_WITH_ROPE_PARAMETERS, GENERATION
from tests.unit.models.config.published import FAMILY_SHAPES, PUBLISHED, TINY

WHERE = "config.json"
VOCABULARY = 331
SLIDING = "sliding_attention"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_without_a_word(name: str) -> None:
    config = PUBLISHED[name]
    dims, warnings = check_config(config, where=WHERE)

    assert warnings == ()
    assert dims.hidden_size == config["hidden_size"]
    assert portable_config(portable_config(config)) == portable_config(config)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_of_the_installed_class_is_checked_or_known(model_type: str) -> None:
    """transformers' own list of fields: a release that reads a new one fails here."""
    made = CONFIG_MAPPING[model_type]
    names = {name for name in inspect.signature(made.__init__).parameters if name not in ("self", "kwargs")}
    if GENERATION >= FIRST_WITH_ROPE_PARAMETERS:
        names |= {field.name for field in fields(made)}
    names |= {name for name in made().to_dict() if not name.startswith("_")}

    known = config_fields._CHECKED | config_fields._WITHOUT_EFFECT
    assert len(names) > 20
    assert names - known == set()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_the_installed_class(model_type: str) -> None:
    made = CONFIG_MAPPING[model_type]()

    for name, value in FAMILIES[model_type].defaults.items():
        assert getattr(made, name) == value, name
    assert made.hidden_act == FAMILIES[model_type].activation
    theta = made.rope_parameters if GENERATION >= FIRST_WITH_ROPE_PARAMETERS else made.to_dict()
    assert theta["rope_theta"] == 10_000
    assert theta.get("partial_rotary_factor") == FAMILIES[model_type].rotary_fraction


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, True) for name in ("attention_bias", "mlp_bias", "use_qk_norm", "qk_layernorm", "alibi")),
        *((name, True) for name in ("rope_interleaved", "use_parallel_residual", "attn_temperature_tuning")),
        *(("hidden_act", value) for value in ("gelu", None)),
        ("hidden_activation", "gelu_pytorch_tanh"),
        ("logit_scale", 0.0625),
        ("logits_scaling", 8.0),
        ("residual_multiplier", 0.22),
        ("embedding_multiplier", 12),
        ("attention_multiplier", 0.015625),
        ("scale_emb", 12),
        ("scale_depth", 1.4),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("clip_qkv", 8.0),
        *((name, 64) for name in ("num_local_experts", "num_experts", "n_routed_experts")),
        ("query_pre_attn_scalar", 256),
        ("no_rope_layers", [1, 1, 1, 0]),
        ("no_rope_layer_interval", 4),
        *(("partial_rotary_factor", value) for value in (0.5, 1e308)),
        ("rope_percent", 0.25),
        ("sliding_window", 4096),
        ("layer_types", ["sliding_attention"] * 4),
        ("attention_chunk_size", 8192),
        ("kv_lora_rank", 512),
        ("is_causal", False),
        ("per_layer_config", {"0": {}}),
        ("block_configs", [{}]),
        ("pruned_heads", {"0": [1]}),
        *(("rms_norm_eps", value) for value in ("1e-5", 0, 10**400)),
        *((name, 10**400) for name in ("layer_norm_eps", "rope_theta")),
        ("rope_base", -(10**400)),
        ("rope_scaling", {"rope_type": "linear", "factor": 10**400}),
        *(("architectures", value) for value in (5, True, 10**400, "LlamaForCausalLM", [7], {})),
        ("tie_word_embeddings", "true"),
        ("max_position_embeddings", "4096"),
        ("hidden_size", 66),
        ("num_key_value_heads", 3),
        ("head_dim", 15),
    ],
)
def test_a_field_that_asks_for_another_computation_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UnsupportedError) as caught:
        check_config({**TINY, field: value}, where=WHERE)

    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logits_scaling", 1.0),
        ("residual_multiplier", 1),
        ("attention_multiplier", 0.25),
        ("final_logit_softcapping", None),
        ("num_experts", 0),
        ("query_pre_attn_scalar", 16),
        ("use_qk_norm", False),
        ("no_rope_layers", []),
        ("layer_types", ["full_attention"] * 4),
        ("partial_rotary_factor", 1.0),
        ("pretraining_tp", 4),
        ("hidden_act", "swish"),
    ],
)
def test_a_neutral_value_is_not_refused(field: str, value: object) -> None:
    assert check_config({**TINY, field: value}, where=WHERE)[0].hidden_size == 64


@pytest.mark.parametrize("padding", [VOCABULARY, VOCABULARY + 5, -VOCABULARY - 1])
def test_a_padding_id_beyond_the_embedding_is_refused_as_the_class_does(padding: int) -> None:
    with pytest.raises(UnsupportedError, match="pad_token_id"):
        check_config({**TINY, "pad_token_id": padding}, where=WHERE)
    with pytest.raises(AssertionError, match=r"[Pp]adding_idx"):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY, pad_token_id=padding))


@pytest.mark.parametrize("padding", [None, -1, 0, VOCABULARY - 1])
def test_a_padding_id_that_the_class_takes_is_taken(padding: int | None) -> None:
    check_config({**TINY, "pad_token_id": padding}, where=WHERE)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY, pad_token_id=padding))


def test_what_transformers_5_reads_as_another_class_is_refused() -> None:
    config = FAMILY_SHAPES["mistral"] | {"layer_types": ["sliding_attention"] * 4, "sliding_window": 8}
    with pytest.raises(UnsupportedError, match="layer_types"):
        check_config(config, where=WHERE)


def test_a_null_where_the_class_wants_a_number_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="head_dim"):
        check_config({**FAMILY_SHAPES["qwen3"], "head_dim": None}, where=WHERE)
    check_config({**TINY, "head_dim": None}, where=WHERE)


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("token", [VOCABULARY, 10**9, 10**400, [VOCABULARY], [0, VOCABULARY + 1]])
def test_an_id_that_no_token_has_is_refused(field: str, token: object) -> None:
    with pytest.raises(UnsupportedError, match=field):
        check_config({**TINY, field: token}, where=WHERE)


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("token", [None, -1, 0, VOCABULARY - 1, [], [0, VOCABULARY - 1]])
def test_an_id_of_a_token_or_of_none_is_taken(field: str, token: object) -> None:
    assert check_config({**TINY, field: token}, where=WHERE)[1] == ()


def test_other_fields_are_named_in_a_warning() -> None:
    config = {**TINY, "my_note": "x", "some_threshold": 0.3, "architectures": ["Phi3ForCausalLM"]}
    warnings = check_config(config, where=WHERE)[1]

    assert "my_note, some_threshold" in warnings[0]
    assert "Phi3ForCausalLM" in warnings[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 8, "use_sliding_window": False},
        {"sliding_window": 8, "max_window_layers": 2},
        {"sliding_window": None, "use_sliding_window": True},
    ],
)
def test_mistral_has_its_window_in_every_layer_or_in_none(changes: dict[str, Any]) -> None:
    """Its class knows neither the switch nor the first layer."""
    with pytest.raises(UnsupportedError, match="window"):
        check_config(FAMILY_SHAPES["mistral"] | changes, where=WHERE)
    whole = FAMILY_SHAPES["mistral"] | {"sliding_window": 8, "use_sliding_window": True}
    assert check_config(whole | {"max_window_layers": 0}, where=WHERE)[1] == ()


@pytest.mark.parametrize(
    "name",
    [
        *("my_note", "fp16", "use_flash_attn", "seq_length", "context_window", "bias_dropout_fusion"),
        *("init_scale", "loss_scale", "clip_grad", "emb_dropout", "n_positions", "vocab_size_multiple"),
    ],
)
def test_a_field_of_another_kind_is_only_named(name: str) -> None:
    warnings = check_config({**TINY, name: 4096}, where=WHERE)[1]
    assert len(warnings) == 1
    assert name in warnings[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("num_hidden_layers", value) for value in (10**9, True, 4.0)),
        *(("vocab_size", value) for value in (10**12, "331", -1)),
        ("hidden_size", 10**400),
        ("intermediate_size", 0),
        ("head_dim", [16]),
        ("num_attention_heads", {}),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_counted(field: str, value: object) -> None:
    with pytest.raises(UnsupportedError, match=f"no usable {field}"):
        dims_of_config({**TINY, field: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 66},
        {"hidden_size": 72},
        {"hidden_size": 66, "head_dim": 16},
        {"hidden_size": 66, "head_dim": 16, "model_type": "mistral"},
        {"hidden_size": 66, "head_dim": 16, "model_type": "qwen3"},
        {"hidden_size": 66, "head_dim": 16, "model_type": "nemotron", "hidden_act": "relu2"},
    ],
)
@pytest.mark.skipif(GENERATION < FIRST_WITH_ROPE_PARAMETERS, reason="the classes refuse since 5")
def test_a_shape_is_refused_where_the_class_refuses_it(changes: dict[str, Any]) -> None:
    config = TINY | changes
    fields_of = {name: value for name, value in config.items() if name != "model_type"}

    def refuses(work: Any) -> bool:
        try:
            work()
        except Exception:  # noqa: BLE001 - the class raises what it likes
            return True
        return False

    by_class = refuses(lambda: AutoConfig.for_model(config["model_type"], **fields_of))
    assert refuses(lambda: check_config(config, where=WHERE)) == by_class


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 8},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 1},
        {"use_sliding_window": True},
        {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": [SLIDING, "full_attention"] * 2},
    ],
)
def test_windows_by_layer_are_those_of_the_class(model_type: str, changes: dict[str, Any]) -> None:
    config = {**TINY, "model_type": model_type, "head_dim": 16, **changes}
    fields_of = {name: value for name, value in config.items() if name != "model_type"}
    made = AutoConfig.for_model(model_type, **fields_of)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    dims = check_config(config, where=WHERE)[0]

    found = layer_types(config, dims) or ("full_attention",) * 4
    assert list(found) == made.layer_types
    has_window = [layer.self_attn.sliding_window is not None for layer in model.model.layers]
    assert [kind == "sliding_attention" for kind in found] == has_window


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["sliding_attention"] * 4},
        {"layer_types": ["chunked_attention"] * 4, "use_sliding_window": True, "sliding_window": 8},
        {"layer_types": ["full_attention"] * 3},
        {"use_sliding_window": True, "sliding_window": -1},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": "2"},
    ],
)
def test_windows_that_the_class_cannot_have_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError):
        check_config({**TINY, "model_type": "qwen2", **changes}, where=WHERE)
