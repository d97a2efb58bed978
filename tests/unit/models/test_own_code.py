"""A model with code of its own beside the weights: what is made of it needs none of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from compressor.core.errors import UnsupportedError
from compressor.models.checkpoint import read_config
from compressor.models.load import copy_checkpoint, load_model
from compressor.models.source import open_checkpoint, resolve_source
from compressor.models.tokenizer import TOKENIZER_TEXTS, load_tokenizer
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.pruning.slicing import slice_checkpoint
from exporters.checks.config import check_config, check_tokenizer_files
from tests.plans import random_plan
from tests.tiny_models import edit_json, make_model, save_checkpoint
from tests.unit.models.conftest import as_older_files

CLASS = "from transformers import {base}\n\n\nclass {name}({base}):\n    pass\n"
MODELLING = """from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
FILES = {
    "configuration_own.py": CLASS.format(name="OwnConfig", base="LlamaConfig"),
    "modeling_own.py": MODELLING,
    "tokenization_own.py": CLASS.format(name="OwnTokenizer", base="PreTrainedTokenizerFast"),
}
AUTO_MAP = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
}
TOKENIZER_MAP = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
Make = Callable[[Path, Path], None]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose config, model and tokenizer are classes of its own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = save_checkpoint(tmp_path / "own", make_model())
    for name, text in FILES.items():
        (directory / name).write_text(text)
    edit_json(directory / "config.json", auto_map=AUTO_MAP)
    edit_json(directory / "tokenizer_config.json", auto_map=TOKENIZER_MAP)
    return directory


def sliced(source: Path, out: Path) -> None:
    slice_checkpoint(source, random_plan(source), out, dtype=torch.float32)
    copy_tokenizer(source, out)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 60)[None], use_cache=False).logits


@pytest.mark.parametrize("make", [sliced, copy_checkpoint])
@pytest.mark.parametrize("trusted", [True, False])
def test_what_is_made_of_it_loads_with_plain_transformers(
    own: Path, make: Make, trusted: bool, tmp_path: Path
) -> None:
    source, out = resolve_source(str(own)), tmp_path / "out"
    warnings: list[str] = []
    opened = open_checkpoint(
        source, tmp_path, dtype="float32", trust_remote_code=trusted, on_warning=warnings.append
    )
    out.mkdir()
    make(opened.path, out)
    original = load_model(opened.path, dtype="float32", device="cpu", trust_remote_code=trusted)
    # Whoever trusts the original's code trusts that of what was made of it, which has none.
    made = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, local_files_only=True, trust_remote_code=trusted
    )

    assert type(original).__name__ == ("OwnForCausalLM" if trusted else "LlamaForCausalLM")
    assert type(made) is LlamaForCausalLM
    assert torch.equal(logits(made), logits(original))
    assert not list(out.glob("*.py"))
    assert "auto_map" not in read_config(out)
    assert any("auto_map" in warning for warning in warnings)
    check_config(out, own)
    check_tokenizer_files(out, own)
    found = AutoTokenizer.from_pretrained(out, local_files_only=True, trust_remote_code=trusted)
    for text in TOKENIZER_TEXTS:
        assert found(text).input_ids == load_tokenizer(own)(text).input_ids


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("form", ["fast", "slow", "list"])
def test_a_tokenizer_that_is_only_code_is_refused_before_work(
    own: Path, trusted: bool, form: str, tmp_path: Path
) -> None:
    as_older_files(own)
    name = "tokenization_own.OwnTokenizer"
    maps = {"fast": {"AutoTokenizer": [None, name]}, "slow": {"AutoTokenizer": [name, None]}}
    edit_json(own / "tokenizer_config.json", auto_map=maps.get(form, [name, None]))

    for work in (
        lambda: open_checkpoint(
            resolve_source(str(own)), tmp_path, dtype="float32", trust_remote_code=trusted
        ),
        lambda: load_tokenizer(own, trust_remote_code=trusted),
        lambda: copy_tokenizer(own, tmp_path),
    ):
        with pytest.raises(UnsupportedError, match="code of the model's own") as caught:
            work()
        assert caught.value.exit_code == 3
        assert "tokenizer.json" in str(caught.value.hint)


def test_the_source_keeps_its_code(own: Path, tmp_path: Path) -> None:
    before = Path(shutil.copytree(own, tmp_path / "before"))
    out = tmp_path / "out"
    out.mkdir()
    copy_checkpoint(own, out)
    for file in before.iterdir():
        assert (own / file.name).read_bytes() == file.read_bytes()
