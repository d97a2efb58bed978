"""Exports measured as they compute, against float64 arithmetic on logits of other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from compressor import api
from compressor.cli.main import invoke
from compressor.core.errors import (
    DependencyError,
    ResourceError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from compressor.evaluation import evaluate_stage
from compressor.recipe.recipe import Environment, Evaluate
from compressor.runs.artifact import read_artifact
from exporters.onnx.runtime import NotExecutableError, OnnxModel
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.exporters.conftest import Exports

WINDOW, SIZE = 40, 3
HEADS, HEAD_DIM, LAYERS = 2, 16, 3  # of keys and values; see make_model
FLOAT32 = api.Execution(environment=Environment(dtype="float32", device="cpu"))


@dataclass(frozen=True)
class Measurable:
    """The exports, another model of their tokenizer, and text that none of them read."""

    exports: Exports
    teacher: Path
    text: Path

    def evaluate(self, *models: Path, out: Path) -> dict[str, Any]:
        settings = Evaluate(data=str(self.text), seq_len=WINDOW, size=SIZE)
        made = api.evaluate(tuple(map(str, models)), out, settings=settings, execution=FLOAT32)
        record = json.loads((out / "evaluation.json").read_text())
        assert record == made.details
        return record["models"]

    def windows(self) -> torch.Tensor:
        """`[SIZE, WINDOW]`, by the tokenizers library alone."""
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.teacher)
        ids = tokenizer(self.text.read_text()).input_ids[: SIZE * WINDOW]
        return torch.tensor(ids).reshape(SIZE, WINDOW)

    def logits_of(self, model: Any) -> torch.Tensor:
        """Float64 logits of plain transformers at every scored position."""
        with torch.no_grad():
            return model(self.windows()).logits[:, :-1].double()

    def nll(self, logits: torch.Tensor) -> float:
        log_p = logits.double().log_softmax(-1)
        return -log_p.gather(-1, self.windows()[:, 1:, None]).mean().item()


@pytest.fixture(scope="module")
def measurable(exports: Exports, tmp_path_factory: pytest.TempPathFactory, make_text: Any) -> Measurable:
    root = tmp_path_factory.mktemp("measurable")
    teacher = save_checkpoint(root / "teacher", make_model(seed=1))
    return Measurable(exports=exports, teacher=teacher, text=make_text(num_words=200, seed=9))


def student_of(exports: Exports) -> Any:
    return AutoModelForCausalLM.from_pretrained(exports.student(tied=True), dtype=torch.float32)


def raw_logits(made: Path, windows: torch.Tensor) -> torch.Tensor:
    """A session of onnxruntime with an empty cache, fed by hand; float64, scored positions."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(made / "model.onnx", options, providers=["CPUExecutionProvider"])
    kinds = {entry.name: entry.type for entry in session.get_inputs()}
    found = []
    for window in windows.numpy():
        feed: dict[str, Any] = {"input_ids": window[None], "attention_mask": np.ones((1, WINDOW), np.int64)}
        if "position_ids" in kinds:
            feed["position_ids"] = np.arange(WINDOW)[None]
        for name, kind in kinds.items():
            if name.startswith("past"):
                dtype = np.float16 if kind == "tensor(float16)" else np.float32
                feed[name] = np.zeros((1, HEADS, 0, HEAD_DIM), dtype)
        found.append(session.run(["logits"], feed)[0][0, :-1])
    return torch.from_numpy(np.stack(found)).double()


