"""FP8 post-training quantisation through nvidia-modelopt; the only module that imports it.

Calibration is by maximum: per-tensor E4M3 scales for the weights and inputs of every linear layer of
the decoder. Embedding, norms and LM head stay 16-bit. The KV cache is always calibrated, so that its
maxima are on record for other writers, and exported in FP8 only when the recipe asks for it.

ModelOpt divides by the scale in the dtype it is told to export: float32 here, so that stored weights
are rounded once. Its config and tokenizer files are replaced by the student's own, portable.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from compressor.calibration.hooks import observed
from compressor.calibration.text import read_calibration
from compressor.core.console import Console
from compressor.core.errors import DependencyError, UsageError, VerificationError
from compressor.data.sources import source_fingerprint
from compressor.data.tokenise import TokenArray
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import check_finite, read_config
from compressor.models.config.portable import write_config
from compressor.models.load import copy_checkpoint, load_model
from compressor.models.memory import require_model_memory
from compressor.models.source import refuse_quantised
from compressor.models.sparse.low_rank import refuse_adapter
from compressor.models.sparse.record import carry_sparsity
from compressor.models.tokenizer_files import GENERATION_CONFIG_FILE, copy_tokenizer
from compressor.quantization.amax import FP8_DIRECTORY, check_positive, write_amax
from compressor.quantization.coverage import attention_modules, quantised_linears
from compressor.recipe.recipe import Calibration, Quantize, Section
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult, start_afresh


class QuantizeStageConfig(Section):
    """The sections of a recipe that decide this stage."""

    quantize: Quantize = Quantize(fp8=True)
    calibration: Calibration = Calibration()


def run(
    config: QuantizeStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> StageResult:
    """Calibrate the source and leave it, its maxima and its FP8 checkpoint in `out_dir`.

    Raises:
        UsageError: when the recipe asks for no FP8, or its calibration text is too short.
        UnsupportedError: when the source is quantised already.
        DependencyError: without nvidia-modelopt.
        VerificationError: when a statistic is zero or not finite, naming the module.
    """
    if not config.quantize.fp8:
        raise UsageError("no quantization is chosen", where="quantize.fp8", hint="add --fp8")
    stored = read_config(source.path)
    refuse_quantised(stored, source.path)
    refuse_adapter(source.path, by="an FP8 checkpoint")
    start_afresh(out_dir)
    windows = read_calibration(config.calibration, source.path, context)
    model = load_model(
        source.path,
        dtype=_lossless_dtype(stored, context.dtype),
        device=context.device,
        trust_remote_code=context.trust_remote_code,
    )
    with _kept_off_stdout(context.console):
        amax = _calibrate_(model, windows.ids, context.console)
        write_amax(out_dir, amax)
        copy_checkpoint(source.path, out_dir)
        carry_sparsity(source.path, out_dir)
        _export_(model, stored, source.path, out_dir / FP8_DIRECTORY, config.quantize)
    details = {
        "num_windows": len(windows.ids),
        "window_tokens": windows.ids.shape[1],
        "calibration": windows.record,
        "num_statistics": len(amax),
    }
    return StageResult(num_parameters=source.num_parameters, details=details)


QUANTIZE: Stage[QuantizeStageConfig] = Stage(
    name="quantize",
    run=run,
    format_version=2,
    libraries=("torch", "transformers", "nvidia-modelopt"),
    data=lambda config: (config.calibration.data,),
    fingerprint=source_fingerprint,
    require_memory=lambda _config, source, context: require_model_memory(
        (source.path, _lossless_dtype(read_config(source.path), context.dtype)), device=context.device
    ),
)


def _stored_dtype(config: Mapping[str, object]) -> torch.dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype: torch.dtype = getattr(torch, str(name))
    return dtype


def _lossless_dtype(config: Mapping[str, object], compute: str) -> str:
    """The narrowest dtype that holds the stored weights and is at least as wide as forward passes'."""
    dtype = torch.promote_types(_stored_dtype(config), getattr(torch, compute))
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def _kept_off_stdout(console: Console) -> Iterator[None]:
    """Turn what ModelOpt prints and warns of into detail lines; stdout carries results only."""
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        yield
    for line in [*printed.getvalue().splitlines(), *dict.fromkeys(str(entry.message) for entry in caught)]:
        console.detail(f"  modelopt: {line}")


