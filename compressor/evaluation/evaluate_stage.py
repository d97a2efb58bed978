"""The evaluate stage: perplexity of every model of a run on the same held-out windows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.data.packing import read_windows
from compressor.data.sources import Split, describe_source, source_fingerprint
from compressor.evaluation.perplexity import perplexity
from compressor.models.load import load_model
from compressor.models.sparse.layers import install_sparse_layers_
from compressor.models.sparse.low_rank import has_adapter, read_adapter
from compressor.models.tokenizer import load_tokenizer
from compressor.quantization.reader import load_fp8_model
from compressor.recipe.recipe import Section
from compressor.runs.artifact import ModelArtifact, write_json
from compressor.runs.stage import Stage, StageContext, StageResult

EVALUATION_FILE = "evaluation.json"
SCHEMA = "compress-export/evaluation/1"
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
            f"the evaluation text fills {len(windows)} windows of {config.window} tokens, not {config.size}"
        )
    models: dict[str, dict[str, object]] = {}
    for name, artifact in context.others.items():
        model = _load(artifact, context)
        with context.console.progress(f"perplexity of {name}", len(windows)) as tick:
            measured = perplexity(model, windows, on_window=tick)
        models[name] = {**asdict(measured), "num_parameters": artifact.num_parameters}
    report = {
        "schema": SCHEMA,
        "metric": "perplexity",
        "protocol": {
            "window": config.window,
            "stride": config.window,
            "bos": False,
            "split": config.split,
            "compute_dtype": context.dtype,
        },
        "text": {**describe_source(config.data), "windows": len(windows), "first_window": 0},
        "models": models,
    }
    write_json(out_dir / EVALUATION_FILE, report)
    return StageResult(num_parameters=source.num_parameters, details=report)


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


def _loads(
    _config: EvaluateStageConfig, _source: ModelArtifact, context: StageContext
) -> list[tuple[Path, str]]:
    plain = [
        artifact.path for artifact in context.others.values() if not (artifact.path / UNIFIED_FP8).is_dir()
    ]
    return [(path, context.dtype) for path in plain]


EVALUATE: Stage[EvaluateStageConfig] = Stage(
    name="evaluate", run=run, data=lambda config: (config.data,), loads=_loads
)
