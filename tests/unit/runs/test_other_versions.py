"""Whatever another version of this tool wrote is refused by name, with the command that makes it again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.report.write import read_results
from compressor.bundle.lineage import LINEAGE_FILE, read_lineage
from compressor.core.errors import CompressExportError
from compressor.core.json_files import as_record
from compressor.distillation.stored_logits import INDEX_FILE, StoredLogits
from compressor.evaluation.chat_record import ChatRecord
from compressor.evaluation.record import EvaluationRecord
from compressor.evaluation.task_record import TasksRecord
from compressor.gates.record import GateReport
from compressor.models.digests import DIGESTS_FILE, read_digests
from compressor.models.sparse.record import SPARSITY_FILE, read_sparsity
from compressor.planning.layer_times import LayerTimes
from compressor.planning.plan import read_plan
from compressor.planning.restart import redo_in_run
from compressor.pruning.depth_record import DepthRecord
from compressor.pruning.plan import read_plan as read_prune_plan
from compressor.runs.artifact import ARTIFACT_FILE, read_artifact
from compressor.runs.cleaned import CLEANED_FILE, read_cleaned
from compressor.runs.manifest import MANIFEST_FILE, read_manifest
from compressor.search.record import SearchRecord
from compressor.training.checkpoints import COMPLETE_MARK, last_complete_checkpoint
from compressor.training.probes import PROBES_FILE, read_probes
from exporters.verification.record import VERIFICATION_FILE, read_verification
from tests.performance.kept import ROOT

Read = Callable[[Path], object]
AGAIN = r"--overwrite|--restart-from|repeat the command"


def record_of(kind: type) -> Read:
    """How a stage's report, which is kept in its `artifact.json`, is read."""
    return lambda directory: as_record(
        kind, json.loads((directory / "record.json").read_text()), what="a record", where=directory
    )


def checkpoint(directory: Path) -> object:
    from compressor.core.console import Console

    place = directory / "checkpoint-7"
    place.mkdir()
    (directory / COMPLETE_MARK).rename(place / COMPLETE_MARK)
    return last_complete_checkpoint(directory, Console())


# What is read, by kind: the file, and its reader.
KINDS: dict[str, tuple[str, Read]] = {
    "artifact": (ARTIFACT_FILE, read_artifact),
    "manifest": (MANIFEST_FILE, read_manifest),
    "plan": ("plan.json", lambda directory: read_plan(directory / "plan.json")),
    "prune-plan": ("plan.json", lambda directory: read_prune_plan(directory / "plan.json")),
    "teacher-logits": (INDEX_FILE, StoredLogits),
    "evaluation": ("record.json", record_of(EvaluationRecord)),
    "evaluation of tasks": ("record.json", record_of(TasksRecord)),
    "evaluation of chat": ("record.json", record_of(ChatRecord)),
    "search": ("record.json", record_of(SearchRecord)),
    "gates": ("record.json", record_of(GateReport)),
    "depth": ("record.json", record_of(DepthRecord)),
    "layer-times": ("record.json", record_of(LayerTimes)),
    "verification": (VERIFICATION_FILE, read_verification),
    "lineage": (LINEAGE_FILE, read_lineage),
    "cleaned": (CLEANED_FILE, read_cleaned),
    "tensors": (DIGESTS_FILE, read_digests),
    "sparsity": (SPARSITY_FILE, read_sparsity),
    "bench": ("results.json", lambda directory: read_results(directory / "results.json")),
    "training-checkpoint": (COMPLETE_MARK, checkpoint),
}
# What is printed, or written for others, and never read again; probes are a file of tensors.
NEVER_READ = {
    *("run", "family", "family-plan", "doctor", "stage", "clean", "publish", "verify", "bench-compare"),
    *("search-share", "task-share", "config"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_version_is_refused_with_the_command_that_redoes_it(kind: str, tmp_path: Path) -> None:
    name, read = KINDS[kind]
    schema = f"compress-export/{kind.partition(' ')[0]}/99"
    (tmp_path / name).write_text(json.dumps({"schema": schema, "schema_id": schema, "stage": "prune"}))
    with pytest.raises(CompressExportError) as caught:
        read(tmp_path)
    said = str(caught.value)
    if kind != "training-checkpoint":  # where every checkpoint is of no use, the first reason is told
        assert re.search(r"another version of this tool|stored by another version", said), said
    assert "/99" in said
    assert re.search(AGAIN, str(caught.value.hint)), said


def test_probes_of_another_version(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(1, 1, 1) for name in ("input_ids", "position_ids", "logits")}
    save_file(tensors, tmp_path / PROBES_FILE, metadata={"compress-export/probes/99": "float32"})
    with pytest.raises(CompressExportError, match="another version of this tool") as caught:
        read_probes(tmp_path)
    assert re.search(AGAIN, str(caught.value.hint))


def test_the_command_is_that_of_the_stage_or_of_the_run(tmp_path: Path) -> None:
    (tmp_path / ARTIFACT_FILE).write_text(
        json.dumps({"schema": "compress-export/artifact/1", "stage": "logits"})
    )
    with pytest.raises(CompressExportError, match=f"cache-logits ... -o {tmp_path} --overwrite"):
        read_artifact(tmp_path)
    with pytest.raises(CompressExportError, match="--restart-from logits"):
        read_artifact(tmp_path, redo=redo_in_run)


def test_every_kind_of_record_is_known_here() -> None:
    sources = [
        path for package in ("compressor", "exporters", "bench") for path in (ROOT / package).rglob("*.py")
    ]
    found = {
        kind
        for path in sources
        for kind in re.findall(r"\"compress-export/([a-z-]+)/[0-9]+\"", path.read_text(encoding="utf-8"))
    }
    assert found - NEVER_READ == {name.partition(" ")[0] for name in KINDS} | {"probes"}


def test_a_results_file_of_something_else_is_no_other_version(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"schema": "something/else/1"}))
    with pytest.raises(CompressExportError, match=r"not a results\.json of bench"):
        read_results(tmp_path / "results.json")
