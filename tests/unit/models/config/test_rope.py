"""Every rope form computes what plain transformers computes from the original directory.

The other side is always plain transformers on files that this project has not touched. What a generation
does not accept itself is left out for it by name.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.core.errors import UnsupportedError
from compressor.models.config.portable import make_portable, portable_config
from compressor.models.config.rope import rope_of
from compressor.models.load import load_model
from compressor.models.source import open_checkpoint, resolve_source
from compressor.pruning.slicing import slice_checkpoint
from tests.plans import random_plan
from tests.rope_forms import (
    CONTEXT,
    FIRST_WITH_ROPE_PARAMETERS,
    GENERATION,
    HEAD_DIM,
    LARGEST_DIFFERENCE,
    ORIGINAL_CONTEXT,
    ROPE_CASES,
    RopeForm,
    case_name,
    largest_difference,
    make_rope_model,
    plain_logits,
    prompt,
    write_source,
)

FIVE = (5,)
BOTH = (4, 5)
LINEAR = {"factor": 4.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
FACTORS = {
    "short_factor": [1.0 + 0.1 * index for index in range(HEAD_DIM // 2)],
    "long_factor": [2.0 + 0.5 * index for index in range(HEAD_DIM // 2)],
}
ORIGINAL = {"original_max_position_embeddings": ORIGINAL_CONTEXT}


@torch.no_grad()
def logits_of(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(token_ids).logits
    return logits


def rewritten(source: Path, directory: Path) -> Path:
    """A copy, rewritten twice; the second time changes nothing."""
    copy = Path(shutil.copytree(source, directory))
    make_portable(copy)
    once = (copy / "config.json").read_bytes()
    make_portable(copy)
    assert (copy / "config.json").read_bytes() == once
    return copy


@pytest.mark.parametrize(("family", "form"), ROPE_CASES, ids=case_name)
def test_source_teacher_and_unchanged_student_compute_the_same(
    family: str, form: RopeForm, tmp_path: Path
) -> None:
    """Plain transformers = the teacher as read = a student of unchanged shape, beyond the context."""
    made = make_rope_model(tmp_path / "source", family, form)
    student = tmp_path / "student"
    student.mkdir()

    source = open_checkpoint(resolve_source(str(made.directory)), tmp_path, dtype="float32")
    teacher = logits_of(load_model(source.path, dtype="float32", device="cpu"), made.token_ids)
    slice_checkpoint(source.path, random_plan(source.path), student)
    rewritten(student, tmp_path / "again")

    assert largest_difference(teacher, made.logits) <= LARGEST_DIFFERENCE
    assert largest_difference(plain_logits(student, made.token_ids), made.logits) <= LARGEST_DIFFERENCE
    for name in ("rope_theta", "rope_scaling", "rope_parameters"):
        assert name in json.loads((student / "config.json").read_text())


@dataclass(frozen=True)
class Variant:
    """Further fields that a config may say its rope with, and the generations that accept them."""

    name: str
    fields: dict[str, Any]
    generations: tuple[int, ...] = BOTH
    family: str = "llama"

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"


VARIANTS = (
    Variant("base-beside-default", {"rope_theta": 5e3, "rope_parameters": {"rope_type": "default"}}),
    Variant("base-beside-linear", {"rope_theta": 5e3, "rope_parameters": {"type": "linear", **LINEAR}}, FIVE),
    Variant("base-null", {"rope_theta": None, "rope_parameters": {"rope_theta": 5e3}}, FIVE),
    Variant(
        "base-inside-scaling", {"rope_scaling": {"rope_type": "linear", "rope_theta": 5e3, **LINEAR}}, FIVE
    ),
    Variant("base-whole-number", {"rope_theta": 5000, "rope_scaling": {"type": "dynamic", "factor": 2}}),
    Variant("base-absent", {"rope_scaling": {"type": "linear", **LINEAR}}),
    Variant("base-absent", {"rope_parameters": {"rope_type": "linear", **LINEAR}}, FIVE, "qwen3"),
    Variant("named-default", {"rope_theta": 5e3, "rope_scaling": {"rope_type": "default"}}),
    Variant("both-names", {"rope_scaling": {"rope_type": "linear", "type": "linear", **LINEAR}}),
    Variant("empty", {"rope_theta": 5e3, "rope_scaling": {}}, FIVE),
    Variant(
        "both-spellings",
        {
            "rope_theta": 5e3,
            "rope_scaling": {"type": "linear", **LINEAR},
            "rope_parameters": {"rope_theta": 5e3, "rope_type": "linear", **LINEAR},
        },
    ),
    Variant("yarn-attention", {"rope_scaling": {"type": "yarn", "attention_factor": 1.3, **YARN}}),
    Variant(
        "yarn-mscale",
        {"rope_scaling": {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 0.4, **YARN}},
        family="mistral",
    ),
    Variant("yarn-finetuned", {"rope_scaling": {"type": "yarn", "finetuned": True, **YARN}}),
    Variant("yarn-truncate-null", {"rope_scaling": {"rope_type": "yarn", "truncate": None, **YARN}}),
    Variant("yarn-without-original", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, family="qwen2"),
    Variant(
        "yarn-original-null",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, **dict.fromkeys(ORIGINAL)}},
        (4,),
    ),
    Variant("yarn-twice", {"rope_scaling": {"rope_type": "yarn", **YARN}, **ORIGINAL}),
    Variant("yarn-outside", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, **ORIGINAL}, FIVE),
    Variant("yarn-factor-null", {"rope_parameters": {"rope_type": "yarn", **YARN, "factor": None}}, FIVE),
    Variant("longrope-no-original", {"rope_scaling": {"rope_type": "longrope", "factor": 4.0, **FACTORS}}),
    Variant(
        "longrope-attention",
        {"rope_scaling": {"type": "longrope", "attention_factor": 1.2, **FACTORS}, **ORIGINAL},
    ),
    Variant(
        "longrope-other-factor",
        {"rope_parameters": {"rope_type": "longrope", "factor": 8.0, **FACTORS, **ORIGINAL}},
        FIVE,
    ),
    Variant(
        "llama3-without-original",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                **LINEAR,
            }
        },
        FIVE,
        "qwen2",
    ),
    Variant("fraction", {"partial_rotary_factor": 0.25}, family="nemotron"),
    Variant("fraction-and-percent", {"rope_percent": 0.5}, family="nemotron"),
    Variant("fraction-inside", {"rope_parameters": {"partial_rotary_factor": 0.75}}, FIVE, "nemotron"),
    Variant("whole-fraction", {"partial_rotary_factor": 1.0}),
)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if GENERATION in v.generations], ids=case_name)
def test_a_rewritten_config_computes_the_same(variant: Variant, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_source(source, variant.family, variant.fields)
    expected = plain_logits(source, prompt())

    again = rewritten(source, tmp_path / "again")
    opened = open_checkpoint(resolve_source(str(source)), tmp_path, dtype="float32")
    teacher = logits_of(load_model(opened.path, dtype="float32", device="cpu"), prompt())

    assert largest_difference(plain_logits(again, prompt()), expected) <= LARGEST_DIFFERENCE
    assert largest_difference(teacher, expected) <= LARGEST_DIFFERENCE


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.generations == FIVE], ids=case_name)
@pytest.mark.skipif(GENERATION >= FIRST_WITH_ROPE_PARAMETERS, reason="about transformers before 5")
def test_older_transformers_does_not_read_newer_forms_as_another_rope(
    variant: Variant, tmp_path: Path
) -> None:
    """Refused as it is, or once rewritten readable."""
    source = tmp_path / "source"
    source.mkdir()
    write_source(source, variant.family, variant.fields)

    with pytest.raises(UnsupportedError, match="would misread the rope"):
        load_model(source, dtype="float32", device="cpu")
    plain_logits(rewritten(source, tmp_path / "again"), prompt())
    load_model(tmp_path / "again", dtype="float32", device="cpu")


LONGROPE = {"rope_type": "longrope", **FACTORS}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_scaling": {"type": "linear", "rope_type": "dynamic", **LINEAR}}, "does not say one method"),
        ({"rope_scaling": {"factor": 4.0}}, "does not say one method"),
        ({"rope_scaling": {"type": "su", "factor": 4.0}}, "'su' is not computed alike"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "'mrope' is not computed alike"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "'proportional' is not computed alike"),
        ({"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": -2.0}}, "factor"),
        ({"rope_scaling": "linear"}, "not a mapping"),
        ({"rope_theta": None}, "rope_theta is null"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta twice"),
        (
            {"rope_scaling": {"type": "linear", **LINEAR}, "rope_parameters": {"rope_type": "default"}},
            "contradict",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {}}},
            "full_attention",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}, **ORIGINAL}, "differently"),
        ({"rope_scaling": {"type": "yarn", **YARN}, "original_max_position_embeddings": 32}, "twice"),
        ({"rope_scaling": {**LONGROPE, "factor": 4.0, **ORIGINAL}}, "differently"),
        ({"rope_scaling": {**LONGROPE, "factor": 8.0}, **ORIGINAL}, "differently"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "long_factor"),
        ({"rope_parameters": {**LONGROPE, "factor": 4.0, "original_max_position_embeddings": 1}}, "above 1"),
        ({"model_type": "nemotron", "rope_scaling": {"type": "linear", **LINEAR}}, "4.57 ignores"),
        ({"model_type": "nemotron", "partial_rotary_factor": None}, "partial_rotary_factor is null"),
    ],
)
def test_what_means_two_things_or_none_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    config = {"model_type": "llama", "max_position_embeddings": CONTEXT, **fields}

    with pytest.raises(UnsupportedError) as caught:
        portable_config(config)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("llama", {}), ("qwen2", {}), ("mistral", {}), ("nemotron", {"partial_rotary_factor": 0.5})],
)
def test_class_defaults_are_written_out(model_type: str, fields: dict[str, Any]) -> None:
    both = portable_config({"model_type": model_type})

    assert both["rope_theta"] == 10_000.0
    assert both["rope_scaling"] is None
    assert both["rope_parameters"] == {"rope_theta": 10_000.0, "rope_type": "default", **fields}
    assert both.get("partial_rotary_factor") == fields.get("partial_rotary_factor")


def test_a_scaling_stays_as_it_was_written() -> None:
    given = {"type": "linear", "factor": 4.0}
    config: dict[str, Any] = {"model_type": "llama", "rope_theta": 100_000, "rope_scaling": given}

    for _ in range(3):
        config = portable_config(config)

    assert config["rope_scaling"] == given
    assert config["rope_parameters"] == {"rope_theta": 100_000, "rope_type": "linear", "factor": 4.0}
    assert rope_of(config).kind == "linear"