def carrying_int4(model: Any, made: Path) -> Any:
    """A student with the weights of an int4 graph, each a code less 8 times the scale of its block of 32."""
    graph = onnx.load(made / "model.onnx").graph
    stored = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}

    def matrix(name: str) -> torch.Tensor:
        packed = stored[f"{name}.MatMul.weight_Q4"]
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(int) - 8
        scales = stored[f"{name}.MatMul.weight_scales"].reshape(packed.shape[:2])
        return torch.from_numpy((codes * scales[..., None]).reshape(len(packed), -1)).float()

    weights = dict(model.named_parameters())
    if "model.embed_tokens.weight" in stored:  # an older builder shares no 4-bit matrix with the embedding
        model.lm_head.weight = torch.nn.Parameter(matrix("lm_head"))
    else:
        weights["model.embed_tokens.weight"].data = matrix("lm_head")
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        parts = matrix(f"{name}.attn.qkv_proj").split([64, 32, 32])
        for part, values in zip("qkv", parts, strict=True):
            weights[f"{name}.self_attn.{part}_proj.weight"].data = values
        weights[f"{name}.self_attn.o_proj.weight"].data = matrix(f"{name}.attn.o_proj")
        for part in ("gate", "up", "down"):
            weights[f"{name}.mlp.{part}_proj.weight"].data = matrix(f"{name}.mlp.{part}_proj")
    return model


def computing_in_fp8(model: Any, unified: Path) -> Any:
    """A student whose linear layers read and hold numbers that were rounded to FP8."""
    tensors = load_file(unified / "model.safetensors")

    def rounding(scale: torch.Tensor) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            scaled = (inputs[0] / scale).clamp(-448, 448)
            return (scaled.to(torch.float8_e4m3fn).float() * scale,)

        return hook

    for name, module in model.named_modules():
        if f"{name}.weight_scale" in tensors:
            module.weight.data = tensors[f"{name}.weight"].float() * tensors[f"{name}.weight_scale"]
            module.register_forward_pre_hook(rounding(tensors[f"{name}.input_scale"]))
    return model


def test_a_float32_graph_has_the_perplexity_of_the_student_in_transformers(
    measurable: Measurable, tmp_path: Path
) -> None:
    made = measurable.exports.make("onnx")
    models = measurable.evaluate(measurable.teacher, made, out=tmp_path / "quality")
    teacher = AutoModelForCausalLM.from_pretrained(measurable.teacher)
    p_logits, q_logits = measurable.logits_of(teacher), measurable.logits_of(student_of(measurable.exports))
    found = models[made.name]
    assert found["mean_nll"] == pytest.approx(measurable.nll(q_logits), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(measurable.nll(q_logits)), rel=1e-5)
    assert (found["num_tokens"], found["window"], found["num_windows"]) == (SIZE * 39, WINDOW, SIZE)
    assert models["teacher"]["mean_nll"] == pytest.approx(measurable.nll(p_logits), rel=1e-6)

    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    kl = (p * (p / q).log()).sum(-1)
    agreement = found["agreement"]
    assert agreement["window_kl"] == pytest.approx(kl.mean(-1).tolist(), rel=1e-5)
    same = (p.argmax(-1) == q.argmax(-1)).double()
    assert agreement["top1"] == pytest.approx(same.mean().item(), rel=1e-9)
    assert 0 < agreement["top1"] < 1
    margins = []
    for first, own in zip(p.argmax(-1).flatten().tolist(), q.log().flatten(0, 1), strict=True):
        margins.append((own[first] - torch.cat([own[:first], own[first + 1 :]]).max()).item())
    assert agreement["margin"] == pytest.approx(sum(margins) / len(margins), rel=1e-4)
    mean = q.flatten(0, 1).mean(0)
    information = (-(mean * mean.log()).sum() + (q * q.log()).sum(-1).mean()).item()
    assert found["information"] == pytest.approx(information, rel=1e-4)


def test_an_int4_graph_is_measured_with_its_own_weights_and_kernels(
    measurable: Measurable, tmp_path: Path
) -> None:
    made, student = measurable.exports.make("onnx-int4"), measurable.exports.student(tied=True)
    models = measurable.evaluate(student, made, out=tmp_path / "quality")
    found = models[made.name]["mean_nll"]
    by_session = measurable.nll(raw_logits(made, measurable.windows()))
    assert found == pytest.approx(by_session, rel=1e-6)
    # Dequantised by hand, inputs not rounded: near it, and nearer than the 16-bit weights.
    carrying = measurable.nll(measurable.logits_of(carrying_int4(student_of(measurable.exports), made)))
    assert abs(found - carrying) < 0.2 * abs(models[student.name]["mean_nll"] - carrying)
    assert models[made.name]["agreement"]["kl"] > 1e-3
    assert models[made.name]["executed"] == {
        "format": "onnx-int4",
        "precision": "int4",
        "runtime": f"onnxruntime {version('onnxruntime')}",
        "notes": [],
    }
    assert models[student.name]["executed"] is None


