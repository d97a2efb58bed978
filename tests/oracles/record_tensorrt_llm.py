"""Record what ModelOpt's TensorRT-LLM exporter writes, as golden files; it is gone from ModelOpt 0.49 on.

    python -m tests.oracles.record_tensorrt_llm

needs nvidia-modelopt 0.47 or 0.48, for Qwen, and transformers 4.57: under transformers 5 that exporter
leaves rope out. Tensors are kept as dtype, shape and the sha256 of their bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from compressor.quantization.coverage import attention_modules, quantised_linears
from compressor.quantization.fp8 import _fp8_config, _modelopt
from tests.golden_students import ARCHITECTURES, ROPES, golden_config, golden_state

GOLDEN = Path(__file__).parents[1] / "golden" / "tensorrt_llm"
DECODERS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen", "qwen3": "qwen"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float16"}
TP_SIZES = (1, 2)


def main() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    versions = {name: version(name) for name in ("nvidia-modelopt", "transformers", "torch")}
    for model_type in ARCHITECTURES:
        for precision in DTYPES:
            record = {"recorded_with": versions, **_recorded(model_type, precision)}
            _write(GOLDEN / f"{model_type}-{precision}.json", record)
    ropes = {name: {rope: _rope(name, rope) for rope in ROPES} for name in ARCHITECTURES}
    _write(GOLDEN / "rope.json", {"recorded_with": versions, "configs": ropes})


def modelopts(
    model: Any, decoder: str, dtype: torch.dtype, tp_size: int
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Config and ranks as ModelOpt writes them, tensors as `described`."""
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    with tempfile.TemporaryDirectory() as directory, quietly(), torch.no_grad():
        export_tensorrt_llm_checkpoint(
            model, decoder, dtype, directory, inference_tensor_parallel=tp_size, inference_pipeline_parallel=1
        )
        files = [Path(directory) / f"rank{rank}.safetensors" for rank in range(tp_size)]
        config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
        return config, [described(load_file(file)) for file in files]


def described(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """By name: dtype, shape, and the sha256 of the bytes."""
    return {name: _described(tensors[name]) for name in sorted(tensors)}


def _described(tensor: torch.Tensor) -> str:
    shape = "x".join(map(str, tensor.shape))
    digest = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape} {digest}"


def golden_model(config: dict[str, Any]) -> Any:
    """The student in float32, by transformers' own class."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype")}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config["model_type"], **fields), dtype=torch.float32
    )
    state = golden_state(config, getattr(torch, config["torch_dtype"]))
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval()


def calibrate_(model: Any) -> dict[str, torch.Tensor]:
    """Insert ModelOpt's FP8 quantisers and run a few tokens; returns every maximum by name."""
    mtq, _ = _modelopt()
    ids = torch.arange(64).reshape(2, 32)
    with quietly():
        mtq.quantize(model, _fp8_config(mtq), lambda quantised: quantised(ids))
    config, amax = model.config.to_dict(), {}
    for name in quantised_linears(config):
        linear = model.get_submodule(name)
        amax[f"{name}.weight_amax"] = linear.weight_quantizer.amax
        amax[f"{name}.input_amax"] = linear.input_quantizer.amax
    for name in attention_modules(config):
        for kind in "kv":
            amax[f"{name}.{kind}_amax"] = model.get_submodule(f"{name}.{kind}_bmm_quantizer").amax
    return {name: value.detach().float().reshape(()) for name, value in amax.items()}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep ModelOpt's prints and warnings off the terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _recorded(model_type: str, precision: str) -> dict[str, Any]:
    config, dtype = golden_config(model_type, DTYPES[precision]), getattr(torch, DTYPES[precision])
    checkpoints, amax = {}, {}
    for tp_size in TP_SIZES:
        model = golden_model(config)
        if precision == "fp8":
            amax = {name: value.item() for name, value in calibrate_(model).items()}
        written, ranks = modelopts(model, DECODERS[model_type], dtype, tp_size)
        checkpoints[str(tp_size)] = {"config": written, "ranks": ranks}
    return {"student": config, "amax": amax, "by_tp_size": checkpoints}


def _rope(model_type: str, rope: str) -> dict[str, Any]:
    model = golden_model(golden_config(model_type, "bfloat16", rope=rope))
    config, _ = modelopts(model, DECODERS[model_type], torch.bfloat16, 1)
    return {name: config.get(name) for name in ("rotary_base", "rotary_scaling", "max_position_embeddings")}


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
