"""Models that are only a shape: a `config.json` and a mark that the weights are drawn at random.

Speed does not depend on what the weights are, so a published shape can be measured before anything is
trained or downloaded, and so can one of its layers. The mark keeps such a directory from being taken for a
model. For runtimes that read exports a checkpoint of such weights is written, and exported.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from compressor.core.errors import UsageError, VerificationError, nearest
from compressor.core.json_files import read_json_mapping
from compressor.models.dims import SHAPE_FIELDS, Dims, num_parameters
from compressor.models.presets import PRESETS, published_target
from compressor.runs.artifact import ModelArtifact, fingerprint_of, write_json

MARK_FILE = "random_weights.json"
CONFIG_FILE = "config.json"
SEPARATOR = ":"
LAYER = "layer"
END = "<end>"
LAYER_VOCABULARY = 256  # embedding and LM head beside a single layer cost next to nothing
_SIZE = re.compile("[1-9][0-9]{0,6}")
_MAX_POSITIONS = 32768  # more than the published grid's longest cell needs


def shape_of(model: str) -> Dims:
    """The dimensions that `ALIAS[:SHAPE]` names.

    SHAPE is joined by `+`: a published target of the alias, such as `4b-width`, any `FIELD=NUMBER`, and
    `layer` for a single decoder layer with hardly any vocabulary. Anything else is a UsageError.
    """
    alias, _, shape = model.partition(SEPARATOR)
    if alias not in PRESETS:
        raise UsageError(
            f"unknown model alias {alias!r}: random weights need a published shape",
            expected="ALIAS[:SHAPE]",
            hint=nearest(alias, PRESETS) or f"choose one of {', '.join(PRESETS)}",
        )
    dims = PRESETS[alias].dims
    for part in shape.split("+") if shape else []:
        if part == LAYER:
            dims = dims.with_shape(num_hidden_layers=1, vocab_size=LAYER_VOCABULARY)
        elif "=" in part:
            dims = dims.with_shape(**_field(part))
        else:
            dims = _published(alias, part)
    return dims


def write_shape(dims: Dims, directory: Path, *, seed: int = 0) -> ModelArtifact:
    """Write `config.json` and the mark into `directory`; no weights."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": dims.model_type,
        **{name: getattr(dims, name) for name in SHAPE_FIELDS},
        "tie_word_embeddings": dims.tie_word_embeddings,
        "max_position_embeddings": _MAX_POSITIONS,
    }
    write_json(directory / CONFIG_FILE, config)
    write_json(directory / MARK_FILE, {"seed": seed})
    return ModelArtifact(
        path=directory,
        stage="random-weights",
        fingerprint=fingerprint_of({"config": config, "seed": seed}),
        lineage=("random-weights",),
        num_parameters=num_parameters(dims),
    )


def is_shape_only(directory: Path) -> bool:
    """Whether a directory holds a shape instead of a model."""
    return (directory / MARK_FILE).is_file()


def random_model(directory: Path, *, dtype: str, device: str) -> Any:
    """The model of a shape, weights drawn on the device itself; `eval()` mode, gradients off."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    seed = read_json_mapping(directory / MARK_FILE, what="the mark of random weights").get("seed")
    if not isinstance(seed, int):
        raise VerificationError(
            "the mark of random weights has no seed",
            where=str(directory / MARK_FILE),
            hint="delete the directory: it is written again",
        )
    with torch.random.fork_rng(devices=[0] if device == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.to(device).eval().requires_grad_(requires_grad=False)


def write_random_checkpoint(shape: Path, directory: Path) -> None:
    """Write a shape's weights as a 16-bit checkpoint for an exporter, with a tokenizer that knows no text."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = random_model(shape, dtype="bfloat16", device="cpu")
    model.save_pretrained(directory)
    # Some classes name no end token in their config, and a graph's builder demands one.
    tokenizer = Tokenizer(models.WordLevel({END: 0}, unk_token=END))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=END, eos_token=END).save_pretrained(
        directory
    )


def _published(alias: str, target: str) -> Dims:
    preset = published_target(PRESETS[alias].dims, target)
    if preset is None:
        targets = PRESETS[alias].targets
        raise UsageError(
            f"{alias} has no published shape {target!r}",
            expected=", ".join([*targets, LAYER, "FIELD=NUMBER+FIELD=NUMBER"]),
            hint=nearest(target, [*targets, LAYER]) or f"write a shape, such as {alias}:num_hidden_layers=16",
        )
    return preset.dims


def _field(part: str) -> dict[str, int]:
    name, _, number = part.partition("=")
    if name not in SHAPE_FIELDS or not _SIZE.fullmatch(number):
        raise UsageError(
            f"{part!r} does not set a field of a shape",
            expected=f"FIELD=NUMBER with a FIELD of {', '.join(SHAPE_FIELDS)}",
            hint=nearest(name, SHAPE_FIELDS) or "write it like num_hidden_layers=16",
        )
    return {name: int(number)}