@pytest.mark.parametrize(
    ("name", "within", "note"),
    [
        ("onnx-standard", 2e-3, None),
        ("onnx-standard-bf16", 1e-6, "widened to float32"),
        ("onnx-standard-fp8", 2e-3, "no pair fused"),
    ],
)
def test_standard_graphs(
    measurable: Measurable, tmp_path: Path, name: str, within: float, note: str | None
) -> None:
    made, model = measurable.exports.make(name), student_of(measurable.exports)
    if name.endswith("fp8"):
        model = computing_in_fp8(model, measurable.exports.quantised(tied=True).path / "huggingface-fp8")
    (found,) = measurable.evaluate(made, out=tmp_path / "alone").values()
    assert found["mean_nll"] == pytest.approx(measurable.nll(measurable.logits_of(model)), rel=within)
    assert found["agreement"] is None
    assert [note in said for said in found["executed"]["notes"]] == ([True] if note else [])
    if not name.endswith("bf16"):
        by_session = measurable.nll(raw_logits(made, measurable.windows()))
        assert found["mean_nll"] == pytest.approx(by_session, rel=1e-6)


def test_an_fp8_checkpoint_that_was_exported_is_measured_in_fp8(
    measurable: Measurable, tmp_path: Path
) -> None:
    made = measurable.exports.make("huggingface-fp8")
    student, quantised = measurable.exports.student(tied=True), measurable.exports.quantised(tied=True).path
    models = measurable.evaluate(student, made, quantised, out=tmp_path / "quality")
    assert models[quantised.name]["mean_nll"] == models[made.name]["mean_nll"]
    assert models[quantised.name]["executed"] == models[made.name]["executed"]
    expected = measurable.nll(measurable.logits_of(computing_in_fp8(student_of(measurable.exports), made)))
    assert models[made.name]["mean_nll"] == pytest.approx(expected, rel=1e-5)
    assert models[made.name]["mean_nll"] != pytest.approx(models[student.name]["mean_nll"], rel=1e-4)
    assert models[made.name]["executed"]["precision"] == "fp8"


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is refused is refused before any model is measured."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("a model was measured")

    monkeypatch.setattr(evaluate_stage, "perplexity", fail)
    monkeypatch.setattr(evaluate_stage, "perplexity_by_logits", fail)
    return


