"""Exports among the models to measure: which they are, and opened as they compute.

A graph is executed by a runtime on the CPU, whatever computes the other models; the FP8 checkpoint is read by
the dequantising reader, as in the quantize stage's artifact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from compressor.choices.formats import FORMATS, Format
from compressor.core.errors import DependencyError, UsageError, VerificationError
from compressor.core.hardware import require_memory
from compressor.core.lazy import resolve
from compressor.data.tokenise import TokenArray
from compressor.evaluation.executed import ExecutedGraph
from compressor.evaluation.record import Executed
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, read_artifact
from compressor.runs.inputs import version_of

UNIFIED_FP8 = "huggingface-fp8"
_STAGE = "export-"
_FP8_NOTE = "activations rounded to E4M3 in software; FP8 kernels were not run"


def find_export(model: str) -> ModelArtifact | None:
    """The export of ours in a directory that can be measured as it computes; None of every other MODEL.

    Raises:
        VerificationError: when its record cannot be read.
    """
    directory = Path(model).expanduser()
    if not (directory / ARTIFACT_FILE).is_file():
        return None
    artifact = read_artifact(directory)
    row = _format_of(artifact)
    return artifact if row is not None and (row.executor or row.name == UNIFIED_FP8) else None


def is_graph(artifact: ModelArtifact) -> bool:
    """Whether an artifact is a graph that a runtime executes."""
    row = _format_of(artifact)
    return row is not None and row.executor is not None


def fp8_checkpoint(artifact: ModelArtifact) -> Path | None:
    """Where the FP8 checkpoint of an export, or of the quantize stage's artifact, lies; None of others."""
    row = _format_of(artifact)
    if row is not None and row.name == UNIFIED_FP8:
        return artifact.path
    beside = artifact.path / UNIFIED_FP8
    return beside if beside.is_dir() else None


def runtimes_of(models: Iterable[ModelArtifact]) -> dict[str, str]:
    """The distributions that execute the graphs among models, with their versions."""
    rows = map(_format_of, models)
    names = {row.executor.runtime for row in rows if row is not None and row.executor is not None}
    return {name: version_of(name) for name in sorted(names)}


def require_runtimes(models: Iterable[ModelArtifact]) -> None:
    """Refuse (DependencyError) a graph whose runtime is not installed."""
    for artifact in models:
        row = _format_of(artifact)
        if row is None or row.executor is None:
            continue
        for name in (row.executor.runtime, "onnx"):
            if find_spec(name) is None:
                raise DependencyError(
                    "a graph is computed by a library that is not installed",
                    where=str(artifact.path),
                    expected=name,
                    hint=f"pip install {name}, or leave this model out",
                )


def require_graph_memory(models: Iterable[ModelArtifact]) -> None:
    """Refuse (ResourceError) a graph whose stored weights alone are more than the machine's memory."""
    for artifact in models:
        if is_graph(artifact):
            require_memory(
                sum(record["bytes"] for name, record in artifact.files.items() if ".onnx" in name),
                device="cpu",
                what=f"not enough memory for the weights of the graph in {artifact.path}",
                hint="a smaller model, more memory, or swap",
            )


def refuse_first_graph(models: Sequence[ModelArtifact | None]) -> None:
    """Refuse (UsageError) a graph in the place of the model that others are compared with.

    A model that is no export is None.
    """
    first = models[0]
    if len(models) > 1 and first is not None and is_graph(first):
        raise UsageError(
            "the first model is what the others are compared with, and a graph cannot be that",
            where=str(first.path),
            expected="a Hugging Face checkpoint first",
            found=f"an {first.stage.removeprefix(_STAGE)} export",
            hint="name the model that was exported first, or measure the graph alone",
        )


def try_graphs(models: Iterable[ModelArtifact], window: TokenArray) -> None:
    """Let every graph compute one window of token ids, `[window]`, before any model is measured.

    Raises:
        UsageError: for a window beyond the positions that it has.
        UnsupportedError: where this machine does not execute it.
        VerificationError: for logits that are not finite.
    """
    for artifact in models:
        if is_graph(artifact):
            _try(artifact, window)


def open_graph(artifact: ModelArtifact) -> tuple[ExecutedGraph, Executed]:
    """A graph that can be executed, and what is recorded of that.

    Raises:
        UnsupportedError: where this machine does not execute it.
        VerificationError: when the directory holds no such graph.
    """
    row = _format_of(artifact)
    assert row is not None, "only exports are opened"
    assert row.executor is not None, "only graphs are opened"
    precision, runtime = row.precisions[0], row.executor.runtime
    graph: ExecutedGraph = resolve(row.executor.code)(artifact.path, precision)
    by = f"{runtime} {version_of(runtime)}"
    return graph, Executed(format=row.name, precision=precision, runtime=by, notes=graph.notes)


def executed_fp8(artifact: ModelArtifact) -> Executed | None:
    """What is recorded of an artifact that is measured by its FP8 checkpoint; None of every other."""
    if fp8_checkpoint(artifact) is None:
        return None
    precision, by = FORMATS[UNIFIED_FP8].precisions[0], f"torch {version_of('torch')}"
    return Executed(format=UNIFIED_FP8, precision=precision, runtime=by, notes=(_FP8_NOTE,))


def _try(artifact: ModelArtifact, window: TokenArray) -> None:
    graph, _ = open_graph(artifact)
    where, limit = str(artifact.path), graph.max_positions
    if limit is not None and len(window) > limit:
        raise UsageError(
            "the sequences to evaluate are longer than this graph can read",
            where=where,
            expected=f"at most {limit:,} tokens",
            found=f"{len(window):,} tokens",
            hint=f"use --seq-len {limit}",
        )
    if not torch.isfinite(graph.logits(window.tolist())).all():
        raise VerificationError(
            "the graph computes logits that are not finite",
            where=where,
            hint="float16 may be too narrow for this model: export it with another --precision",
        )


def _format_of(artifact: ModelArtifact) -> Format | None:
    """The format of an export; None of an artifact that is none."""
    return FORMATS.get(artifact.stage.removeprefix(_STAGE)) if artifact.stage.startswith(_STAGE) else None
