"""What the commands of single stages share: one stage, one output directory, the pipeline's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from compressor.cli.cheap_checks import require_output
from compressor.core.console import Console
from compressor.core.errors import UnsupportedError, UsageError
from compressor.core.hardware import resolve_device, resolve_dtype
from compressor.core.processes import on_main
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.dims import dims_of_config
from compressor.models.load import open_checkpoint, resolve_source
from compressor.runs.artifact import ModelArtifact, read_artifact
from compressor.runs.locking import lock_stage
from compressor.runs.stage import Stage, StageContext, execute

# Beside the output directory: converted GGUF files and the benchmark's graphs, used again.
SCRATCH = ".compress-export"


def open_model(model: str, out_dir: Path, flags: dict[str, Any]) -> ModelArtifact:
    """A MODEL argument as an artifact; a GGUF file is converted beside the output directory."""
    scratch = out_dir.absolute().parent / SCRATCH
    dtype = resolve_dtype(flags.get("dtype") or "auto")
    source, tokenizer = resolve_source(model), flags.get("tokenizer")
    if source.kind != "gguf" and model != flags.get("model"):
        tokenizer = None  # it is for the GGUF file among several models
    return on_main(
        lambda: open_checkpoint(
            source,
            scratch,
            dtype=dtype,
            tokenizer=tokenizer,
            trust_remote_code=bool(flags.get("trust_remote_code")),
            on_warning=Console(quiet=bool(flags.get("quiet"))).warn,
        )
    )


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
        UsageError, ResourceError: see `require_output`, and for another run's output.
    """
    is_ours = require_output(out_dir, resume=flags["resume"], overwrite=flags["overwrite"])
    context = StageContext(
        console=console,
        seed=flags["seed"] or 0,
        device=resolve_device(flags["device"] or "auto"),
        dtype=resolve_dtype(flags["dtype"] or "auto"),
        teacher=teacher,
        others=others or {},
        trust_remote_code=flags["trust_remote_code"],
    )
    with lock_stage(out_dir):
        outcome = execute(stage, config, source, out_dir, context, restart=flags["overwrite"] and is_ours)
        if outcome.skipped:
            _check(outcome.artifact, context, check=flags["check"])
    state = "already there" if outcome.skipped else f"{outcome.seconds:.1f} s"
    console.info(f"{stage.name}: {out_dir}: {state}")
    return outcome.artifact


def _check(artifact: ModelArtifact, context: StageContext, *, check: bool) -> None:
    """Compare every file of finished work with its recorded sha256, or say that it was not done."""
    if check:
        on_main(lambda: context.check_contents(artifact))
    else:
        count = len(artifact.files)
        context.console.warn(f"--no-check: the contents of {count} files are not compared with their sha256")


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
    """Refuse a Hugging Face export in another dtype than the checkpoint's tensors: they are copied, not cast.

    Raises:
        UnsupportedError: naming both.
    """
    if family != "huggingface":
        return
    with CheckpointReader(source.path) as reader:
        stored = reader.dtype(f"{dims_of_config(read_config(source.path)).family.embedding}.weight")
    names = {"bf16": "BF16", "fp16": "F16"}
    if stored != names[precision]:
        others = [name for name, dtype in names.items() if dtype == stored]
        raise UnsupportedError(
            "the checkpoint is stored in another dtype, and this export copies it",
            where="--precision",
            expected=names[precision],
            found=stored,
            hint=f"--precision {others[0]}" if others else "--dtype bfloat16 when the student is made",
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
