from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from compressor.models.config.portable import portable_config
from compressor.models.tokenizer_files import make_tokenizer_portable
from tests.tiny_models import ROPE_THETA
from tests.unit.models.config.published import LLAMA_3_1_ROPE


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, **LLAMA_3_1_ROPE}}, LLAMA_3_1_ROPE),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA_3_1_ROPE}, LLAMA_3_1_ROPE),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, None),
        ({"rope_theta": 5e5}, None),
    ],
)
def test_rope_in_both_spellings(config: dict[str, Any], scaling: dict[str, Any] | None) -> None:
    both = portable_config(config)

    assert both["rope_theta"] == 5e5
    assert both.get("rope_scaling") == scaling
    assert both["rope_parameters"] == {"rope_theta": 5e5, **(scaling or {"rope_type": "default"})}


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_in_both_spellings(key: str) -> None:
    both = portable_config({key: "bfloat16"})

    assert both["dtype"] == both["torch_dtype"] == "bfloat16"


def test_paths_of_this_machine_are_left_out() -> None:
    assert portable_config({"_name_or_path": "x", "_model_name_or_path": "/home/me/x"}) == {
        "_name_or_path": "x"
    }


def test_the_argument_is_left_alone() -> None:
    config = {"rope_theta": 5e5}
    portable_config(config)

    assert config == {"rope_theta": 5e5}


def test_saved_checkpoint_reads_alike_in_both_generations(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())

    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == ROPE_THETA
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["head_dim"] == 16


def test_saved_tokenizer_names_a_class_that_both_generations_know(
    tiny_checkpoint: Path, tiny_tokenizer: Any
) -> None:
    config = json.loads((tiny_checkpoint / "tokenizer_config.json").read_text())
    loaded = AutoTokenizer.from_pretrained(tiny_checkpoint, local_files_only=True)
    text = "the old river <|end|> é 模\n\n  keeps"

    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local", "local_files_only"} & set(config)
    assert loaded(text).input_ids == tiny_tokenizer(text).input_ids
    assert loaded.decode(loaded("the old river é").input_ids) == "the old river é"
    assert loaded.chat_template == tiny_tokenizer.chat_template


def test_named_tokenizer_classes_stay(tmp_path: Path) -> None:
    text = json.dumps({"tokenizer_class": "GPT2Tokenizer", "backend": "x"})
    (tmp_path / "tokenizer_config.json").write_text(text)
    make_tokenizer_portable(tmp_path)

    assert (tmp_path / "tokenizer_config.json").read_text() == text
