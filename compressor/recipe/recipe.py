"""The recipe: every choice of a run, typed, documented and checked.

`--config recipe.yaml` sets everything, flags override it, and OUT/recipe.yaml says what to run
again. Defaults follow the published settings (Minitron, arXiv 2407.14679 and 2408.11796).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from compressor.choices.formats import FORMATS, default_formats
from compressor.core.errors import UsageError, nearest
from compressor.recipe.yaml_file import read_recipe_tree, refuse_unusable_values

DEFAULT_TEXT = "HuggingFaceFW/fineweb-edu:sample-10BT"
TEXT_HELP = (
    "hub data set (ID, ID:CONFIG or ID:CONFIG:SPLIT), or local plain text, JSON, CSV or Parquet, .gz and "
    ".zst of these, a directory or glob of them, or a folder saved by datasets"
)
SHORT_RETRAINING_TOKENS = 1_800_000_000
MAX_SEED = 1 << 32  # NumPy's generators take no larger ones

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Importance = Literal["activation", "weight-magnitude", "random"]
Aggregation = Literal["mean", "l2", "var"]
SparsityMethod = Literal["magnitude", "wanda", "ria", "sparsegpt", "ast"]
BenchPreset = Literal["quick", "published", "minitron-blog"]


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise PydanticCustomError("unknown_format", f"one of {', '.join(FORMATS)}")
    return name


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Calibration(Section):
    """Text that only sets statistics: importance scores and FP8 scales."""

    data: str = Field(DEFAULT_TEXT, description=TEXT_HELP)
    size: int = Field(1024, ge=1, description="number of windows, spread over the training part")
    seq_len: int = Field(2048, ge=8, description="tokens per window")
    documents: int = Field(
        10_000, ge=1, description="of a hub data set: so many first documents the windows are spread over"
    )


class Prune(Section):
    """What makes a unit important, and an explicit shape instead of a target."""

    importance: Importance = "activation"
    batch_aggregation: Aggregation = "l2"
    sequence_aggregation: Aggregation = "mean"
    shape: dict[str, int] | None = Field(None, description="explicit dimensions of the student")


class Domain(Section):
    """One of several training texts."""

    name: str = Field(min_length=1)
    data: str = Field(description=TEXT_HELP)
    weight: float = Field(1.0, gt=0, description="share of the windows, relative to the others'")
    reference_loss: float | None = Field(
        None, gt=0, description="cross-entropy (nats) that dynamic batches aim at; by default the teacher's"
    )


class DynamicBatches(Section):
    """Dynamic batch loading (Sheared LLaMA, arXiv 2310.06694): domains that lag are sampled more often."""

    variant: Literal["off", "paper", "code"] = Field(
        "off", description="paper: excess losses only; code: shortfalls count too, weights smoothed by 1e-4"
    )
    interval_steps: int = Field(400, ge=1, description="optimizer steps between updates (50 with masks)")
    eval_windows: int = Field(16, ge=1, description="held-out windows per domain and update")


class Correction(Section):
    """Teacher correction (arXiv 2408.11796): fine-tuning the teacher on the distillation text."""

    mode: Literal["off", "first", "alongside"] = "off"
    tokens: int | None = Field(None, ge=1, description="first: by default distillation's budget")
    learning_rate: float | None = Field(None, gt=0, description="by default a fifth of distillation's")
    warmup_steps: int | None = Field(
        None, ge=0, description="by default 120, a tenth of the run where that is shorter"
    )


class Generate(Section):
    """Text sampled from the teacher, as one more training domain."""

    tokens: int = Field(0, ge=0, description="tokens to sample; 0 for none")
    prompts: str | None = Field(None, description="text whose windows begin the samples; by default none")
    prompt_tokens: int = Field(16, ge=1, description="tokens taken from each prompt")
    max_new_tokens: int = Field(512, ge=1, description="tokens sampled after each prompt, at most")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    weight: float = Field(1.0, gt=0, description="of the sampled text among the domains")


class Distill(Section):
    """Retraining on the teacher's logits."""

    data: str = Field(DEFAULT_TEXT, description=f"training text: {TEXT_HELP}")
    domains: tuple[Domain, ...] = Field((), description="several weighted texts, instead of data")
    dynamic_batches: DynamicBatches = DynamicBatches()
    correction: Correction = Correction()
    generate: Generate = Generate()
    loss_on: Literal["all", "responses"] = Field(
        "all", description="responses: only assistant turns and completions count"
    )
    tokens: int = Field(SHORT_RETRAINING_TOKENS, ge=0, description="token budget; 0 only prunes")
    context_length: int = Field(4096, ge=8, description="tokens per training window")
    isolate_documents: bool = Field(
        default=False, description="attention and loss do not cross the documents packed into a window"
    )
    batch_size: int | None = Field(
        None, ge=1, description="windows per optimizer step; by default 1152, less for short budgets"
    )
    micro_batch_size: int = Field(1, ge=1, description="windows per forward pass and process")
    learning_rate: float = Field(1e-4, gt=0)
    min_learning_rate_ratio: float = Field(0.1, ge=0, le=1, description="cosine floor over peak")
    warmup_steps: int | None = Field(
        None, ge=0, description="by default 40, less for runs shorter than 400 steps"
    )
    loss: Literal["forward-kl", "reverse-kl"] = "forward-kl"
    kl_weight: float = Field(1.0, ge=0, le=1, description="of KL; cross-entropy has the rest")
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(
        None, ge=1, description="KL over the teacher's k likeliest tokens, renormalised; by default all"
    )
    intermediate: Literal["auto", "off", "cosine", "mse"] = Field(
        "auto", description="loss on hidden states; auto: cosine for large depth cuts"
    )
    embedding: Literal["auto", "off", "cosine", "mse"] = Field(
        "auto", description="loss on embeddings; auto: with the intermediate loss"
    )
    layer_pairs: tuple[tuple[int, int], ...] | None = Field(
        None, description="(teacher, student) layers, from 0; by default two before the last of each"
    )
    teacher_logits: str | None = Field(
        None, description="directory of stored teacher logits, instead of a teacher in memory"
    )
    sharding: Literal["auto", "replicate", "full"] = Field(
        "auto", description="over processes: replicate (DDP) or full (FSDP2); auto: full where it can"
    )
    activation_checkpointing: bool = Field(default=False, description="recompute activations: less memory")
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile; auto: on a GPU")
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    checkpoint_steps: int = Field(50, ge=1, description="optimizer steps between checkpoints")

    def mixture(self) -> tuple[Domain, ...]:
        """The training domains: those given, or the one text."""
        return self.domains or (Domain(name="text", data=self.data, weight=1.0, reference_loss=None),)


