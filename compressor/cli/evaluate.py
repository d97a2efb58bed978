"""`compress-export evaluate`: perplexity of one or more models on the same windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import OUTPUT, common
from compressor.cli.parsing import Count


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--perplexity", "source", default=None, help="SOURCE of the text.")
@click.option("--tasks", default=None, help="lm-eval tasks, comma separated (needs the lm-eval extra).")
@click.option("--window", type=Count(8), default=1024, show_default=True, help="Tokens per window.")
@click.option("--size", type=Count(1), default=64, show_default=True, help="Windows.")
@OUTPUT
@common
def evaluate(
    models: tuple[str, ...],
    source: str | None,
    tasks: str | None,
    window: int,
    size: int,
    output_dir: str,
    **flags: Any,
) -> None:
    """Measure perplexity, or lm-eval tasks; the first MODEL is the baseline.

    Of a text that a MODEL was trained or calibrated on, the held-out part is read, for all.
    """
    from compressor.cli.render import evaluation_text
    from compressor.cli.session import emit, work
    from compressor.core.errors import UsageError
    from compressor.models.load import distinct_names

    if (source is None) == (tasks is None):
        raise UsageError("evaluate needs either --perplexity SOURCE or --tasks NAME,...")
    names = distinct_names(models)
    with work(flags) as console:
        from compressor.cli.cheap_checks import check_early
        from compressor.cli.stage_command import execute_stage, open_model
        from compressor.evaluation.evaluate_stage import EVALUATE, EvaluateStageConfig, unseen_split
        from compressor.evaluation.harness import TASKS, TaskStageConfig, require_lm_eval

        if tasks is not None:
            require_lm_eval()
        texts = [source] if source is not None else []
        check_early(Path(output_dir), flags, console, models=models, texts=texts)
        opened = [open_model(model, Path(output_dir), flags) for model in models]
        others = dict(zip(names, opened, strict=True))
        first = others[names[0]]
        if source is not None:
            seen = {text for model in opened for text in model.texts}
            split = unseen_split(source, seen)
            config = EvaluateStageConfig(data=source, split=split, window=window, size=size)
            artifact = execute_stage(EVALUATE, config, first, Path(output_dir), flags, console, others=others)
        else:
            chosen = tuple(part.strip() for part in str(tasks).split(","))
            artifact = execute_stage(
                TASKS, TaskStageConfig(tasks=chosen), first, Path(output_dir), flags, console, others=others
            )
    emit(artifact.details, flags, evaluation_text(artifact.details))
