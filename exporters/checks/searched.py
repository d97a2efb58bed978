"""A search's table, figure by figure: sizes by the model class, speeds by hand, ranks by their definition.

What was measured of a shape is compared with its trial's record, where that is beside the search; the
models themselves are gone. Nothing of the code that made the table is used.

Legend: P parameters, V vocabulary, H hidden, L layers, N query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.models.checkpoint import CONFIG_FILE, read_config
from compressor.models.families import family_of
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact
from exporters.checks.equality import expect_equal

_FILE, _TRIAL, _SCRATCH = "search.json", "trial.json", ".compress-export"
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
_RELATIVE = 1e-4  # of speeds that are recorded with six digits

Shape = Mapping[str, Any]


def check_searched(directory: Path, artifact: ModelArtifact, source: Path | None) -> dict[str, JsonValue]:
    """Refuse a search whose table does not follow from its shapes, its rates and its trials.

    Raises:
        VerificationError: naming the shape and the figure.
    """
    file = directory / _FILE
    record = read_json_mapping(file, what="the search's table")
    expect_equal(
        "the search's table is not as its stage recorded it", artifact.details, record, where=file.name
    )
    shapes: list[Shape] = record["shapes"]
    for one in shapes:
        where = f"{file}: {one['name']}"
        name = "x".join(str(one["shape"][field]) for field in _SIZES)
        expect_equal("a tried shape has another's name", name, one["name"], where=where)
        _expect_close("perplexity", math.exp(one["mean_nll"]), one["perplexity"], where=where)
        _check_trial(directory, one)
    _check_ranks(file, record, shapes)
    found: dict[str, JsonValue] = {"num_shapes_ranked": len(shapes)}
    if source is not None:
        _check_sizes(file, record, shapes, source)
        found["num_shapes_recomputed"] = len(shapes)
    _check_student(directory, shapes[0])
    return found


def _check_sizes(file: Path, record: Shape, shapes: list[Shape], source: Path) -> None:
    """Parameters by the model class without weights, and speed-ups over the source by hand."""
    config = read_config(source)
    teacher = {**record["default"], **{name: config[name] for name in _SIZES}}
    floors = {}
    for name, shape in [("", teacher), *((one["name"], one["shape"]) for one in shapes)]:
        counted = _count(source, shape)
        floors[name] = _floors_s(counted, shape, record)
        if name:
            (own,) = (one["num_parameters"] for one in shapes if one["name"] == name)
            expect_equal("a tried shape has another size", counted, own, where=f"{file}: {name}")
            miss = abs(counted / record["requested_parameters"] - 1)
            if miss > record["tolerance"]:
                raise VerificationError(
                    "a tried shape is too far from the target's size",
                    where=f"{file}: {name}",
                    expected=f"within {record['tolerance']:.0%}",
                    found=f"{miss:.2%}",
                )
    for one in shapes:
        ratios = [slow / fast for slow, fast in zip(floors[""], floors[one["name"]], strict=True)]
        speedup = math.prod(ratios) ** (1 / len(ratios))
        _expect_close("predicted_speedup", speedup, one["predicted_speedup"], where=f"{file}: {one['name']}")


def _count(source: Path, shape: Shape) -> int:
    """Parameters of the model class at this shape, tied ones once."""
    config = AutoConfig.from_pretrained(source)
    for name in (*_SIZES, "head_dim", "num_key_value_heads"):
        setattr(config, name, shape[name])
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        config.layer_types = layer_types[: shape["num_hidden_layers"]]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _floors_s(count: int, shape: Shape, record: Shape) -> list[float]:
    """Seconds to read and multiply what each cell needs at the recorded rates, and for nothing else."""
    width = 4 if record["precision"] == "fp32" else 2
    bandwidth = record["rates"]["bandwidth_bytes_per_s"]
    ops_per_s = record["rates"]["matmul_ops_per_s"][record["precision"]]
    hidden, layers, head = shape["hidden_size"], shape["num_hidden_layers"], shape["head_dim"]
    embedding = shape["vocab_size"] * hidden
    query, cached = shape["num_attention_heads"] * head, 2 * shape["num_key_value_heads"] * head
    matrices = layers * hidden * (2 * query + cached + _mlp_matrices(shape) * shape["intermediate_size"])
    stored = width * (count if shape["tie_word_embeddings"] else count - embedding)
    floors = []
    for isl, osl, batch in record["cells"]:
        steps, context = osl - 1, isl + (osl - 1) / 2
        per_prompt = isl * (2 * matrices + 4 * layers * query * (isl // 2)) + 2 * embedding
        per_token = 2 * (matrices + embedding) + 4 * layers * query * int(context)
        prompt_s = max(
            (stored + batch * isl * layers * cached * width) / bandwidth, batch * per_prompt / ops_per_s
        )
        step_s = max(
            (stored + batch * context * layers * cached * width) / bandwidth, batch * per_token / ops_per_s
        )
        floors.append(prompt_s + steps * step_s)
    return floors


def _mlp_matrices(shape: Shape) -> int:
    """Matrices of an MLP: two, and a gate where the class has one."""
    return 2 + family_of(shape["model_type"]).gated_mlp


def _check_ranks(file: Path, record: Shape, shapes: list[Shape]) -> None:
    """Who is fast enough, who is on the front, and in which order."""
    least = record["reference_speedup"] * (1 - record["speed_margin"])
    least = min(least, max(one["predicted_speedup"] for one in shapes))
    for place, one in enumerate(shapes):
        better = [
            other["name"]
            for other in shapes
            if other["predicted_speedup"] >= one["predicted_speedup"]
            and other["mean_nll"] <= one["mean_nll"]
            and (other["predicted_speedup"], other["mean_nll"]) != (one["predicted_speedup"], one["mean_nll"])
        ]
        follows = {
            "rank": place + 1,
            "is_default": one["shape"] == record["default"],
            "is_fast_enough": one["predicted_speedup"] >= least,
            "is_on_pareto_front": not better,
        }
        found = {name: one[name] for name in follows}
        expect_equal("a shape's place does not follow", follows, found, where=f"{file}: {one['name']}")
        for later in shapes[place + 1 :]:
            is_slower = one["is_fast_enough"] < later["is_fast_enough"]
            is_worse = (
                one["is_fast_enough"] == later["is_fast_enough"] and one["mean_nll"] > later["mean_nll"]
            )
            if is_slower or is_worse:
                raise VerificationError(
                    "a shape stands before a better one",
                    where=f"{file}: {one['name']}",
                    expected=f"after {later['name']}",
                )


def _check_trial(directory: Path, one: Shape) -> None:
    """The figures of a shape against its trial's own record, in a run or beside a search's output."""
    name = f"search-{one['name']}"
    beside = directory.absolute().parent
    for folder in (beside / name, beside / _SCRATCH / f"{directory.absolute().name}-search" / name):
        if not (folder / ARTIFACT_FILE).is_file():
            continue
        trial = read_json_mapping(folder / _TRIAL, what="a trial's measurements")
        models = trial["evaluation"]["models"]
        measured = (models["distilled"]["mean_nll"], models.get("reconstructed", {}).get("perplexity"))
        recorded = (one["mean_nll"], one["perplexity_repaired"])
        expect_equal("the table has other figures than the trial", measured, recorded, where=str(folder))


def _check_student(directory: Path, winner: Shape) -> None:
    """In a run, what was pruned has the winner's shape."""
    pruned = directory.absolute().parent / "prune"
    if (pruned / CONFIG_FILE).is_file() and (pruned / ARTIFACT_FILE).is_file():
        config = read_config(pruned)
        found = {name: config[name] for name in _SIZES}
        expected = {name: winner["shape"][name] for name in _SIZES}
        expect_equal("the student is not the shape that the search chose", expected, found, where=str(pruned))


def _expect_close(field: str, expected: float, found: float, *, where: str) -> None:
    if not math.isclose(expected, found, rel_tol=_RELATIVE):
        raise VerificationError(
            "a figure of the search does not follow",
            where=f"{where}: {field}",
            expected=expected,
            found=found,
        )
