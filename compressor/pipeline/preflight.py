"""What a run is refused for before it writes anything: contradictions, and texts that are not there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from compressor.core.console import Console
from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.data.checks import check_rendering, check_responses, check_texts
from compressor.data.depth_task import read_task
from compressor.data.multiple_choice import encode
from compressor.data.packing import read_windows
from compressor.data.sources import Split, source_fingerprint
from compressor.distillation.correct_stage import require_alongside
from compressor.distillation.training import require_loss_on
from compressor.evaluation.evaluate_stage import EvaluateStageConfig, unseen_split
from compressor.models.checkpoint import CONFIG_FILE
from compressor.models.dims import SHAPE_FIELDS, Dims
from compressor.models.shapes import expected_shapes
from compressor.models.sparse.pattern import parse_pattern
from compressor.models.sparse.record import SparsityRecord
from compressor.models.tokenizer_files import copy_tokenizer, make_tokenizer_portable
from compressor.recipe.compression import FEWEST_REPAIR_SEQUENCES
from compressor.recipe.recipe import Recipe
from compressor.repair.requirements import require_sequences
from compressor.runs.artifact import read_artifact
from compressor.sparsity.requirements import covered_weights
from exporters.registry import check_exports
from exporters.verification.tokenizer_check import check_tokenizer


def require_expressible(recipe: Recipe, config: dict[str, object], student: Dims) -> None:
    """Refuse, before any work, a student that a format cannot express.

    It keeps the fields of the teacher's `config` but for its dimensions.

    Raises:
        UnsupportedError: naming the field, or the tensor.
    """
    dims = {name: getattr(student, name) for name in (*SHAPE_FIELDS, "tie_word_embeddings")}
    pattern, sparsity = recipe.sparsify.pattern, None
    if pattern is not None:
        shapes = expected_shapes(student)
        names = covered_weights(student, recipe.sparsify.skip)
        sparsity = SparsityRecord(
            pattern=parse_pattern(pattern),
            model_type=student.model_type,
            shapes={name: (shapes[name][0], shapes[name][1]) for name in names},
        )

    def check(formats: Sequence[str]) -> None:
        check_exports(formats, {**config, **dims}, recipe.export, sparsity=sparsity)

    try:
        check(recipe.export_formats())
    except UnsupportedError as error:
        if recipe.export.formats is None and (able := _accepted(check, recipe.export_formats())):
            others = f"the other default formats can: --formats {','.join(able)}"
            raise UnsupportedError(
                error.what, where=error.where, expected=error.expected, found=error.found, hint=others
            ) from error
        raise


def _accepted(check: Callable[[Sequence[str]], None], formats: Sequence[str]) -> list[str]:
    """Those of the formats that a check takes by themselves."""
    found = []
    for name in formats:
        with suppress(UnsupportedError):
            check([name])
            found.append(name)
    return found


def require_texts(recipe: Recipe, console: Console) -> None:
    """Refuse, before any work, a text that is not there or not sound; all of a local one is read.

    Raises:
        UsageError, NetworkError: as `source_fingerprint` and `check_texts` do.
    """
    chats = [recipe.evaluate.chat_data] if recipe.evaluate.chat_data is not None else []
    specs = sorted({evaluation_config(recipe).data, *chats, *_seen(recipe)})
    for spec in specs:
        source_fingerprint(spec)
    check_texts(specs, console)
    if recipe.distill.loss_on == "responses":
        check_responses(_trained_on(recipe))


def _trained_on(recipe: Recipe) -> tuple[str, ...]:
    return tuple(domain.data for domain in recipe.distill.mixture()) if any(_budgets(recipe)) else ()


def _budgets(recipe: Recipe) -> tuple[int, ...]:
    """Tokens of every training on the training text: the run's own, and the short ones of a search."""
    tried = recipe.search.training(recipe.distill).tokens if recipe.search.candidates else 0
    return recipe.distill.tokens, recipe.recovery_tokens(), recipe.mask_tokens(), tried


def _seen(recipe: Recipe) -> tuple[str, ...]:
    """Texts that calibration, training and sampling read."""
    calibrates = (
        recipe.prune.reads_text or recipe.quantize.fp8 or recipe.sparsify.pattern or recipe.repair.enabled
    )
    samples = recipe.distill.tokens and recipe.distill.generate.tokens
    prompts = recipe.distill.generate.prompts
    read = [*_trained_on(recipe), *([recipe.calibration.data] if calibrates else [])]
    return tuple(sorted({*read, *([prompts] if prompts and samples else [])}))


