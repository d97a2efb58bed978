"""The models that are measured: checkpoints, GGUF files, and exports that can be measured as they compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.api.execution import Execution
from compressor.models.source import distinct_names
from compressor.runs.artifact import ModelArtifact


def open_measured(
    models: tuple[str, ...],
    out_dir: Path,
    execution: Execution,
    *,
    texts: Sequence[str] = (),
    graphs: bool,
) -> dict[str, ModelArtifact]:
    """Every MODEL as an artifact, by its short name, once nothing speaks against the work.

    Without `graphs`, the graph of an export is refused, as a checkpoint that cannot be read.

    Raises:
        CompressExportError: for an output directory, a MODEL or a text that cannot be used.
    """
    from compressor.evaluation.exported import (
        find_export,
        is_graph,
        refuse_first_graph,
        require_runtimes,
    )

    found = {model: find_export(model) for model in models}
    exports = {model: made for model, made in found.items() if made and (graphs or not is_graph(made))}
    execution.begin(out_dir, [model for model in models if model not in exports], texts=texts)
    require_runtimes(exports.values())
    refuse_first_graph([exports.get(model) for model in models])
    opened = [exports.get(model) or execution.open(model, out_dir, tokenizer=False) for model in models]
    return dict(zip(distinct_names(models), opened, strict=True))