class Sparsify(Section):
    """N:M sparsity of the decoder's linear layers, and the training that recovers from it.

    Training follows the Adaptive Sparse Trainer (arXiv 2407.20584); what is not said here (text,
    batch, warm-up) is as for distillation.
    """

    pattern: str | None = Field(
        None, pattern=r"^[0-9]{1,4}:[0-9]{1,4}$", description="such as 2:4; by default dense"
    )
    method: SparsityMethod = Field(
        "sparsegpt", description="ast starts from sparsegpt and selects the mask again while it trains"
    )
    skip: tuple[str, ...] = Field(
        (), description="shell patterns of further tensors to leave dense; embeddings and LM head always are"
    )
    block_size: int = Field(128, ge=4, description="SparseGPT's columns per block")
    dampening_fraction: float = Field(0.01, ge=0, description="SparseGPT's, of the Hessian's mean diagonal")
    raise_dampening: bool = Field(default=False, description="raise it where the Hessian demands it")
    update_weights: bool = Field(default=True, description="keep SparseGPT's update; else its mask alone")
    tokens: int | None = Field(None, ge=0, description="recovery's budget; by default distillation's")
    learning_rate: float | None = Field(None, gt=0, description="by default distillation's")
    kl_weight: float = Field(0.67, ge=0, le=1, description="of KL; cross-entropy has the rest")
    temperature: float = Field(2.0, gt=0)
    mask_interval: int | None = Field(
        None, ge=1, description="ast: steps between selections; by default 10, less for short runs"
    )
    mask_decay: float = Field(1e-4, ge=0, description="ast: decay of masked weights at the ramp's end")
    decay_ramp_steps: int | None = Field(
        None, ge=1, description="ast: steps until then; by default a quarter of the run"
    )
    slorb: Literal["off", "fixed", "trained"] = Field("off", description="low-rank branch in adapter/")
    slorb_group: int = Field(16, ge=2, description="input channels per rank of the branch")

    @property
    def slorb_group_size(self) -> int | None:
        """Input channels per rank, None without a branch."""
        return None if self.slorb == "off" else self.slorb_group


class Quantize(Section):
    """Post-training quantisation of the decoder's linear layers."""

    fp8: bool = Field(default=False, description="FP8 E4M3 weights and activations")
    fp8_kv_cache: bool = Field(default=False, description="FP8 keys and values as well")


class TensorRTLLM(Section):
    """How TensorRT-LLM checkpoints are cut into ranks, and what their engines are built for."""

    tp_size: int = Field(1, ge=1, description="GPUs that share every layer")
    pp_size: int = Field(1, ge=1, description="GPUs that share the layers among them")
    require_engine: bool = Field(default=False, description="fail where no engine can be built")
    max_batch_size: int = Field(64, ge=1, description="requests at once")
    max_input_len: int = Field(1024, ge=1, description="tokens of one prompt")
    max_seq_len: int | None = Field(None, ge=1, description="prompt and output; by default the model's")
    max_num_tokens: int = Field(8192, ge=1, description="tokens of one step, padding removed")
    opt_num_tokens: int | None = Field(None, ge=1, description="tokens the kernels are tuned for")
    multiple_profiles: bool = Field(default=True, description="several optimisation profiles")
    workers: int = Field(1, ge=1, description="ranks built at once")