def evaluation_config(recipe: Recipe, seen: tuple[str, ...] = ()) -> EvaluateStageConfig:
    """What the evaluate stage measures on, by default the first training text.

    Of a text that is used elsewhere, or whose fingerprint is among those `seen`, it is the held-out part.
    """
    data = recipe.evaluate.data or recipe.distill.mixture()[0].data
    return EvaluateStageConfig(
        data=data,
        split=unseen_part(recipe, data, seen),
        window=recipe.evaluate.seq_len,
        size=recipe.evaluate.size,
    )


def unseen_part(recipe: Recipe, data: str, seen: tuple[str, ...]) -> Split:
    """The part of a text that is measured on: see `evaluation_config`."""
    return unseen_split(data, {*seen, *(source_fingerprint(spec) for spec in _seen(recipe))})


def require_windows(recipe: Recipe, tokenizer: Any, seen: tuple[str, ...]) -> None:
    """Refuse, before any work, a text too short to calibrate or train on, or to be measured on.

    Conversations that will be read are rendered as well. `seen` are fingerprints of the teacher's texts.

    Raises:
        UsageError: naming the text and its part, a row that the chat template refuses, or a question of which
            the tokenizer leaves nothing.
        UnsupportedError: for a template that does not tell responses from the rest, where only these count.
        VerificationError: for a template that takes too much time or memory.
    """
    evaluation = evaluation_config(recipe, seen)
    parts = [(evaluation.data, evaluation.split, evaluation.window)]
    if recipe.calibration.data in _seen(recipe):
        parts.append((recipe.calibration.data, "train", recipe.calibration.seq_len))
    parts += [(spec, "train", recipe.distill.context_length) for spec in _trained_on(recipe)]
    for spec, split, seq_len in parts:
        read_windows(spec, split, tokenizer, size=1, seq_len=seq_len)
    if recipe.repair.enabled:
        calibration = recipe.calibration
        found = read_windows(
            calibration.data, "train", tokenizer, size=FEWEST_REPAIR_SEQUENCES, seq_len=calibration.seq_len
        )
        require_sequences(len(found))
    measured = evaluation.size * evaluation.window
    check_rendering(evaluation.data, evaluation.split, tokenizer, max_tokens=measured)
    if recipe.calibration.data in _seen(recipe):
        check_rendering(recipe.calibration.data, "train", tokenizer, max_tokens=None)
    if recipe.prune.depth_task is not None:
        for question in read_task(recipe.prune.depth_task):
            encode(question, tokenizer)
    budget = max(*_budgets(recipe), recipe.distill.correction.tokens or 0)
    for spec in _trained_on(recipe):
        check_rendering(spec, "train", tokenizer, max_tokens=budget, loss_on=recipe.distill.loss_on)


def require_tokenizer(teacher: Path, *, trust_remote_code: bool) -> None:
    """Refuse, before any work, a tokenizer that an export could not carry: its class would read it otherwise.

    Raises:
        UnsupportedError: naming the text that transformers would encode differently.
    """
    with tempfile.TemporaryDirectory() as scratch:
        export = Path(scratch)
        shutil.copyfile(teacher / CONFIG_FILE, export / CONFIG_FILE)
        copy_tokenizer(teacher, export)
        make_tokenizer_portable(export)
        try:
            check_tokenizer(export, teacher, trust_remote_code=trust_remote_code)
        except VerificationError as error:
            raise UnsupportedError(
                f"no export could carry this tokenizer: {error.what}",
                where=str(teacher),
                expected=error.expected,
                found=error.found,
                hint=error.hint,
            ) from error


def require_trainable(recipe: Recipe) -> None:
    """Refuse, before any work, contradictions in how the student is to be distilled.

    Raises:
        UsageError: for correction or sampling without a teacher in memory, or settings of one that
            another replaces.
    """
    distill = recipe.distill
    if distill.correction.mode == "alongside":
        require_alongside(distill)
    require_loss_on(distill)
    if distill.teacher_logits is None:
        return
    read_artifact(Path(distill.teacher_logits))
    for setting, is_given in (
        ("distill.correction", distill.correction.mode != "off"),
        ("distill.generate", distill.generate.tokens > 0),
    ):
        if is_given:
            raise UsageError(
                "stored teacher logits are valid only for the text and the teacher that they were made with, "
                "and this setting changes one of them",
                where=setting,
                hint="leave this setting out, or --teacher-logits (distill.teacher_logits)",
            )