def _fp8_config(mtq: Any) -> dict[str, object]:
    """ModelOpt's FP8 settings with the KV cache's added: a list of rules in 0.47, a dict in 0.37."""
    settings, cache = copy.deepcopy(mtq.FP8_DEFAULT_CFG), copy.deepcopy(mtq.FP8_KV_CFG)
    rules, cache_rules = settings["quant_cfg"], cache["quant_cfg"]
    both = [*rules, *cache_rules] if isinstance(rules, list) else {**rules, **cache_rules}
    return {**settings, "quant_cfg": both}


def _modelopt() -> tuple[Any, Any]:
    """ModelOpt's quantiser and its exporter of unified checkpoints.

    They are imported in a thread: pulp, on which ModelOpt rests, keeps the errors of solvers that it does
    not find, these keep the variables of every caller, and so a model would be held until the process ends.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_import_modelopt).result()


def _import_modelopt() -> tuple[Any, Any]:
    try:
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import export_hf_checkpoint
    except ImportError as error:
        raise DependencyError(
            "FP8 needs nvidia-modelopt",
            where="quantize",
            found=error,
            hint="pip install 'nvidia-modelopt>=0.37,<0.48' requests",
        ) from error
    return mtq, export_hf_checkpoint


def _calibrate_(model: Any, windows: TokenArray, console: Console) -> dict[str, torch.Tensor]:
    """Insert quantisers and set them by running the windows; returns every maximum by name."""
    mtq, _ = _modelopt()
    config = model.config.to_dict()
    linears = {name: model.get_submodule(name) for name in quantised_linears(config)}
    for name, linear in linears.items():
        check_finite(f"{name}.weight", linear.weight)
    guarded = [(linear, partial(_require_finite, name)) for name, linear in linears.items()]
    body = ModelAdapter(model).body
    device = next(model.parameters()).device

    def forward_loop(_model: Any) -> None:
        with observed(inputs=guarded), console.progress("calibrating FP8", len(windows)) as tick:
            for window in windows:
                input_ids = torch.from_numpy(window.astype("int64"))[None].to(device)
                with torch.no_grad():
                    body(input_ids=input_ids, use_cache=False)
                tick()

    mtq.quantize(model, _fp8_config(mtq), forward_loop)
    amax = {}
    for name, module in linears.items():
        amax[f"{name}.weight_amax"] = _amax(name, module, "weight_quantizer")
        amax[f"{name}.input_amax"] = _amax(name, module, "input_quantizer")
    for name in attention_modules(config):
        module = model.get_submodule(name)
        amax[f"{name}.k_amax"] = _amax(name, module, "k_bmm_quantizer")
        amax[f"{name}.v_amax"] = _amax(name, module, "v_bmm_quantizer")
    return amax


def _amax(name: str, module: nn.Module, quantizer: str) -> torch.Tensor:
    value: torch.Tensor | None = getattr(getattr(module, quantizer, None), "amax", None)
    if value is None:
        raise VerificationError("calibration left no statistic", where=f"{name}.{quantizer}")
    check_positive(f"{name}.{quantizer}", value, what="a calibration statistic is unusable")
    return value.detach().float().cpu().reshape(())


def _require_finite(name: str, x: torch.Tensor) -> None:
    if not torch.isfinite(x).all():
        raise VerificationError("an activation is not finite", where=name, found="NaN or inf")


def _export_(
    model: Any, stored: Mapping[str, Any], source: Path, directory: Path, quantize: Quantize
) -> None:
    """Write the unified checkpoint; the model's weights become FP8 on the way."""
    _, export_hf_checkpoint = _modelopt()
    if not quantize.fp8_kv_cache:
        for name in attention_modules(stored):
            _drop_(model.get_submodule(f"{name}.k_bmm_quantizer"))
            _drop_(model.get_submodule(f"{name}.v_bmm_quantizer"))
    for parameter in model.parameters():
        # What stays 16-bit is stored as it came; loaded losslessly, it converts back exactly.
        parameter.data = parameter.data.to(_stored_dtype(stored))
    model.config.architectures = stored["architectures"]
    # The source's own file is copied; transformers does not save one whose fields contradict each other.
    model.generation_config = GenerationConfig()
    with torch.no_grad():
        export_hf_checkpoint(model, dtype=torch.float32, export_dir=directory)
    quantization = read_config(directory)["quantization_config"]
    write_config(directory, {**stored, "quantization_config": quantization})
    (directory / GENERATION_CONFIG_FILE).unlink(missing_ok=True)
    copy_tokenizer(source, directory)


def _drop_(quantizer: Any) -> None:
    """Take a quantiser out of the export, which takes any recorded maximum for a wish."""
    quantizer.disable()
    quantizer.reset_amax()
