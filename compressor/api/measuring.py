"""Exports, and what is measured of models: perplexity, tasks and speed; and the check of what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.api.arms import Selection, open_arms
from compressor.api.execution import Execution
from compressor.api.opened import open_measured
from compressor.choices.formats import FORMATS, STUDENT_FORMAT
from compressor.core import hardware
from compressor.core.errors import UnsupportedError, UsageError
from compressor.recipe.recipe import Bench, Evaluate, Export
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, read_artifact

if TYPE_CHECKING:
    from exporters.verification.verify import VerifyReport


def export(
    model: str,
    out_dir: Path,
    form: str,
    *,
    precision: str | None = None,
    settings: Export = Export(),
    execution: Execution | None = None,
) -> ModelArtifact:
    """Write a model for a runtime and compare its logits with the model's.

    For an FP8 format the model is the directory of the quantize stage. `precision`, bf16 or fp16, refuses a
    Hugging Face export of a checkpoint in the other one; `settings` are limits and the accuracy gate.

    Raises:
        UnsupportedError: for a model that the format cannot express.
        VerificationError: when the export computes something else.
    """
    from compressor.models.checkpoint import read_config
    from compressor.models.sparse.record import read_sparsity
    from exporters.export_stage import export_stage
    from exporters.registry import check_exports, check_files, exporter_of, require_tools

    execution = execution or Execution()
    execution.begin(out_dir, [model])
    require_tools([form], settings)
    if Path(model).is_dir():
        check_exports([form], read_config(Path(model)), settings, sparsity=read_sparsity(Path(model)))
        check_files([form], Path(model))
    source = _quantized(model) if FORMATS[form].needs_fp8 else execution.open(model, out_dir)
    if form == STUDENT_FORMAT and precision is not None:
        refuse_other_dtype(source.path, precision)
    return execution.run(export_stage(form), exporter_of(form).settings(settings), source, out_dir)


def evaluate(
    models: tuple[str, ...],
    out_dir: Path,
    *,
    settings: Evaluate,
    execution: Execution | None = None,
) -> ModelArtifact:
    """Measure the perplexity of models on the same text; the first is the baseline.

    If any of them was trained or calibrated on this text, all are evaluated on its held-out part. Exports
    whose graphs this machine executes, and FP8 checkpoints, are measured as they compute.

    Raises:
        UsageError: for settings without a text, or a graph before the model that it is compared with.
    """
    from compressor.evaluation.evaluate_stage import EVALUATE, EvaluateStageConfig, unseen_split
    from compressor.evaluation.exported import runtimes_of

    execution = execution or Execution()
    text = settings.data
    if text is None:
        raise UsageError(
            "there is no text to measure perplexity on", where="--data", hint="name one with --data SOURCE"
        )
    others = open_measured(models, out_dir, execution, texts=[text], graphs=True)
    opened = tuple(others.values())
    config = EvaluateStageConfig(
        data=text,
        split=unseen_split(text, {seen for model in opened for seen in model.texts}),
        window=settings.seq_len,
        size=settings.size,
        runtimes=runtimes_of(opened),
    )
    return execution.run(EVALUATE, config, opened[0], out_dir, others=others)


def bench(
    selection: Selection,
    out_dir: Path,
    *,
    settings: Bench = Bench(),
    export: Export = Export(),
    execution: Execution | None = None,
) -> ModelArtifact:
    """Measure the speed of models in pairs; the first is the baseline.

    Reports are written to `out_dir`; what runtimes read is exported beside it, and used again.

    Raises:
        UsageError: for a device that is not this machine's own, or what the runtime does not take.
    """
    from bench.bench_stage import BENCH, BenchStageConfig
    from bench.design.comparisons import fair_comparisons

    execution = execution or Execution()
    _refuse_other_device(execution.environment.device)
    settings.require_series(selection.runtime)
    execution.console.info(f"runtime: {selection.runtime.name}: {selection.reason}")
    arms = open_arms(selection, out_dir, export=export, execution=execution)
    config = BenchStageConfig(
        bench=settings.model_copy(update={"runtime": selection.runtime.name}),
        comparisons=fair_comparisons(tuple(arms.artifacts), which=settings.baselines),
        shapes=arms.shapes,
    )
    others = {**arms.artifacts, **arms.engines}
    return execution.run(BENCH, config, arms.baseline, out_dir, others=others)


def verify(directory: Path, *, source: Path | None = None, sparsity: str | None = None) -> VerifyReport:
    """Check any directory that this tool wrote, or a checkpoint: every file, shape and number.

    `source` is what it was made from, where it does not say, of a run or a family its teacher; `sparsity` a
    pattern, such as 2:4, that a checkpoint must follow.

    Raises:
        UsageError: when there is no such directory.
        VerificationError: for what is not as it was recorded.
    """
    from compressor.models.sparse.pattern import parse_pattern
    from compressor.pipeline.family_check import check_family, is_family, read_family
    from compressor.pipeline.report import check_card
    from exporters.checks.bundle import check_bundle
    from exporters.verification.verify import VerifyReport, verify_directory

    if not directory.is_dir():
        raise UsageError("this directory does not exist", where=str(directory), hint="check the path")
    if is_family(directory):
        family = read_family(directory)
        members = [
            verify(directory / member.name, source=None if number else source, sparsity=sparsity)
            for number, member in enumerate(family.members)
        ]
        check_family(directory, family)
        checked = tuple(each for member in members for each in member.checked)
        notes = tuple(dict.fromkeys(note for member in members for note in member.notes))
        return VerifyReport(path=directory, kind="family", checked=checked, notes=notes)
    pattern = parse_pattern(sparsity) if sparsity else None
    report = verify_directory(directory, pattern=pattern, source=source)
    if report.kind == "run":
        check_card(directory)
        check_bundle(directory)
    return report


def _refuse_other_device(asked: str) -> None:
    """Runtimes take the GPU where there is one; another wish is refused rather than ignored."""
    own = hardware.resolve_device("auto")
    if asked not in ("auto", own):
        raise UsageError(
            "a benchmark always runs on a GPU if there is one, otherwise on the CPU",
            where="--device",
            expected=own,
            found=asked,
            hint="leave --device out; to run on the CPU, put CUDA_VISIBLE_DEVICES= before the command",
        )


def _quantized(model: str) -> ModelArtifact:
    """The artifact of the quantize stage, or of a repair after it, in a directory."""
    artifact = read_artifact(Path(model)) if (Path(model) / ARTIFACT_FILE).is_file() else None
    if artifact is None or artifact.stage not in ("quantize", "reconstruct-fp8"):
        raise UsageError(
            "FP8 exports start from the quantize stage's output, or from its repair",
            where=model,
            expected="quantize or reconstruct-fp8",
            found=artifact.stage if artifact else "no stage's output",
            hint=f"run `compress-export quantize {model} --fp8 -o DIR` and export DIR",
        )
    return artifact


def refuse_other_dtype(source: Path, precision: str) -> None:
    """Refuse a Hugging Face export in another data type than its tensors have: they are copied, not cast.

    Raises:
        UnsupportedError: naming both.
    """
    from compressor.models.checkpoint import CheckpointReader, read_config
    from compressor.models.dims import dims_of_config

    with CheckpointReader(source) as reader:
        stored = reader.dtype(f"{dims_of_config(read_config(source)).family.embedding}.weight")
    names = {"bf16": "BF16", "fp16": "F16"}
    if stored != names[precision]:
        others = [name for name, dtype in names.items() if dtype == stored]
        raise UnsupportedError(
            "the checkpoint is stored in another dtype, and this export copies it",
            where="--precision",
            expected=names[precision],
            found=stored,
            hint=f"use --precision {others[0]}" if others else "make the student with --dtype bfloat16",
        )
