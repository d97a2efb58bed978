"""The same model through ModelOpt's own exporter: the same names, shapes, dtypes and values."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file

from compressor.models.load import load_model
from compressor.quantization.amax import write_amax
from compressor.quantization.fp8 import _fp8_config, _modelopt
from compressor.quantization.reader import attention_modules, quantised_linears
from exporters.tensorrt_llm.config import Parallelism
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.exporters.tensorrt_llm.conftest import write

# Two layers: ModelOpt wants stages of equal length.
MESHES = [Parallelism(), Parallelism(tp_size=2, pp_size=2)]
DECODERS = {"llama": "llama", "mistral": "llama"}
if Version(version("nvidia-modelopt")) >= Version("0.47"):
    DECODERS |= {"qwen2": "qwen", "qwen3": "qwen"}
# Under transformers 5 ModelOpt leaves rope out altogether; everything else here must agree.
COMPARED = (
    *("architecture", "dtype", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_size", "intermediate_size", "vocab_size", "head_size", "max_position_embeddings"),
    *("hidden_act", "norm_epsilon", "position_embedding_type", "use_parallel_embedding"),
    *("embedding_sharding_dim", "mapping", "quantization"),
)


@contextlib.contextmanager
def quietly() -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def modelopts(
    model: Any, decoder: str, out_dir: Path, mesh: Parallelism, dtype: torch.dtype
) -> tuple[dict[str, Any], list[Any]]:
    """Config and ranks as ModelOpt writes them."""
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    model.config.architectures = [type(model).__name__]
    with quietly(), torch.no_grad():
        export_tensorrt_llm_checkpoint(
            copy.deepcopy(model),
            decoder,
            dtype,
            out_dir,
            inference_tensor_parallel=mesh.tp_size,
            inference_pipeline_parallel=mesh.pp_size,
        )
    ranks = [load_file(out_dir / f"rank{rank}.safetensors") for rank in range(mesh.world_size)]
    return json.loads((out_dir / "config.json").read_text()), ranks


def quantise_(model: Any, student: Path) -> None:
    """Calibrate with ModelOpt and record what it saw."""
    mtq, _ = _modelopt()
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    with quietly():
        mtq.quantize(model, _fp8_config(mtq), lambda quantised: quantised(ids))
    config, amax = model.config.to_dict(), {}
    for name in quantised_linears(config):
        linear = model.get_submodule(name)
        amax[f"{name}.weight_amax"] = linear.weight_quantizer.amax
        amax[f"{name}.input_amax"] = linear.input_quantizer.amax
    for name in attention_modules(config):
        for kind in "kv":
            quantizer = model.get_submodule(f"{name}.{kind}_bmm_quantizer")
            amax[f"{name}.{kind}_amax"] = quantizer.amax
    write_amax(student, {name: value.detach() for name, value in amax.items()})


@pytest.mark.parametrize(
    ("precision", "tied"),
    [("bf16", False), ("bf16", True), ("fp16", False), ("fp8", False), ("fp8", True)],
)
@pytest.mark.parametrize("model_type", DECODERS)
def test_modelopt_writes_the_same(tmp_path: Path, model_type: str, precision: str, tied: bool) -> None:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    tiny = make_model(model_type, tie_word_embeddings=tied, num_hidden_layers=2).to(dtype)
    student = save_checkpoint(tmp_path / "student", tiny)
    model = load_model(student, dtype="float32", device="cpu")
    is_fp8 = precision == "fp8"
    if is_fp8:
        quantise_(model, student)
    for mesh in MESHES:
        where = tmp_path / f"{mesh.tp_size}-{mesh.pp_size}"
        config, ranks = modelopts(model, DECODERS[model_type], where / "theirs", mesh, dtype)
        made = write(
            student, where / "ours", precision=precision, parallelism=mesh, fp8_kv_cache=is_fp8, dtype=dtype
        )
        ours = json.loads((made / "config.json").read_text())
        assert {name: ours[name] for name in COMPARED} == {name: config[name] for name in COMPARED}
        for rank, theirs in enumerate(ranks):
            found = load_file(made / f"rank{rank}.safetensors")
            assert set(found) == set(theirs)
            for name, expected in theirs.items():
                assert found[name].dtype == expected.dtype, name
                assert torch.equal(found[name].float(), expected.float()), f"rank {rank}: {name}"
