"""What the commands of single stages share: one stage, one output directory, the pipeline's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from compressor.artifact import ARTIFACT_FILE, ModelArtifact, read_artifact
from compressor.console import Console
from compressor.data.checks import check_responses, check_texts
from compressor.errors import UnsupportedError, UsageError
from compressor.hardware import resolve_device, resolve_dtype
from compressor.models.checkpoint import read_config
from compressor.models.load import open_checkpoint, resolve_source
from compressor.processes import on_main
from compressor.recipe import Distill
from compressor.stage import PARTIAL_SUFFIX, STAGE_FILE, Stage, StageContext, execute

# Beside the output directory: converted GGUF files and the benchmark's graphs, used again.
SCRATCH = ".compress-export"


def open_model(model: str, out_dir: Path, flags: dict[str, Any]) -> ModelArtifact:
    """A MODEL argument as an artifact; a GGUF file is converted beside the output directory."""
    scratch = out_dir.absolute().parent / SCRATCH
    dtype = resolve_dtype(flags.get("dtype") or "auto")
    return on_main(lambda: open_checkpoint(resolve_source(model), scratch, dtype=dtype))


def require_training_texts(settings: Distill, console: Console) -> None:
    """Read all of the local training texts, before a model is opened.

    Raises:
        UsageError: as `check_texts` and `check_responses` do.
    """
    specs = [domain.data for domain in settings.mixture()]
    on_main(lambda: check_texts(specs, console))
    if settings.loss_on == "responses":
        on_main(lambda: check_responses(specs))


def execute_stage(
    stage: Stage[Any],
    config: BaseModel,
    source: ModelArtifact,
    out_dir: Path,
    flags: dict[str, Any],
    console: Console,
    *,
    teacher: ModelArtifact | None = None,
    others: dict[str, ModelArtifact] | None = None,
) -> ModelArtifact:
    """Run one stage into `out_dir`: resumed, skipped, refused or started anew as flags say.

    Raises:
        UsageError: `--resume` without anything to resume, or a directory that is not ours.
    """
    begun = out_dir.with_name(out_dir.name + PARTIAL_SUFFIX) / STAGE_FILE
    is_ours = (out_dir / ARTIFACT_FILE).is_file() or begun.is_file()
    if flags["resume"] and not is_ours:
        raise UsageError("there is nothing to resume", where=str(out_dir), hint="leave --resume out")
    if out_dir.is_file():
        raise UsageError("the output path is a file", where=str(out_dir))
    context = StageContext(
        console=console,
        seed=flags["seed"] or 0,
        device=resolve_device(flags["device"] or "auto"),
        dtype=resolve_dtype(flags["dtype"] or "auto"),
        teacher=teacher,
        others=others or {},
        trust_remote_code=flags["trust_remote_code"],
    )
    outcome = execute(stage, config, source, out_dir, context, restart=flags["overwrite"] and is_ours)
    state = "already there" if outcome.skipped else f"{outcome.seconds:.1f} s"
    console.info(f"{stage.name}: {out_dir}: {state}")
    return outcome.artifact


def quantised_artifact(model: str) -> ModelArtifact:
    """The artifact of the quantize stage in a directory.

    Raises:
        UsageError: when the directory holds another stage's output, or none.
    """
    artifact = read_artifact(Path(model))
    if artifact.stage != "quantize":
        raise UsageError(
            "FP8 exports start from the quantize stage's output",
            where=model,
            expected="quantize",
            found=artifact.stage,
            hint=f"compress-export quantize {model} --fp8 -o DIR",
        )
    return artifact


def refuse_other_dtype(source: ModelArtifact, family: str, precision: str) -> None:
    """Refuse a Hugging Face export in another dtype than the checkpoint's: it is copied, not cast.

    Raises:
        UnsupportedError: naming both.
    """
    names = {"bf16": "bfloat16", "fp16": "float16"}
    stored = read_config(source.path).get("dtype") or read_config(source.path).get("torch_dtype")
    if family == "huggingface" and stored != names[precision]:
        raise UnsupportedError(
            "the checkpoint is stored in another dtype, and this export copies it",
            where="--precision",
            expected=names[precision],
            found=stored,
            hint=f"--dtype {names[precision]} when the student is made",
        )


def result_of(artifact: ModelArtifact) -> dict[str, Any]:
    """A stage command's JSON document."""
    return {
        "schema": "compress-export/stage/1",
        "stage": artifact.stage,
        "path": str(artifact.path),
        "fingerprint": artifact.fingerprint,
        "lineage": list(artifact.lineage),
        "num_parameters": artifact.num_parameters,
        "details": artifact.details,
    }