@pytest.mark.usefixtures("no_measuring")
class TestRefused:
    """Before slow work, with a reason."""

    def test_a_graph_in_the_first_place(self, measurable: Measurable, tmp_path: Path) -> None:
        models = (measurable.exports.make("onnx"), measurable.teacher)
        with pytest.raises(UsageError, match="a graph cannot be that"):
            measurable.evaluate(*models, out=tmp_path / "out")

    def test_sequences_beyond_the_graphs_positions(
        self, measurable: Measurable, tmp_path: Path, make_text: Any
    ) -> None:
        text, made = make_text(num_words=4000), measurable.exports.make("onnx")
        settings = Evaluate(data=str(text), seq_len=2049, size=1)
        models = (str(measurable.teacher), str(made))
        with pytest.raises(UsageError, match="longer than this graph") as caught:
            api.evaluate(models, tmp_path / "out", settings=settings, execution=FLOAT32)
        assert "--seq-len 2048" in str(caught.value.hint)

    def test_a_graph_without_kernels(
        self, measurable: Measurable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lacks(*_: object, **__: object) -> None:
            raise NotExecutableError("Could not find an implementation for GroupQueryAttention(1)")

        monkeypatch.setattr(OnnxModel, "_step", lacks)
        made = measurable.exports.make("onnx-fp16")
        with pytest.raises(UnsupportedError, match="does not execute this fp16 graph") as caught:
            measurable.evaluate(measurable.teacher, made, out=tmp_path / "out")
        assert caught.value.where == str(made)
        assert "GroupQueryAttention" in str(caught.value.found)
        assert not (tmp_path / "out").exists()

    def test_a_graph_that_was_changed(self, measurable: Measurable, tmp_path: Path) -> None:
        made = measurable.exports.copy("onnx-int4", tmp_path / "made")
        data = made / "model.onnx.data"
        content = bytearray(data.read_bytes())
        content[100] ^= 1
        data.write_bytes(content)
        with pytest.raises(VerificationError, match="has changed"):
            measurable.evaluate(measurable.teacher, made, out=tmp_path / "out")

    def test_a_graph_larger_than_memory(
        self, measurable: Measurable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = measurable.exports.make("onnx")
        stored = sum(file.stat().st_size for file in made.glob("model.onnx*"))
        monkeypatch.setattr("compressor.core.hardware.usable_memory_bytes", lambda: stored - 1)
        with pytest.raises(ResourceError, match="the weights of the graph") as caught:
            measurable.evaluate(made, out=tmp_path / "out")
        assert f"{stored:,}" in str(caught.value.expected)

    def test_a_graph_without_its_runtime(
        self, measurable: Measurable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = measurable.exports.make("onnx")
        monkeypatch.setattr("compressor.evaluation.exported.find_spec", lambda _name: None)
        with pytest.raises(DependencyError, match="not installed") as caught:
            measurable.evaluate(measurable.teacher, made, out=tmp_path / "out")
        assert caught.value.expected == "onnxruntime"

    def test_tasks(self, measurable: Measurable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("compressor.data.lm_eval_tasks.require_lm_eval", lambda: None)
        made = measurable.exports.make("onnx-int4")
        models = (str(measurable.teacher), str(made))
        with pytest.raises(UnsupportedError, match="cannot be read as a model") as caught:
            api.evaluate_tasks(models, tmp_path / "out", settings=Evaluate(tasks=("piqa",)))
        assert "evaluate MODEL DIR --data SOURCE measures DIR" in str(caught.value.hint)


def test_a_repeated_measurement_is_there_already_and_another_runtime_is_another(
    measurable: Measurable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = measurable.exports.make("onnx-int4"), tmp_path / "out"
    first = measurable.evaluate(made, out=out)
    inputs = read_artifact(out).inputs
    assert inputs["config"]["runtimes"] == {"onnxruntime": version("onnxruntime")}
    with monkeypatch.context() as patched:
        patched.setattr(evaluate_stage, "perplexity_by_logits", lambda *_, **__: pytest.fail("again"))
        assert measurable.evaluate(made, out=out) == first
    monkeypatch.setattr("compressor.evaluation.exported.version_of", lambda _name: "0.1")
    with pytest.raises(UsageError, match=r"onnxruntime: .* -> 0\.1"):
        measurable.evaluate(made, out=out)


def test_checkpoints_are_fingerprinted_as_before_graphs_could_be_measured(
    measurable: Measurable, tmp_path: Path
) -> None:
    measurable.evaluate(measurable.teacher, out=tmp_path / "out")
    assert set(read_artifact(tmp_path / "out").inputs["config"]) == {"data", "split", "window", "size"}


def test_the_command_says_what_computed_each_model(
    measurable: Measurable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = (measurable.teacher, measurable.exports.make("onnx-int4"))
    settings = ("--data", measurable.text, "--seq-len", WINDOW, "--size", SIZE, "--dtype", "float32")
    assert invoke([*map(str, ("evaluate", *models, *settings, "-o", tmp_path / "out"))]) == 0
    shown = capsys.readouterr().out
    assert "transformers in float32" in shown
    assert f"onnxruntime {version('onnxruntime')}, int4" in shown
