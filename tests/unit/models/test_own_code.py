"""A model with code of its own beside the weights: what is made of it needs none of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from compressor.core.errors import UnsupportedError
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.load import copy_checkpoint, load_model
from compressor.models.source import open_checkpoint, resolve_source
from compressor.models.tokenizer import TOKENIZER_TEXTS, load_tokenizer
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.pruning.importance import random_importance
from compressor.pruning.plan import make_plan
from compressor.pruning.slicing import slice_checkpoint
from exporters.checks.config import check_config, check_tokenizer_files
from tests.tiny_models import make_model, save_checkpoint

CONFIGURATION = "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    pass\n"
MODELLING = """from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
TOKENISATION = """from transformers import PreTrainedTokenizerFast


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
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
    files = {"configuration_own.py": CONFIGURATION, "modeling_own.py": MODELLING}
    for name, text in {**files, "tokenization_own.py": TOKENISATION}.items():
        (directory / name).write_text(text)
    change(directory / "config.json", auto_map=AUTO_MAP)
    change(directory / "tokenizer_config.json", auto_map=TOKENIZER_MAP)
    return directory


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def sliced(source: Path, out: Path) -> None:
    dims = dims_of_config(read_config(source))
    plan = make_plan(dims, dims, random_importance(dims, seed=3), importance="random")
    slice_checkpoint(source, plan, out, dtype=torch.float32)
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
    document = json.loads((own / "tokenizer.json").read_text())
    (own / "tokenizer.json").unlink()
    (own / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    (own / "merges.txt").write_text("\n".join(" ".join(pair) for pair in document["model"]["merges"]))
    name = "tokenization_own.OwnTokenizer"
    maps = {"fast": {"AutoTokenizer": [None, name]}, "slow": {"AutoTokenizer": [name, None]}}
    change(own / "tokenizer_config.json", auto_map=maps.get(form, [name, None]))

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
