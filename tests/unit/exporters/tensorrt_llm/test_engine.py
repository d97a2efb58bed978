"""The engine builder's command lines, versions, logs and failures, with a stand-in for the executable."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.core.console import Console
from compressor.core.errors import DependencyError, UsageError, VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.dims import Dims, dims_of_config
from compressor.models.presets import PRESETS
from compressor.pipeline.doctor import BuilderRecord, _engine_builder
from compressor.recipe.recipe import Export, TensorRTLLM
from exporters.registry import require_tools
from exporters.tensorrt_llm.config import Parallelism
from exporters.tensorrt_llm.engine import (
    LOG_FILE,
    build_command,
    container_command,
    last_lines,
    make_engine,
    predicted_memory,
    sparse_tactics,
)
from exporters.tensorrt_llm.versions import Builder, find_builder
from exporters.verification.record import SparseTactics
from tests.unit.exporters.tensorrt_llm import stand_in_builder
from tests.unit.exporters.tensorrt_llm.conftest import Students, write

REQUIRED = Export(tensorrt_llm=TensorRTLLM(require_engine=True))


def checkpoint(*, quant: str | None = None, cache: str | None = None, tp_size: int = 1) -> dict[str, Any]:
    return {
        "max_position_embeddings": 4096,
        "mapping": {"world_size": tp_size, "tp_size": tp_size, "pp_size": 1},
        "quantization": {"quant_algo": quant, "kv_cache_quant_algo": cache},
    }


def options_of(command: list[str]) -> dict[str, str]:
    words = [word for word in command[1:] if word != "--weight_sparsity"]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_the_whole_command_of_a_16_bit_engine() -> None:
    expected = (
        "trtllm-build --checkpoint_dir checkpoint --output_dir engine --max_batch_size 64 "
        "--max_input_len 1024 --max_seq_len 4096 --max_num_tokens 8192 --kv_cache_type paged --workers 1 "
        "--gemm_plugin auto --use_paged_context_fmha enable --use_fp8_context_fmha disable "
        "--multiple_profiles enable --log_level info --input_timing_cache timing.cache "
        "--output_timing_cache timing.cache"
    )
    assert shlex.join(build_command(checkpoint(), TensorRTLLM())) == expected


@pytest.mark.parametrize(
    ("quant", "cache", "sparsity", "gemm", "fmha"),
    [
        (None, None, False, "auto", "disable"),
        (None, None, True, "disable", "disable"),
        ("FP8", None, False, "disable", "disable"),
        ("FP8", "FP8", False, "disable", "enable"),
        ("FP8", "FP8", True, "disable", "enable"),
    ],
)
def test_plugins_by_precision_and_sparsity(
    quant: str | None, cache: str | None, sparsity: bool, gemm: str, fmha: str
) -> None:
    command = build_command(checkpoint(quant=quant, cache=cache), TensorRTLLM(), sparsity=sparsity)
    options = options_of(command)
    assert (options["--gemm_plugin"], options["--use_fp8_context_fmha"]) == (gemm, fmha)
    assert ("--weight_sparsity" in command) is sparsity
    assert options["--log_level"] == ("verbose" if sparsity else "info")
    assert not {"--gemm_swiglu_plugin", "--low_latency_gemm_plugin"} & set(command)  # off unless asked for


def test_sizes_come_from_the_recipe() -> None:
    settings = TensorRTLLM(
        max_batch_size=3, max_seq_len=512, opt_num_tokens=77, workers=8, multiple_profiles=False
    )
    options = options_of(build_command(checkpoint(tp_size=2), settings))
    found = {name: options[f"--{name}"] for name in ("max_batch_size", "max_seq_len", "opt_num_tokens")}
    assert found == {"max_batch_size": "3", "max_seq_len": "512", "opt_num_tokens": "77"}
    assert (options["--workers"], options["--multiple_profiles"]) == ("2", "disable")
    assert options["--reduce_fusion"] == "enable"


def test_the_container_gets_gpus_and_memory_limits() -> None:
    assert container_command(["trtllm-build", "--help"]) == (
        "docker run --rm --gpus all --ipc host --ulimit memlock=-1 --ulimit stack=67108864 "
        '-v "$PWD":/export -w /export nvcr.io/nvidia/tensorrt-llm/release:1.2.1 trtllm-build --help'
    )


def test_memory_by_hand() -> None:
    dims = PRESETS["4b-width"].dims
    settings = TensorRTLLM(max_batch_size=2, max_seq_len=1000)
    found = predicted_memory(dims, checkpoint(quant="FP8", cache="FP8", tp_size=2), settings)
    assert found.full_kv_cache_bytes_per_gpu == 2 * 1000 * (2 * 32 * 8 * 128) // 2
    linear = 32 * (2 * 3072 * 128 * (32 + 8) + 3 * 3072 * 9216)
    rest = 2 * 128_256 * 3072 + 65 * 3072
    assert found.weight_bytes_per_gpu == (linear + 2 * rest) // 2
    shared = predicted_memory(dims, checkpoint(tp_size=16), settings)  # 8 heads, each on two GPUs
    assert shared.full_kv_cache_bytes_per_gpu == 2 * 1000 * (2 * 2 * 32 * 1 * 128)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.3.0rc22", "has no engine builder: it runs the huggingface-fp8 export directly"),
        ("1.4.0", "has no engine builder"),
        ("0.21.0", "its flags are others"),
        ("unknown", "does not say"),
    ],
)
def test_other_versions_say_why_there_is_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, message: str
) -> None:
    stand_in_builder.install(tmp_path, version=version)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert message in str(find_builder())
    with pytest.raises(DependencyError, match="cannot be built here") as caught:
        require_tools(["onnx", "tensorrt-llm"], REQUIRED)
    assert caught.value.exit_code == 4
    assert "release:1.2.1" in str(caught.value.hint)


def test_a_newer_tensorrt_llm_without_a_builder_says_what_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "tensorrt_llm-1.3.0rc22.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.3.0rc22\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = str(find_builder())
    assert "TensorRT-LLM 1.3.0rc22 is installed" in reason
    assert "huggingface-fp8 export directly (trtllm-serve DIR)" in reason


def test_an_engine_required_of_formats_without_one_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"no engine is built from[\s\S]*huggingface, onnx"):
        require_tools(["huggingface", "onnx"], REQUIRED)


def test_a_fitting_builder_is_found_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_builder() == "no trtllm-build on PATH"
    assert _engine_builder() == BuilderRecord(reason="no trtllm-build on PATH")
    path = stand_in_builder.install(tmp_path)
    assert find_builder() == Builder(path=str(path), version="1.2.1")
    assert _engine_builder() == BuilderRecord(version="1.2.1")
    path.write_text("no program", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    assert "does not say" in str(find_builder())


@pytest.fixture
def export(students: Students, tmp_path: Path) -> tuple[Path, Dims]:
    """An export's directory with a checkpoint of two ranks, and no engine yet."""
    student = students.make("llama", tied=True, dtype=torch.bfloat16)
    write(student, tmp_path / "export" / "checkpoint", precision="fp8", parallelism=Parallelism(tp_size=2))
    return tmp_path / "export", dims_of_config(read_config(student))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(**behaviour: Any) -> None:
        stand_in_builder.install(tmp_path / "bin", **behaviour)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    return install


