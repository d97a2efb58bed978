"""The evaluate stage: perplexity of every model of a run on the same held-out windows."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from compressor.data.packing import read_windows
from compressor.data.sources import Split, describe_source, source_fingerprint
from compressor.evaluation.perplexity import perplexity
from compressor.evaluation.record import (
    EVALUATION_FILE,
    EvaluationProtocol,
    EvaluationRecord,
    MeasuredModel,
)
from compressor.models.load import load_model
from compressor.models.memory import require_model_memory
from compressor.models.sparse.layers import install_sparse_layers_
from compressor.models.sparse.low_rank import has_adapter, read_adapter
from compressor.models.tokenizer import load_tokenizer
from compressor.quantization.reader import load_fp8_model
from compressor.recipe.recipe import Section
from compressor.runs.artifact import ModelArtifact, write_json
from compressor.runs.stage import Stage, StageContext, StageResult

UNIFIED_FP8 = "huggingface-fp8"


class EvaluateStageConfig(Section):
    """What to measure on.

    Attributes:
        data: SOURCE of the evaluation text.
        split: Which part of it is read: the held-out one where training or calibration read the rest.
        window: Tokens per window.
        size: Number of windows.
    """

    data: str
    split: Split = "all"
    window: int
    size: int


def run(
    config: EvaluateStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> StageResult:
    """Measure `context.others`, the first being the baseline; write `evaluation.json`."""
    tokenizer = load_tokenizer(source.path, trust_remote_code=context.trust_remote_code)
    windows = read_windows(config.data, config.split, tokenizer, size=config.size, seq_len=config.window)
    if len(windows) < config.size:
        context.console.warn(
            f"the evaluation text fills {len(windows)} sequences of {config.window} tokens, not {config.size}"
        )
    models: dict[str, MeasuredModel] = {}
    for name, artifact in context.others.items():
        model = _load(artifact, context)
        with context.console.progress(f"perplexity of {name}", len(windows)) as tick:
            measured = perplexity(model, windows, on_window=tick)
        models[name] = MeasuredModel(**measured.model_dump(), num_parameters=artifact.num_parameters)
    record = EvaluationRecord(
        protocol=EvaluationProtocol(
            window=config.window, stride=config.window, split=config.split, compute_dtype=context.dtype
        ),
        text={**describe_source(config.data), "windows": len(windows), "first_window": 0},
        models=models,
    )
    write_json(out_dir / EVALUATION_FILE, record.to_json())
    return StageResult(num_parameters=source.num_parameters, details=record.to_json())


def unseen_split(data: str, seen: Collection[str]) -> Split:
    """The held-out part of a text whose fingerprint was `seen`, all of any other."""
    return "held_out" if source_fingerprint(data) in seen else "all"


def _load(artifact: ModelArtifact, context: StageContext) -> Any:
    """A 16-bit model with its low-rank branch, or a quantised one through our own dequantising reader."""
    unified = artifact.path / UNIFIED_FP8
    if unified.is_dir():
        return load_fp8_model(unified, dtype=context.dtype, device=context.device)
    model = load_model(
        artifact.path, dtype=context.dtype, device=context.device, trust_remote_code=context.trust_remote_code
    )
    if has_adapter(artifact.path):
        install_sparse_layers_(model, branches=read_adapter(artifact.path))
    return model


def _require_memory(_config: EvaluateStageConfig, _source: ModelArtifact, context: StageContext) -> None:
    plain = [
        artifact.path for artifact in context.others.values() if not (artifact.path / UNIFIED_FP8).is_dir()
    ]
    require_model_memory(*((path, context.dtype) for path in plain), device=context.device)


EVALUATE: Stage[EvaluateStageConfig] = Stage(
    name="evaluate",
    run=run,
    data=lambda config: (config.data,),
    fingerprint=source_fingerprint,
    require_memory=_require_memory,
)
