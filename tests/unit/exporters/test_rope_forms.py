"""Every family and rope form through the writers, against plain transformers on the original directory.

A form is built or written right, at positions beyond the original context, or refused from the config
alone. Each graph of the covering set goes through the builder as an export does; the whole of it is for
`make oracles`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.core.console import Console
from compressor.core.errors import UnsupportedError
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.families import family_of
from compressor.recipe.recipe import Export
from exporters.onnx.attributes import check_attributes
from exporters.onnx.runtime import OnnxModel
from exporters.onnx.weights import compare_weights
from exporters.registry import exporter_of
from exporters.tensorrt_llm.config import Parallelism
from exporters.tensorrt_llm.reader import load_trtllm_model
from exporters.verification.logits import VerifyOptions
from tests.rope_forms import (
    CONTEXT,
    LARGEST_DIFFERENCE,
    ORIGINAL_CONTEXT,
    ROPE_CASES,
    RopeForm,
    RopeModel,
    case_name,
    largest_difference,
    make_rope_model,
    plain_logits,
)
from tests.unit.exporters.tensorrt_llm.conftest import write

TENSORRT_LLM = ("default", "linear", "llama3")
GRAPHS = ("default", "linear", "llama3", "yarn")
# One graph per family and method that the builder, or this project, makes the tables of.
COVERING = {
    ("llama", "llama3-rope_type"),
    ("llama", "linear-rope_type"),
    ("llama", "default-absent"),
    ("mistral", "llama3-rope_type"),
    ("qwen2", "yarn-type"),
    ("qwen3", "linear-rope_type"),
}


def round_weights(model: RopeModel) -> torch.Tensor:
    """Make the original's weights bfloat16 numbers, in float32; returns plain transformers' logits of it."""
    file = model.directory / "model.safetensors"
    norms = 1.0 if model.family == "nemotron" else 0.0  # its checkpoint stores norms with one added
    rounded = {
        name: (tensor + norms * name.endswith("norm.weight")).bfloat16().float()
        - norms * name.endswith("norm.weight")
        for name, tensor in load_file(file).items()
    }
    save_file(rounded, file, metadata={"format": "pt"})
    return plain_logits(model.directory, model.token_ids)


def write_graph(model: RopeModel, out_dir: Path, length: int) -> torch.Tensor:
    """The fp32 graph's logits of the first tokens of the model's prompt."""
    out_dir.mkdir()
    exporter_of("onnx").write(model.directory, out_dir, VerifyOptions(console=Console()))
    graph = OnnxModel(out_dir, dims_of_config(read_config(model.directory)))
    return graph.logits(model.token_ids[0, :length].tolist())


def is_refused(model: RopeModel, name: str) -> bool:
    """Whether an exporter refuses the config alone, for its rope."""
    try:
        exporter_of(name).check(read_config(model.directory), Export(), None)  # type: ignore[index]
    except UnsupportedError as error:
        return "rope" in str(error) or "model_type" in str(error)
    return False


@pytest.mark.parametrize(("family", "form"), ROPE_CASES, ids=case_name)
def test_a_rope_form_is_written_right_or_refused(tmp_path: Path, family: str, form: RopeForm) -> None:
    model = make_rope_model(tmp_path / "source", family, form)
    assert is_refused(model, "onnx") == (form.method not in GRAPHS or family_of(family).genai is None)
    if form.method not in TENSORRT_LLM or family_of(family).tensorrt_llm is None:
        assert is_refused(model, "tensorrt-llm")
        with pytest.raises(UnsupportedError, match=r"rope_scaling|model_type"):
            write(model.directory, tmp_path / "refused", precision="bf16", parallelism=Parallelism())
        assert list((tmp_path / "refused").iterdir()) == []
        return
    expected = round_weights(model)
    made = write(model.directory, tmp_path / "made", precision="bf16", parallelism=Parallelism(tp_size=2))
    found = load_trtllm_model(made, device="cpu")(model.token_ids, use_cache=False).logits
    assert largest_difference(found, expected) <= LARGEST_DIFFERENCE
    assert json.loads((made / "config.json").read_text())["rotary_base"] in (5_000.0, 10_000.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "form"), [case for case in ROPE_CASES if (case[0], str(case[1])) in COVERING], ids=case_name
)
def test_a_graph_computes_the_original_beyond_its_context(
    tmp_path: Path, family: str, form: RopeForm
) -> None:
    model = make_rope_model(tmp_path / "source", family, form)
    found = write_graph(model, tmp_path / "made", CONTEXT)
    assert CONTEXT > ORIGINAL_CONTEXT
    assert largest_difference(found, model.logits[0, :CONTEXT]) <= LARGEST_DIFFERENCE
    # What `verify` reads from the graph is what the builder, another program, made of every family.
    dims = dims_of_config(read_config(model.directory))
    # An epsilon of two norms a layer and the last, and three attributes of every attention; q, k and v
    # joined, o, gate, up, down and two norms a layer, the last norm, the embedding and the head.
    layers = dims.num_hidden_layers
    assert check_attributes(tmp_path / "made", model.directory, dims) >= (2 * layers + 1) + 3 * layers
    compared = compare_weights(tmp_path / "made", model.directory, dims, dtype=torch.float32)
    assert compared >= 7 * layers + 3
