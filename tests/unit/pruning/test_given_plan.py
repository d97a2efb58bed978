"""`prune --plan`: a plan edited by hand is what is cut, and a plan that does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compressor.cli.main import invoke
from compressor.pruning.plan import PLAN_FILE
from tests.tiny_models import make_model, save_checkpoint

Capture = pytest.CaptureFixture[str]
LAYERS, HIDDEN, NEURONS, HEADS = [0, 2], range(4, 60), [5, 7, *range(20, 120)], [1, 3]
HEAD_DIM = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model") / "m", make_model(num_hidden_layers=3))


@pytest.fixture(scope="module")
def plan(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("pruned") / "out"
    shape = "hidden_size=64,num_hidden_layers=3"
    words = ["prune", str(model), "--shape", shape, "--importance", "random", "-o", str(out), "-q"]
    assert invoke(words) == 0
    read: dict[str, Any] = json.loads((out / PLAN_FILE).read_text())
    return read


def edited(plan: dict[str, Any]) -> dict[str, Any]:
    kept = {
        "hidden": [list(HIDDEN)],
        "intermediate": ["5 7 20-119", NEURONS],
        "heads": [HEADS, HEADS],
    }
    return {**plan, "layers": "0 2", "kept": kept}


def run(model: Path, plan: dict[str, Any], out: Path, *more: str) -> int:
    file = out.with_suffix(".json")
    file.write_text(json.dumps(plan))
    words = ["prune", str(model), "--plan", str(file), "--dtype", "float32", *more, "-o", str(out), "-q"]
    return invoke(words)


def test_an_edited_plan_is_cut_as_slices_by_plain_torch(
    model: Path, plan: dict[str, Any], tmp_path: Path
) -> None:
    assert run(model, edited(plan), tmp_path / "out") == 0
    teacher, student = (load_file(path / "model.safetensors") for path in (model, tmp_path / "out"))
    hidden, neurons = torch.tensor(HIDDEN), torch.tensor(NEURONS)
    heads = torch.cat([torch.arange(head * HEAD_DIM, (head + 1) * HEAD_DIM) for head in HEADS])
    expected = {
        "model.embed_tokens.weight": teacher["model.embed_tokens.weight"][:, hidden],
        "model.norm.weight": teacher["model.norm.weight"][hidden],
    }
    for new, old in enumerate(LAYERS):
        of = {name: teacher[f"model.layers.{old}.{name}.weight"] for name in NAMES}
        cut = {
            "self_attn.q_proj": of["self_attn.q_proj"][heads][:, hidden],
            "self_attn.k_proj": of["self_attn.k_proj"][:, hidden],
            "self_attn.v_proj": of["self_attn.v_proj"][:, hidden],
            "self_attn.o_proj": of["self_attn.o_proj"][hidden][:, heads],
            "mlp.gate_proj": of["mlp.gate_proj"][neurons][:, hidden],
            "mlp.up_proj": of["mlp.up_proj"][neurons][:, hidden],
            "mlp.down_proj": of["mlp.down_proj"][hidden][:, neurons],
            "input_layernorm": of["input_layernorm"][hidden],
            "post_attention_layernorm": of["post_attention_layernorm"][hidden],
        }
        expected |= {f"model.layers.{new}.{name}.weight": tensor for name, tensor in cut.items()}
    assert set(student) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(student[name], tensor.float()), name
    assert invoke(["verify", str(tmp_path / "out"), "--source", str(model), "-q"]) == 0


NAMES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    *("input_layernorm", "post_attention_layernorm"),
)
FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another model": (
        lambda plan: plan["source"].update(hidden_size=96),
        "this plan is for another model",
    ),
    "an index too far": (lambda plan: plan["kept"].update(hidden=["0-64"]), "from 0 to 63"),
    "an index twice": (lambda plan: plan["kept"].update(hidden=["3 3"]), "ascending indices"),
    "a layer too many": (lambda plan: plan.update(layers="0-3"), "from 0 to 2"),
    "neurons of one layer": (
        lambda plan: plan["kept"].update(intermediate=["0-9"]),
        "one list per kept layer",
    ),
    "uneven layers": (lambda plan: plan["kept"].update(intermediate=["0-9", "0-8"]), "equally many"),
    "one group's heads": (lambda plan: plan["kept"].update(heads=["0 1", "0 1"]), "equally many of every 2"),
    "no axis": (lambda plan: plan["kept"].pop("heads"), "expected the axes"),
    "words": (lambda plan: plan.update(layers="all"), "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plan_that_does_not_fit_is_refused(
    fault: str, model: Path, plan: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    broken = json.loads(json.dumps(edited(plan)))
    change, message = FAULTS[fault]
    change(broken)
    assert run(model, broken, tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "try: " in shown
    assert not (tmp_path / "out").exists()
