"""Standard graphs of every family against plain transformers: at once, from the cache, in batches."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from compressor.core.errors import UnsupportedError
from compressor.models.checkpoint import read_config
from compressor.recipe.recipe import Export
from exporters.onnx.builder import GRAPH_FILE
from exporters.onnx.expressible import FIXED
from exporters.registry import check_exports
from tests.rope_forms import (
    CONTEXT,
    LARGEST_DIFFERENCE,
    ROPE_CASES,
    RopeForm,
    case_name,
    largest_difference,
    make_rope_model,
)
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.exporters.onnx_standard.graphs import (
    VARIANTS,
    assert_close,
    open_graph,
    plain_logits,
    random_ids,
    write_float32_graph,
)

NAMES = ("onnx-standard", "onnx-standard-bf16", "onnx-standard-fp8")
# One spelling of every method that the graph expresses, in every family that has it.
FORMS = tuple(
    {
        (family, form.method): (family, form)
        for family, form in ROPE_CASES
        if form.method in FIXED and form.spelling != "absent"
    }.values()
)
REFUSED = tuple(case for case in ROPE_CASES if case[1].method not in FIXED and case[1].spelling != "type")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_graph_computes_what_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    family, overrides = VARIANTS[variant]
    model = make_model(family, **overrides)
    student = save_checkpoint(tmp_path / "student", model)
    graph = open_graph(write_float32_graph(student, tmp_path / "made", monkeypatch), student)
    sequences = [random_ids(length, seed=length) for length in (40, 57, 9)]
    expected = [plain_logits(model, each) for each in sequences]
    assert_close(graph.logits(sequences[1]), expected[1])
    # A prompt, single tokens, a piece, single tokens.
    stepped = graph.logits_in_steps(sequences[1], [31, 1, 1, 20, 1, 1, 1, 1])
    assert_close(stepped, expected[1])
    for found, wanted in zip(graph.logits_of_batch(sequences, last=3), expected, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize(("family", "form"), FORMS, ids=case_name)
def test_every_fixed_rope_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, form: RopeForm
) -> None:
    model = make_rope_model(tmp_path / "student", family, form)
    made = write_float32_graph(model.directory, tmp_path / "made", monkeypatch)
    # Beyond the original context: no table ends there.
    found = open_graph(made, model.directory).logits(model.token_ids[0].tolist())
    assert len(found) > CONTEXT
    assert largest_difference(found, model.logits[0]) <= LARGEST_DIFFERENCE / 10


@pytest.mark.parametrize("name", NAMES)
def test_what_a_graph_cannot_express_is_refused(tmp_path: Path, name: str) -> None:
    for number, (family, form) in enumerate(REFUSED):
        directory = tmp_path / str(number)
        make_rope_model(directory, family, form)
        with pytest.raises(UnsupportedError, match=r"config\.json: rope_scaling[\s\S]*vLLM"):
            check_exports([name], read_config(directory), Export())
    assert REFUSED
    config = read_config(save_checkpoint(tmp_path / "plain", make_model()))
    check_exports([name], config, Export())
    with pytest.raises(UnsupportedError, match="hidden_act"):
        check_exports([name], {**config, "hidden_act": "gelu"}, Export())


def test_the_operators_are_standard_and_of_2023(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("llama", "nemotron", "phi3", "qwen2", "qwen3"):
        student = save_checkpoint(tmp_path / family, make_model(family))
        made = write_float32_graph(student, tmp_path / f"{family}-made", monkeypatch)
        onnx.checker.check_model(str(made / GRAPH_FILE), full_check=True)
        model = onnx.load(made / GRAPH_FILE, load_external_data=False)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 19)]
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions
        assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_a_padded_token_reaches_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands where a sequence is padded, and how much of it."""
    model = make_model()
    student = save_checkpoint(tmp_path / "student", model)
    graph = open_graph(write_float32_graph(student, tmp_path / "made", monkeypatch), student)
    short = random_ids(7)
    for length in (8, 30):
        found = graph.logits_of_batch([short, random_ids(length, seed=length)], last=2)[0]
        assert_close(found, plain_logits(model, short))
        assert torch.isfinite(found).all()
