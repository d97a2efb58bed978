"""`compress-export generate`: text sampled from a model, to distill on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import OUTPUT, common
from compressor.cli.parsing import Count

_FIELDS = ("prompts", "prompt_tokens", "max_new_tokens", "temperature", "top_p")


@click.command()
@click.argument("model")
@click.option("--tokens", required=True, help="Tokens to sample, such as 100m.")
@click.option("--prompts", default=None, help="SOURCE whose text begins the samples. [none]")
@click.option("--prompt-tokens", type=Count(1), default=None, help="Of each prompt. [16]")
@click.option("--max-new-tokens", type=Count(1), default=None, help="Of each sample. [512]")
@click.option("--temperature", type=float, default=None, help="Of the softmax. [1.0]")
@click.option("--top-p", type=float, default=None, help="Sample from this much probability. [1.0]")
@OUTPUT
@common
def generate(output_dir: str, **flags: Any) -> None:
    """Sample text from MODEL, usually the teacher, into text.jsonl: a SOURCE for distillation."""
    from compressor.cli.session import emit, work
    from compressor.planning.target import parse_count
    from compressor.recipe.recipe import Generate, parse_section

    values = {name: flags[name] for name in _FIELDS if flags[name] is not None}
    tokens = parse_count(flags["tokens"], option="--tokens")
    config = parse_section(Generate, {"tokens": tokens, **values})
    with work(flags) as console:
        from compressor.cli.cheap_checks import check_early
        from compressor.cli.stage_command import execute_stage, open_model, result_of
        from compressor.distillation.generate_stage import GENERATE, TEXT_FILE

        out_dir = Path(output_dir)
        check_early(out_dir, flags, console, models=[flags["model"]], texts=GENERATE.data(config))
        source = open_model(flags["model"], out_dir, flags)
        artifact = execute_stage(GENERATE, config, source, out_dir, flags, console)
    details = artifact.details
    text = f"{artifact.path / TEXT_FILE}: {details['tokens']:,} tokens in {details['samples']:,} samples"
    emit(result_of(artifact), flags, text)
