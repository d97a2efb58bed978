"""The format from a student to a verified directory, through the stand-in's environment; and its refusals."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
from contextlib import nullcontext
from pathlib import Path

import onnx
import pytest
import torch

from compressor.core.console import Console
from compressor.core.errors import (
    DependencyError,
    ResourceError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from compressor.models.checkpoint import read_config
from compressor.models.presets import PRESETS
from compressor.quantization.amax import FP8_DIRECTORY, read_amax, write_amax
from compressor.recipe.recipe import EdgeLLM, Export
from exporters.edge_llm.compare import require_castable
from exporters.edge_llm.engine import ENGINE, build_command, make_engine
from exporters.edge_llm.expressible import check_expressible
from exporters.edge_llm.package import find_converter
from exporters.registry import check_exports, check_files, exporter_of, require_tools
from exporters.verification.logits import VerifyOptions
from tests import edge_llm_stand_in
from tests.oracles.record_edge_llm import CASES, make_case
from tests.tiny_models import edit_json, edit_tensors, make_model
from tests.unit.exporters.edge_llm.conftest import Exported

FP16, FP8 = "tensorrt-edge-llm", "tensorrt-edge-llm-fp8"


def options(python: str | None) -> VerifyOptions:
    return VerifyOptions(console=Console(), export=Export(edge_llm=EdgeLLM(python=python)))


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return edge_llm_stand_in.install(tmp_path_factory.mktemp("edge") / "environment")


@pytest.mark.parametrize(("name", "form"), [("llama", FP16), ("qwen2-fp8", FP8)])
def test_a_student_is_converted_and_compared(tmp_path: Path, python: str, name: str, form: str) -> None:
    student, out = make_case(CASES[name], tmp_path / "student"), tmp_path / "out"
    (student / "modeling.py").write_text("raise SystemExit('code of a repository was run')")
    edit_json(student / "config.json", auto_map={"AutoConfig": "modeling.Config"})
    out.mkdir()
    exporter = exporter_of(form)
    exporter.write(student, out, options(python))
    found = exporter.verify(out, student, options(python))
    assert found.checks["tensorrt_edgellm"] == "0.11.0"
    assert found.checks["num_equal_scales"] == (28 if form == FP8 else 0)
    assert sorted(path.name for path in (out / "llm").iterdir()) == [
        *("chat_template.jinja", "config.json", "embedding.safetensors", "model.onnx", "model.onnx.data"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    graph = onnx.load(out / "llm" / "model.onnx", load_external_data=False).graph
    assert not any(node.doc_string for node in graph.node)  # nor paths of the machine that converted


@pytest.mark.parametrize(
    ("install", "reason"),
    [
        (None, "no --edge-llm-python is given"),
        ({"version": ""}, "has no tensorrt-edgellm"),
        ({"version": "0.12.1"}, "0.12.1, whose graphs are not known here"),
        ({"extra": False}, "onnx_graphsurgeon missing"),
    ],
)
def test_without_the_converter_nothing_begins(
    tmp_path: Path, install: dict[str, object] | None, reason: str
) -> None:
    path = None if install is None else edge_llm_stand_in.install(tmp_path / "env", **install)  # type: ignore[arg-type]
    with pytest.raises(DependencyError, match="make edge-env") as refused:
        require_tools([FP16], Export(edge_llm=EdgeLLM(python=path)))
    assert reason in str(refused.value)
    assert refused.value.exit_code == 4


def test_what_is_no_python_is_said_to_be_none(tmp_path: Path) -> None:
    assert (
        find_converter(str(tmp_path / "absent"))
        == f"{tmp_path / 'absent'} is not there, or is not executable"
    )
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(other.stat().st_mode | stat.S_IXUSR)
    assert "does not run as a Python" in str(find_converter(str(other)))


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        ("fails", VerificationError, "is not what this stand-in converts"),
        ("runs out of memory", ResourceError, "memory"),
        ("writes nothing", VerificationError, "left no file"),
    ],
)
def test_a_converter_that_fails(
    tmp_path: Path, exports: dict[str, Exported], behaviour: str, error: type[Exception], message: str
) -> None:
    path, out = edge_llm_stand_in.install(tmp_path / "env", behaviour=behaviour), tmp_path / "out"
    out.mkdir()
    with pytest.raises(error, match=message):
        exporter_of(FP16).write(exports["llama"].student, out, options(path))
    assert not list(out.iterdir())


def test_a_student_that_was_not_quantised(tmp_path: Path, python: str, exports: dict[str, Exported]) -> None:
    with pytest.raises(UsageError, match="was not quantised"):
        exporter_of(FP8).write(exports["llama"].student, tmp_path, options(python))


@pytest.mark.parametrize(("amax", "holds"), [(448 * 2.0**-14, True), (448 * 2.0**-14 * 0.99, False)])
def test_scales_that_float16_does_not_hold(
    tmp_path: Path, python: str, exports: dict[str, Exported], amax: float, holds: bool
) -> None:
    student = shutil.copytree(exports["llama-fp8"].student, tmp_path / "student")
    name = "model.layers.1.mlp.up_proj.input_amax"
    recorded = {own: value.clone() for own, value in read_amax(student).items()}  # the file is mapped
    write_amax(student, {**recorded, name: torch.tensor(amax)})
    if holds:
        require_castable(student, fp8=True)
        return
    with pytest.raises(UnsupportedError, match="float16") as refused:
        exporter_of(FP8).write(student, tmp_path, options(python))
    assert "up_proj.input_scale" in str(refused.value)


def test_weights_that_float16_does_not_hold(tmp_path: Path, python: str) -> None:
    student = make_case(CASES["llama"], tmp_path / "student")
    edit_tensors(student, lambda tensors: tensors["model.norm.weight"].fill_(1e5))
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight"):
        exporter_of(FP16).write(student, tmp_path, options(python))


def test_a_student_without_one_chat_template(tmp_path: Path) -> None:
    student = make_case(CASES["llama"], tmp_path / "student")
    check_files([FP16, "onnx"], student)
    (student / "additional_chat_templates").mkdir()
    with pytest.raises(UnsupportedError, match="one chat template"):
        check_files([FP16], student)
    (student / "additional_chat_templates").rmdir()
    (student / "chat_template.jinja").unlink()
    with pytest.raises(UnsupportedError, match="one chat template"):
        check_files([FP16], student)


@pytest.mark.parametrize(
    ("model_type", "fields", "where"),
    [
        ("llama", {"head_dim": 16}, "head_dim"),
        ("llama", {"head_dim": 96}, "head_dim"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("nemotron", {"hidden_size": 256}, "model_type"),
        ("mistral", {"sliding_window": 128}, "sliding_window"),
    ],
)
def test_models_that_the_runtime_computes_otherwise(
    model_type: str, fields: dict[str, object], where: str
) -> None:
    config = make_model(model_type, **{"head_dim": 64, **fields}).config.to_dict()
    with pytest.raises(UnsupportedError) as refused:
        check_exports([FP8], config, Export())
    assert refused.value.where == f"config.json: {where}"


@pytest.mark.parametrize(("form", "is_refused"), [("linear", True), ("yarn", True), ("llama3", False)])
def test_ropes_that_the_runtime_is_not_known_to_turn(form: str, is_refused: bool) -> None:
    config = {**dataclasses.asdict(PRESETS["llama3.1-8b"].dims), "rope_theta": 5e5}
    scaling = {"rope_type": form, "factor": 8.0, "original_max_position_embeddings": 8192}
    if form == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    with pytest.raises(UnsupportedError, match="rope_scaling") if is_refused else nullcontext():
        check_expressible({**config, "rope_scaling": scaling})


@pytest.mark.parametrize("head_dim", [64, 72, 80, 128, 256])
def test_head_sizes_that_have_kernels(head_dim: int) -> None:
    check_expressible(make_model("qwen3", head_dim=head_dim).config.to_dict())


def builder(directory: Path, behaviour: str) -> None:
    """A stand-in for `llm_build`, which is compiled on a device."""
    directory.mkdir(exist_ok=True)
    copy = 'cp "$2/model.onnx.data" "$4/llm.engine"'
    lines = {
        "builds": copy,
        "writes nothing": "true",
        "empty": ': > "$4/llm.engine"',
        "fails": "echo bad >&2; exit 3",
    }
    path = directory / "llm_build"
    path.write_text(f"#!/bin/sh\necho 'LLM engine built successfully'\n{lines[behaviour]}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("copied", ["llama"], indirect=True)
def test_without_a_builder_its_command_is_left(
    copied: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = EdgeLLM(max_batch_size=2, max_input_len=512, max_kv_cache=2048)
    command = "llm_build --onnxDir llm --engineDir engine --maxBatchSize 2 "
    command += "--maxInputLen 512 --maxKVCacheCapacity 2048"
    assert build_command(settings) == command.split()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    found = make_engine(copied.directory, settings, Console())
    assert not found.built
    assert found.commands == {ENGINE: command}
    script = copied.directory / str(found.script)
    assert command in script.read_text()
    for behaviour, code in (("builds", 0), ("writes nothing", 1), ("fails", 3)):
        builder(tmp_path / "bin", behaviour)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        shutil.rmtree(copied.directory / ENGINE, ignore_errors=True)
        assert os.waitstatus_to_exitcode(os.system(f"PATH={path} sh {script} >/dev/null 2>&1")) == code  # noqa: S605


@pytest.mark.parametrize("copied", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("builds", None),
        ("writes nothing", "succeeded but left no engine"),
        ("empty", "succeeded but left no engine"),
        ("fails", "the engine builder failed"),
    ],
)
def test_an_engine_counts_where_its_file_is(
    copied: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, behaviour: str, message: str | None
) -> None:
    builder(tmp_path / "bin", behaviour)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    if message is None:
        assert make_engine(copied.directory, EdgeLLM(), Console()).built
        return
    with pytest.raises(VerificationError, match=message):
        make_engine(copied.directory, EdgeLLM(), Console())


def test_an_old_export_is_still_what_is_asked_for() -> None:
    from exporters.export_stage import export_stage

    stage = export_stage("onnx")
    assert "edge_llm" not in stage.content(Export())
    assert "edge_llm" not in export_stage(FP16).content(Export(edge_llm=EdgeLLM(python="/elsewhere/python")))
    changed = export_stage(FP16).content(Export(edge_llm=EdgeLLM(max_batch_size=8)))
    assert changed["edge_llm"] == {"max_batch_size": 8, "max_input_len": 1024, "max_kv_cache": 4096}


def test_the_cases_are_what_they_say(exports: dict[str, Exported]) -> None:
    assert (
        read_config(exports["llama-fp8"].student / FP8_DIRECTORY)["quantization_config"]["quant_algo"]
        == "FP8"
    )
