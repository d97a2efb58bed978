"""`prune --plan`: a plan edited by hand is what is cut, and a plan that does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compressor.cli.main import invoke
from compressor.pruning.plan import PLAN_FILE, read_plan
from tests.tiny_models import make_model, save_checkpoint

Capture = pytest.CaptureFixture[str]
LAYERS, HIDDEN = [0, 2], range(4, 60)
NEURONS, HEADS = ([5, 7, *range(20, 120)], range(90, 192)), ([1, 3], [0, 2])  # by kept layer
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
        "intermediate": ["5 7 20-119", list(NEURONS[1])],
        "heads": HEADS,
    }
    return {**plan, "layers": "0 2", "kept": kept}


def run(model: Path, plan: dict[str, Any], out: Path, *more: str) -> int:
    file = out.with_suffix(".json")
    file.write_text(json.dumps(plan))
    words = ["prune", str(model), "--plan", str(file), "--dtype", "float32", *more, "-o", str(out), "-q"]
    return invoke(words)


def test_saved_scores_stand_for_measured_ones(
    model: Path, plan: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prune(source: Path, out: str, *more: str) -> int:
        return invoke(["prune", str(source), *more, "-o", str(tmp_path / out), "-q"])

    shape = ("--shape", "hidden_size=48,intermediate_size=64,num_hidden_layers=2")
    assert prune(model, "measured", *shape, "--importance", "random", "--seed", "3") == 0
    assert prune(model, "again", *shape, "--scores", str(tmp_path / "measured")) == 0
    read = (json.loads((tmp_path / name / PLAN_FILE).read_text()) for name in ("measured", "again"))
    measured, again = read
    assert again["importance"] == "saved scores"
    assert {**again, "importance": "random"} == measured

    assert prune(model, "none", *shape, "--scores", str(tmp_path)) == 2
    assert "there are no saved scores" in capsys.readouterr().err
    saved = ("--scores", str(tmp_path / "measured"))
    assert prune(model, "both", *shape, *saved, "--importance", "taylor") == 2
    assert "prune.importance" in capsys.readouterr().err
    other = save_checkpoint(tmp_path / "other", make_model(num_hidden_layers=4))
    assert prune(other, "other-out", *shape, "--scores", str(tmp_path / "measured")) == 2
    assert "these scores are of another model" in capsys.readouterr().err


@pytest.mark.parametrize("groups", [([0, 1], [0, 1]), ([1], [0])], ids=["all groups", "a group"])
def test_an_edited_plan_is_cut_as_slices_by_plain_torch(
    groups: tuple[list[int], list[int]], model: Path, plan: dict[str, Any], tmp_path: Path
) -> None:
    given = edited(plan)
    if len(groups[0]) == 1:
        given["kept"] |= {"kv_heads": groups, "heads": ([3], [0])}
    assert run(model, given, tmp_path / "out") == 0
    own_heads = given["kept"]["heads"]
    teacher, student = (load_file(path / "model.safetensors") for path in (model, tmp_path / "out"))
    hidden = torch.tensor(HIDDEN)
    expected = {
        "model.embed_tokens.weight": teacher["model.embed_tokens.weight"][:, hidden],
        "model.norm.weight": teacher["model.norm.weight"][hidden],
    }
    for new, old in enumerate(LAYERS):
        neurons = torch.tensor(NEURONS[new])
        heads = channels_of(own_heads[new])
        keys = channels_of(groups[new])
        of = {name: teacher[f"model.layers.{old}.{name}.weight"] for name in NAMES}
        cut = {
            "self_attn.q_proj": of["self_attn.q_proj"][heads][:, hidden],
            "self_attn.k_proj": of["self_attn.k_proj"][keys][:, hidden],
            "self_attn.v_proj": of["self_attn.v_proj"][keys][:, hidden],
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
    assert read_plan(tmp_path / "out" / PLAN_FILE) == read_plan(tmp_path / "out.json")
    assert invoke(["verify", str(tmp_path / "out"), "--source", str(model), "-q"]) == 0


def channels_of(heads: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(head * HEAD_DIM, (head + 1) * HEAD_DIM) for head in heads])


NAMES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    *("input_layernorm", "post_attention_layernorm"),
)
# What else `read_plan` refuses is tested of it alone.
FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "another model": ({"source": {"hidden_size": 96}}, (), "this plan is for another model"),
    "a layer too many": ({"layers": "0-3"}, (), "from 0 to 2"),
    "words": ({"layers": "all"}, (), "cannot be read"),
    "a target beside it": ({}, ("--target", "50%"), "already says what is kept"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plan_that_does_not_fit_is_refused(
    fault: str, model: Path, plan: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    changes, options, message = FAULTS[fault]
    broken = {**edited(plan), **changes}
    broken["source"] = {**plan["source"], **changes.get("source", {})}
    assert run(model, broken, tmp_path / "out", *options) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "try: " in shown
    assert not (tmp_path / "out").exists()


def test_options_about_a_text_that_is_not_read_are_refused(
    model: Path, plan: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--calib-size", "3")
    assert run(model, plan, tmp_path / "planned", *size) == 2
    shown = capsys.readouterr().err
    assert "--plan says what is kept" in shown
    assert "--calib-size" in shown
    shape = ["--shape", "intermediate_size=64", "-q"]
    words = ["prune", str(model), *shape, "-o"]
    assert invoke([*words, str(tmp_path / "scored"), "--importance", "random"]) == 0
    saved = ["--scores", str(tmp_path / "scored")]
    capsys.readouterr()
    assert invoke([*words, str(tmp_path / "again"), *saved, *size]) == 2
    assert "--scores were measured before" in capsys.readouterr().err


def test_a_plan_beside_learned_masks_is_refused_as_any_importance(
    model: Path, plan: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, plan, tmp_path / "out", "--importance", "learned-masks") == 2
    shown = capsys.readouterr().err
    assert "--plan already says what is kept" in shown
    assert "learn_masks" not in shown
