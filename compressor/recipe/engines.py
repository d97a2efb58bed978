"""What engines are built for: TensorRT-LLM's on GPUs, TensorRT-Edge-LLM's on a device."""

from __future__ import annotations

from typing import ClassVar

from compressor.recipe.option import Section, option


class TensorRTLLM(Section):
    """How TensorRT-LLM checkpoints are cut into ranks, and what their engines are built for."""

    heading: ClassVar[str] = "TensorRT-LLM"

    tp_size: int = option(1, "Tensor parallelism: number of GPUs that every layer is split over.", ge=1)
    pp_size: int = option(1, "Pipeline parallelism: number of GPUs that the layers are divided among.", ge=1)
    require_engine: bool = option(
        default=False,
        text="Fail with exit code 4 if trtllm-build is missing; otherwise a build script takes the engine's "
        "place.",
    )
    max_batch_size: int = option(64, "Largest number of requests that an engine serves at once.", ge=1)
    max_input_len: int = option(1024, "Largest number of prompt tokens that an engine accepts.", ge=1)
    max_seq_len: int | None = option(
        None,
        "Largest number of prompt and output tokens together that an engine accepts; by default the model's "
        "context length.",
        ge=1,
    )
    max_num_tokens: int = option(8192, "Largest number of tokens that an engine computes in one step.", ge=1)
    opt_num_tokens: int | None = option(
        None,
        "Number of tokens per step that an engine is tuned for; by default TensorRT-LLM chooses it.",
        ge=1,
    )
    multiple_profiles: bool = option(default=True, text="Build engines with several optimization profiles.")
    workers: int = option(
        1, "Number of ranks of an engine that are built at the same time.", flag="--build-workers", ge=1
    )


class EdgeLLM(Section):
    """Where TensorRT-Edge-LLM's converter is, and what a device's engine is built for."""

    heading: ClassVar[str] = "TensorRT-Edge-LLM"
    prefix: ClassVar[str] = "edge-llm"

    python: str | None = option(
        None,
        "Python interpreter of an environment that has tensorrt-edgellm 0.11 with its extra `export`, which "
        "converts the model; `make edge-env` makes one.",
        metavar="PATH",
        course=True,
    )
    max_batch_size: int = option(1, "Largest number of requests that the engine serves at once.", ge=1)
    max_input_len: int = option(1024, "Largest number of prompt tokens that the engine accepts.", ge=1)
    max_kv_cache: int = option(
        4096,
        "Largest number of prompt and output tokens together that the engine keeps of one request.",
        ge=1,
    )
