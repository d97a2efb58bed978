"""The evaluate stage: perplexity of every model of a run on the same held-out windows.

Models are computed by transformers; exports, as they are stored, by what executes them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import Field

from compressor.core.errors import UsageError
from compressor.core.peak_memory import release_memory
from compressor.data.packing import read_windows
from compressor.data.sources import Split, describe_source, source_fingerprint
from compressor.data.tokenise import TokenArray
from compressor.evaluation.exported import (
    executed_fp8,
    fp8_checkpoint,
    is_graph,
    open_graph,
    require_graph_memory,
    try_graphs,
)
from compressor.evaluation.perplexity import perplexity, perplexity_by_logits
from compressor.evaluation.predictions import Baseline
from compressor.evaluation.record import (
    EVALUATION_FILE,
    EvaluationProtocol,
    EvaluationRecord,
    Executed,
    MeasuredModel,
)
from compressor.models.load import load_model
from compressor.models.memory import require_model_memory
from compressor.models.positions import warn_beyond_positions
from compressor.models.sparse.layers import install_sparse_layers_
from compressor.models.sparse.low_rank import has_adapter, read_adapter
from compressor.models.tokenizer import load_tokenizer
from compressor.quantization.reader import load_fp8_model
from compressor.recipe.option import content_of, unless_neutral
from compressor.recipe.recipe import Section
from compressor.runs.artifact import ModelArtifact, write_json
from compressor.runs.stage import Stage, StageContext, StageResult


class EvaluateStageConfig(Section):
    """What to measure on.

    Attributes:
        data: SOURCE of the evaluation text.
        split: Which part of it is read: the held-out one where training or calibration read the rest.
        window: Tokens per window.
        size: Number of windows.
        runtimes: What executes the graphs among the models, with its version; see `runtimes_of`.
    """

    data: str
    split: Split = "all"
    window: int
    size: int
    runtimes: dict[str, str] = Field(default_factory=dict)


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
    for artifact in context.others.values():
        require_same_tokenizer(artifact, tokenizer, context)
        if not is_graph(artifact):
            warn_beyond_positions(artifact.path, config.window, context.console)
    try_graphs(context.others.values(), windows[0])
    models: dict[str, MeasuredModel] = {}
    first: Baseline | None = None
    for name, artifact in context.others.items():
        models[name], own = _measure(name, artifact, windows, first, context)
        first = first or own
        release_memory()
    record = EvaluationRecord(
        protocol=EvaluationProtocol(
            window=config.window, stride=config.window, split=config.split, compute_dtype=context.dtype
        ),
        text={**describe_source(config.data), "windows": len(windows), "first_window": 0},
        models=models,
    )
    write_json(out_dir / EVALUATION_FILE, record.to_json())
    return StageResult(num_parameters=source.num_parameters, details=record.to_json())


def _measure(
    name: str, artifact: ModelArtifact, windows: TokenArray, first: Baseline | None, context: StageContext
) -> tuple[MeasuredModel, Baseline | None]:
    """One model, beside the first; and what later ones are compared with, which a graph has not."""
    own: Baseline | None = None
    executed: Executed | None
    if is_graph(artifact):
        graph, executed = open_graph(artifact)
        with context.console.progress(f"perplexity of {name}", len(windows)) as tick:
            found = perplexity_by_logits(graph.logits, windows, baseline=first, on_window=tick, where=name)
    else:
        model, executed = load_evaluated(artifact, context), executed_fp8(artifact)
        with context.console.progress(f"perplexity of {name}", len(windows)) as tick:
            found, own = perplexity(model, windows, baseline=first, on_window=tick, where=name)
    measured = MeasuredModel(**found.model_dump(), num_parameters=artifact.num_parameters, executed=executed)
    return measured, own


def unseen_split(data: str, seen: Collection[str]) -> Split:
    """The held-out part of a text whose fingerprint was `seen`, all of any other."""
    return "held_out" if source_fingerprint(data) in seen else "all"


def require_same_tokenizer(artifact: ModelArtifact, tokenizer: Any, context: StageContext) -> None:
    """Refuse a model that reads other tokens: a likelihood per token would be of another text.

    Raises:
        UsageError: naming the model.
    """
    own = load_tokenizer(artifact.path, trust_remote_code=context.trust_remote_code)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            "this model has another vocabulary than the first, so their perplexities cannot be compared",
            where=str(artifact.path),
            expected=f"{len(tokenizer.get_vocab()):,} tokens, the same ones",
            found=f"{len(own.get_vocab()):,} tokens",
            hint="compare them by --tasks, or evaluate each alone",
        )


def load_evaluated(artifact: ModelArtifact, context: StageContext) -> Any:
    """A model as it computes: with its low-rank branch, or quantised through our own dequantising reader."""
    unified = fp8_checkpoint(artifact)
    if unified is not None:
        return load_fp8_model(unified, dtype=context.dtype, device=context.device)
    model = load_model(
        artifact.path, dtype=context.dtype, device=context.device, trust_remote_code=context.trust_remote_code
    )
    if has_adapter(artifact.path):
        install_sparse_layers_(model, branches=read_adapter(artifact.path))
    return model


def require_evaluated_memory(_config: Section, _source: ModelArtifact, context: StageContext) -> None:
    """Refuse models that would not fit into memory, one at a time.

    Raises:
        ResourceError: naming the first.
    """
    models = context.others.values()
    plain = [each.path for each in models if fp8_checkpoint(each) is None and not is_graph(each)]
    require_model_memory(*((path, context.dtype) for path in plain), device=context.device)
    require_graph_memory(models)


EVALUATE: Stage[EvaluateStageConfig] = Stage(
    name="evaluate",
    run=run,
    format_version=2,
    data=lambda config: (config.data,),
    fingerprint=source_fingerprint,
    content=lambda config: unless_neutral(content_of(config), runtimes={}),
    require_memory=require_evaluated_memory,
)