class Export(Section):
    """What is written, and how closely it must agree with the student."""

    formats: tuple[Annotated[str, AfterValidator(_known_format)], ...] | None = Field(
        None,
        description="by default huggingface, tensorrt-llm, onnx and onnx-int4; with --fp8 huggingface-fp8 "
        "as well, and tensorrt-llm-fp8 instead of tensorrt-llm",
    )
    tensorrt_llm: TensorRTLLM = TensorRTLLM()
    int4_min_top1: float | None = Field(
        None, ge=0, le=1, description="gate on int4's top-1 agreement; by default reported only"
    )


class Evaluate(Section):
    """Perplexity on held-out text: non-overlapping windows, no BOS token."""

    data: str | None = Field(None, description="by default the held-out part of the training text")
    window: int = Field(1024, ge=8, description="tokens per window")
    size: int = Field(64, ge=1, description="number of windows")


class Bench(Section):
    """The paired benchmark of student against teacher."""

    isl_osl: tuple[tuple[int, int], ...] = ((128, 128), (1000, 1000))
    batch_sizes: tuple[int, ...] = (1, 8)
    batch_pairs: tuple[tuple[int, int], ...] = Field(
        (), description="a batch size for the baseline and one for the candidate"
    )
    largest_batch: bool = Field(
        default=False, description="also each model at the largest batch that it can run"
    )
    batch_limit: int = Field(1024, ge=1, description="where the search for the largest batch ends")
    preset: BenchPreset | None = Field(None, description="a named grid instead of lengths and batches")
    concurrency: tuple[int, ...] = Field((1, 8, 64), description="requests in flight (tensorrt-llm)")
    num_requests: int = Field(200, ge=2, description="requests of one run (tensorrt-llm)")
    processes: Literal["shared", "alternating"] = Field(
        "shared", description="alternating: only one model in memory at a time"
    )
    baselines: Literal["same-precision", "all"] = Field(
        "all", description="all: also each precision against the widest one, and the total"
    )
    precisions: tuple[Literal["fp32", "fp16", "int4"], ...] = ("fp32", "int4")
    min_pairs: int = Field(5, ge=5)
    max_pairs: int = Field(40, ge=5)
    enabled: bool = True


class Recipe(Section):
    """One run of the whole road."""

    model: str
    target: str | None = None
    seed: int = Field(0, ge=0, lt=MAX_SEED)
    device: Device = "auto"
    dtype: Dtype = Field("auto", description="dtype of the stored 16-bit weights and of forward passes")
    tokenizer: str | None = Field(None, description="directory of the real tokenizer of a GGUF file")
    trust_remote_code: bool = False
    calibration: Calibration = Calibration()
    prune: Prune = Prune()
    distill: Distill = Distill()
    sparsify: Sparsify = Sparsify()
    quantize: Quantize = Quantize()
    export: Export = Export()
    evaluate: Evaluate = Evaluate()
    bench: Bench = Bench()

    def export_formats(self) -> tuple[str, ...]:
        """The formats to write, defaults filled in."""
        if self.export.formats is not None:
            return self.export.formats
        return default_formats(fp8=self.quantize.fp8)


def load_recipe(path: Path | None, overrides: dict[str, Any]) -> Recipe:
    """Read a recipe file and lay the given flags over it.

    Args:
        path: YAML file, or None for defaults only.
        overrides: dotted field names to values, such as `{"distill.tokens": 100_000}`.

    Raises:
        UsageError: no such file, no mapping, an unknown key (with the nearest), or a bad value.
    """
    tree = read_recipe_tree(path) if path is not None else {}
    for dotted, value in overrides.items():
        *sections, leaf = dotted.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UsageError(
                    f"recipe section {section!r} is not a mapping", where=str(path), found=type(node).__name__
                )
        node[leaf] = value
    where = str(path) if path else "options"
    refuse_unusable_values(tree, where=where)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise _readable(error, where=where) from error


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def parse_section(section: type[Section], values: dict[str, Any]) -> Any:
    """Build one section from flags.

    Raises:
        UsageError: for a value out of range.
    """
    refuse_unusable_values(values, where="options")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise _readable(error, where="options") from error


def _readable(error: ValidationError, *, where: str) -> UsageError:
    """The first of pydantic's complaints as one of ours."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_beside(first["loc"])
        return UsageError(
            f"unknown recipe key {field!r}",
            where=where,
            expected=", ".join(known),
            hint=nearest(str(first["loc"][-1]), known),
        )
    # YAML takes 2:4 for a number, and 2026-01-01 for a date.
    hint = "put quotes around it" if first["type"] == "string_type" else None
    return UsageError(
        f"recipe value {field!r} is not usable",
        where=where,
        expected=first["msg"],
        found=first["input"],
        hint=hint,
    )


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The fields of the section that an unknown key stands in, of one entry of a list too."""
    model: type[BaseModel] = Recipe
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return list(model.model_fields)
