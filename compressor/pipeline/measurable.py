"""What a benchmark is refused for before a run begins: engines that are not built, or take no such cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.design.comparisons import split_precision
from bench.design.grid import grid_of, in_flight
from compressor.choices.formats import FORMATS, options
from compressor.choices.samplers import SAMPLERS
from compressor.core.errors import DependencyError, UnsupportedError, UsageError
from compressor.core.hardware import Gpu
from compressor.pipeline.bench_plan import planned_arms
from compressor.recipe.recipe import Recipe
from exporters.tensorrt_llm.versions import BUILDER, CONTAINER, find_builder

if TYPE_CHECKING:
    from bench.runtimes.base import StaticRuntime

EDGE_LLM = "tensorrt-edge-llm"
_EDGE_PROMPT = "--edge-llm-max-input-len"


def require_measurable(recipe: Recipe, gpu: Gpu | None = None) -> None:
    """Refuse engines without a format that they are built from, and cells that they do not take.

    Raises:
        UsageError: naming the format or the limit.
        UnsupportedError: for FP8 products on a `gpu` that has none.
    """
    bench = recipe.bench
    if gpu is not None and not gpu.multiplies_fp8:
        _require_no_fp8_products(recipe, gpu)
    if bench.is_measured and bench.precisions is not None and not planned_arms(recipe):
        raise UsageError(
            f"{bench.row.name} measures none of the formats of this run in these precisions",
            where="--bench-precisions",
            expected=f"{' or '.join(bench.row.precisions or options()[bench.row.reads])}, and its format",
            found=f"{', '.join(bench.precisions)}; formats {', '.join(recipe.export_formats()) or 'none'}",
            hint="name another precision, or add its format to --formats",
        )
    if not bench.measures_engines:
        return
    if not recipe.measured_formats():
        able = [name for name, row in FORMATS.items() if row.option == bench.row.engines]
        raise UsageError(
            "engines are measured, but none is built from the formats and precisions that are chosen",
            where="--formats, --bench-precisions",
            expected=" or ".join(able),
            found=", ".join(recipe.export_formats()),
            hint=f"add {able[0]} to the formats, or choose another --runtime",
        )
    limits = _limits(recipe)
    most = max(number for pair in in_flight(bench) for number in pair)
    if most > limits.most_requests:
        raise UsageError(
            "more requests are to be in flight than an engine serves at once",
            where="--concurrency, --preset",
            expected=f"at most {limits.most_requests} ({limits.batch_option})",
            found=most,
            hint=f"add {limits.batch_option} {most}, or lower --concurrency",
        )
    longest = max(grid_of(bench), key=lambda cell: cell.isl + cell.osl)
    if limits.most_tokens is not None and longest.isl + longest.osl > limits.most_tokens:
        raise UsageError(
            "the longest requests do not fit into the engine",
            where="--isl-osl, --preset",
            expected=f"at most {limits.most_tokens} tokens ({limits.length_option})",
            found=f"{longest.isl}/{longest.osl}",
            hint=f"add {limits.length_option} {longest.isl + longest.osl}, or shorten --isl-osl",
        )
    prompt = max(cell.isl for cell in grid_of(bench))
    if limits.most_prompt_tokens is not None and prompt > limits.most_prompt_tokens:
        raise UsageError(
            "the longest prompts do not fit into the engine",
            where="--isl-osl, --preset",
            expected=f"at most {limits.most_prompt_tokens} tokens ({_EDGE_PROMPT})",
            found=prompt,
            hint=f"add {_EDGE_PROMPT} {prompt}, or shorten --isl-osl",
        )


def _require_no_fp8_products(recipe: Recipe, gpu: Gpu) -> None:
    """A server of checkpoints is let through: it may store FP8 and multiply in 16 bits."""
    bench = recipe.bench
    if bench.row.serves and not bench.measures_engines:
        return
    arms = planned_arms(recipe)
    fp8 = [arm.name for arm in arms if split_precision(arm.precision)[0] == "fp8"]
    if fp8:
        others = dict.fromkeys(arm.precision for arm in arms if arm.name not in fp8)
        raise UnsupportedError(
            f"{gpu.name} computes no FP8 products, so these models cannot be measured on it",
            where="--gpu",
            found=", ".join(fp8),
            hint="name another GPU, or measure what this one computes: --bench-precisions "
            f"{','.join(others) or recipe.stored_precision}",
        )


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """What an engine is built for, and the options that say so."""

    most_requests: int
    batch_option: str
    most_tokens: int | None
    length_option: str
    most_prompt_tokens: int | None = None


def _limits(recipe: Recipe) -> _Limits:
    if recipe.bench.row.engines == EDGE_LLM:
        edge = recipe.export.edge_llm
        return _Limits(
            most_requests=edge.max_batch_size,
            batch_option="--edge-llm-max-batch-size",
            most_tokens=edge.max_kv_cache,
            length_option="--edge-llm-max-kv-cache",
            most_prompt_tokens=edge.max_input_len,
        )
    own = recipe.export.tensorrt_llm
    return _Limits(
        most_requests=own.max_batch_size,
        batch_option="--max-batch-size",
        most_tokens=own.max_seq_len,
        length_option="--max-seq-len",
    )


def require_programs(recipe: Recipe) -> None:
    """Refuse to run where what measures, builds what is measured, or samples text is missing.

    Raises:
        DependencyError: naming the program or module.
        UnsupportedError: for a precision that this machine has no kernels for.
    """
    bench, generate = recipe.bench, recipe.distill.generate
    if generate.tokens and recipe.distill.tokens:
        SAMPLERS[generate.settled().sampler].require_found()
    if not bench.is_measured:
        return
    bench.row.require_found()
    if not bench.row.serves:
        runtime: StaticRuntime = bench.row.load()
        for arm in planned_arms(recipe):
            runtime.require(arm.precision)
    if not bench.measures_engines:
        return
    if bench.row.engines == EDGE_LLM:
        if not bench.row.builds_here():
            raise _no_builder(
                bench.row.name, str(bench.row.builder), "it is not on PATH", str(bench.row.install)
            )
    elif isinstance(found := find_builder(), str):
        hint = f"run in the container {CONTAINER}"
        raise _no_builder(bench.row.name, f"{BUILDER} of TensorRT-LLM 1.2", found, hint)


def _no_builder(runtime: str, expected: str, found: str, hint: str) -> DependencyError:
    return DependencyError(
        "engines are to be measured and cannot be built here",
        where=f"--runtime {runtime}",
        expected=expected,
        found=found,
        hint=f"{hint}, or use another --runtime",
    )
