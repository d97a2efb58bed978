"""Options of training and distillation, and how their values are read."""

from __future__ import annotations

import math
from typing import Any

import click

from compressor.cli.parsing import Command, Count, apply_options, is_count

# Flag of the command line -> field of the recipe.
TRAINING_FIELDS = {
    "train_data": "distill.data",
    "tokens": "distill.tokens",
    "context_length": "distill.context_length",
    "train_batch_size": "distill.batch_size",
    "micro_batch_size": "distill.micro_batch_size",
    "learning_rate": "distill.learning_rate",
    "warmup_steps": "distill.warmup_steps",
    "min_learning_rate_ratio": "distill.min_learning_rate_ratio",
    "temperature": "distill.temperature",
    "domains": "distill.domains",
    "loss_on": "distill.loss_on",
    "dynamic_batches": "distill.dynamic_batches.variant",
    "intra_document_masking": "distill.intra_document_masking",
    "sharding": "distill.sharding",
    "activation_checkpointing": "distill.activation_checkpointing",
    "compile": "distill.compile",
    "report_to": "distill.report_to",
    "save_steps": "distill.save_steps",
}
DISTILLATION_FIELDS = {
    "loss": "distill.loss",
    "distill_kl_weight": "distill.kl_weight",
    "top_k": "distill.top_k",
    "hidden_state_loss": "distill.hidden_state_loss",
    "embedding_loss": "distill.embedding_loss",
    "layer_pairs": "distill.layer_pairs",
    "teacher_correction": "distill.correction.mode",
    "teacher_logits": "distill.teacher_logits",
    "generate_tokens": "distill.generate.tokens",
    "generate_prompts": "distill.generate.prompts",
}


def parse_layer_pairs(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`29:13,28:12` as pairs of teacher and student layer, both from 0."""
    if value is None:
        return None
    pairs = []
    for part in value.split(","):
        teacher, _, student = (word.strip() for word in part.partition(":"))
        if not (is_count(teacher) and is_count(student)):
            raise click.BadParameter(f"{part!r} is not TEACHER:STUDENT, two layers counted from 0")
        pairs.append((int(teacher), int(student)))
    return tuple(pairs)


def parse_domains(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> Any:
    """`web=text.jsonl@0.7` as the recipe's domains; the weight is 1 if it is left out."""
    domains = []
    for value in values:
        name, _, rest = value.partition("=")
        source, mark, weight = rest.rpartition("@")
        if not (mark and _is_number(weight)):
            source, weight = rest, "1"
        if not name.strip() or not source.strip():
            raise click.BadParameter(f"{value!r} is not NAME=SOURCE or NAME=SOURCE@WEIGHT")
        if not 0 < float(weight) < math.inf:
            raise click.BadParameter(f"the weight of {name!r} is {weight}; it must be above 0")
        domains.append({"name": name.strip(), "data": source.strip(), "weight": float(weight)})
    names = [domain["name"] for domain in domains]
    if len(set(names)) != len(names):
        raise click.BadParameter(f"two domains have the same name: {', '.join(map(str, names))}")
    return tuple(domains) or None


def parse_report_to(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
    """`tensorboard,wandb` as a tuple, `none` as an empty one."""
    if value is None:
        return None
    known = ("tensorboard", "wandb", "mlflow")
    parts = tuple(part.strip() for part in value.split(","))
    if parts == ("none",):
        return ()
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}; or none alone")
    return parts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def training(function: Command) -> Command:
    """Options of commands that train: text, schedule, memory and many GPUs."""
    return apply_options(function, [*_SCHEDULE, *_TEXT, *_SCALE])


def distillation(function: Command) -> Command:
    """Options of commands that distill: the loss and the teacher."""
    return apply_options(function, _DISTILLATION)


_SCHEDULE = [
    click.option("--tokens", default=None, help="Budget such as 100k; 0 only prunes. [1.8b]"),
    click.option("--context-length", type=Count(8), default=None, help="Tokens per window. [4096]"),
    click.option(
        "--train-batch-size",
        type=Count(1),
        default=None,
        help="Windows per step over all GPUs. [1152, less for short budgets]",
    ),
    click.option("--learning-rate", type=float, default=None, help="Peak. [1e-4]"),
    click.option("--warmup-steps", type=Count(0), default=None, help="[40]"),
    click.option("--min-learning-rate-ratio", type=float, default=None, help="Cosine floor. [0.1]"),
    click.option("--temperature", type=float, default=None, help="Of the softmax. [1.0]"),
    click.option("--save-steps", type=Count(1), default=None, help="Between two. [50]"),
    click.option(
        "--report-to",
        callback=parse_report_to,
        default=None,
        help="tensorboard,wandb,mlflow or none. [tensorboard]",
    ),
]
_TEXT = [
    click.option("--train-data", default=None, help="SOURCE: hub id, files, directory or glob."),
    click.option(
        "--loss-on",
        type=click.Choice(["all", "responses"]),
        default=None,
        help="responses: assistant turns and completions alone. [all]",
    ),
    click.option(
        "--domain",
        "domains",
        multiple=True,
        callback=parse_domains,
        metavar="NAME=SOURCE[@WEIGHT]",
        help="One of several texts instead of --train-data; repeatable.",
    ),
    click.option(
        "--dynamic-batches",
        type=click.Choice(["off", "clipped", "unclipped"]),
        default=None,
        help="Sample domains that lag more often. [off]",
    ),
    click.option(
        "--intra-document-masking", is_flag=True, default=None, help="No attention across packed documents."
    ),
]
_SCALE = [
    click.option("--micro-batch-size", type=Count(1), default=None, help="Windows per pass and GPU. [1]"),
    click.option(
        "--sharding",
        type=click.Choice(["auto", "ddp", "fsdp"]),
        default=None,
        help="fsdp is FSDP2. [auto]",
    ),
    click.option(
        "--activation-checkpointing", is_flag=True, default=None, help="Recompute activations: less memory."
    ),
    click.option(
        "--compile", type=click.Choice(["auto", "on", "off"]), default=None, help="torch.compile. [auto]"
    ),
]
_DISTILLATION = [
    click.option(
        "--loss", type=click.Choice(["forward-kl", "reverse-kl"]), default=None, help="[forward-kl]"
    ),
    click.option(
        "--distill-kl-weight",
        type=float,
        default=None,
        help="Of KL in distillation; cross-entropy has the rest. [1.0]",
    ),
    click.option("--top-k", type=Count(1), default=None, help="KL over the teacher's k likeliest. [all]"),
    click.option(
        "--hidden-state-loss",
        type=click.Choice(["auto", "off", "cosine", "mse"]),
        default=None,
        help="Loss on hidden states; auto: for large depth cuts. [auto]",
    ),
    click.option(
        "--embedding-loss",
        type=click.Choice(["auto", "off", "cosine", "mse"]),
        default=None,
        help="auto: with the intermediate loss. [auto]",
    ),
    click.option(
        "--layer-pairs",
        callback=parse_layer_pairs,
        default=None,
        metavar="TEACHER:STUDENT,...",
        help="Layers from 0, such as 29:13. [two before the last]",
    ),
    click.option(
        "--teacher-correction",
        type=click.Choice(["off", "first", "alongside"]),
        default=None,
        help="Fine-tune the teacher on the training text. [off]",
    ),
    click.option("--teacher-logits", default=None, metavar="DIR", help="Stored teacher logits."),
    click.option("--generate-tokens", default=None, help="Tokens of text sampled from the teacher. [0]"),
    click.option("--generate-prompts", default=None, help="SOURCE of the samples' beginnings. [none]"),
]