def test_an_engine_is_built_and_its_log_kept(export: tuple[Path, Dims], stand_in: Any) -> None:
    stand_in()
    record = make_engine(*export, TensorRTLLM(require_engine=True), Console())
    assert (record.built, record.tensorrt_llm) == (True, "1.2.1")
    assert "Total time of building" in (export[0] / "engine" / LOG_FILE).read_text()
    assert not (export[0] / "engine-dense").exists()


def test_a_build_shows_its_memory_and_its_last_line_while_it_runs(
    export: tuple[Path, Dims], stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in()
    monkeypatch.setattr("compressor.core.console.LINE_INTERVAL_S", 0.0)
    console, shown = Console(), []
    monkeypatch.setattr(console, "info", shown.append)
    make_engine(*export, TensorRTLLM(), console)
    assert any("GiB of weights per GPU" in line for line in shown)
    last = "building engine 2/2 [TRT-LLM] [I] Total time of building all engines: 00:00:21"
    assert shown[-1].strip() == last


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("fails", r"exit code 1[\s\S]*OutOfMemory"),
        ("no config", "left no readable config"),
        ("no engine", r"left no engine[\s\S]*rank0\.engine"),
        ("empty engine", r"left no engine[\s\S]*0 bytes"),
        ("other model", r"of another model[\s\S]*rotary_base"),
        ("other precision", r"of another model[\s\S]*quant_algo"),
    ],
)
def test_only_a_readable_engine_is_believed(
    export: tuple[Path, Dims], stand_in: Any, behaviour: str, message: str
) -> None:
    stand_in(behaviour=behaviour)
    with pytest.raises(VerificationError, match=message):
        make_engine(*export, TensorRTLLM(), Console())


@pytest.mark.parametrize(
    ("num_chosen", "verdict"), [(14, "sparse"), (0, "dense: no sparse tactic was chosen")]
)
def test_a_sparse_build_reports_its_tactics_and_has_a_dense_twin(
    export: tuple[Path, Dims], stand_in: Any, num_chosen: int, verdict: str
) -> None:
    stand_in(num_chosen=num_chosen)
    console = Console()
    record = make_engine(*export, TensorRTLLM(), console, sparsity=True)
    assert record.sparsity == SparseTactics(num_eligible=21, num_chosen=num_chosen, engine=verdict)
    assert (export[0] / "engine-dense" / "rank1.engine").is_file()
    assert "Sparsity" not in (export[0] / "engine-dense" / LOG_FILE).read_text()
    assert bool(console.warnings) is (num_chosen == 0)
    assert "--weight_sparsity" in record.commands["engine"]
    assert "--weight_sparsity" not in record.commands["engine-dense"]


def test_a_log_that_says_nothing_of_sparsity_claims_nothing() -> None:
    assert sparse_tactics("[TRT] [I] done") == SparseTactics(engine="unknown: the log does not say")
    log = stand_in_builder.SPARSE_LINES.format(num_chosen=3) * 2
    assert sparse_tactics(log) == SparseTactics(num_eligible=42, num_chosen=6, engine="sparse")


def test_last_lines_leave_progress_bars_apart() -> None:
    assert last_lines("a\n\n 1%\r 2%\rb\n") == "a\n 1%\n 2%\nb"
