"""Sections of the recipe that train: the text, the teacher and distillation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, model_validator

from compressor.choices.losses import LOSSES
from compressor.choices.samplers import AUTO, SAMPLER_CHOICES, sampler_on_this_machine
from compressor.recipe.forms import LayerPairs, Tokens, parse_domain, parse_names, written
from compressor.recipe.option import OneOf, Section, declaration_of, option

DEFAULT_TEXT = "HuggingFaceFW/fineweb-edu:sample-10BT"
TEXT_FORMS = (
    "a hub data set (ID, ID:CONFIG or ID:CONFIG:SPLIT), or local plain text, JSON, CSV or Parquet, .gz and "
    ".zst of these, a directory or glob of them, or a folder saved by datasets"
)
SHORT_RETRAINING_TOKENS = 1_800_000_000

SCHEDULE, TEXT = "Training", "Training text"
LOSS, SCALE = "Distillation loss and teacher", "Memory and many GPUs"

StateLoss = Literal["auto", "off", "cosine", "mse"]
TopKTail = Literal["drop", "bucket"]
KLWeighting = Literal["uniform", "entropy"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


class Domain(Section):
    """One of several training texts."""

    name: str = option(..., "Name of the domain in reports.", min_length=1)
    data: str = option(..., f"Text of the domain: {TEXT_FORMS}.")
    weight: float = option(1.0, "Share of the sequences, relative to the other domains'.", gt=0)
    reference_loss: float | None = option(
        None, "Cross-entropy in nats that dynamic batches aim at; by default the teacher's.", gt=0
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return parse_domain(value) if isinstance(value, str) else value


class DynamicBatches(Section):
    """Dynamic batch loading (Sheared LLaMA, arXiv 2310.06694): domains that lag are sampled more often."""

    heading: ClassVar[str] = TEXT
    prefix: ClassVar[str] = "dynamic"

    variant: Literal["off", "clipped", "unclipped"] = option(
        "off",
        "Sample a --domain more often if its loss is far above its reference loss, by default the teacher's. "
        "clipped: a loss below the reference counts as equal to it (rule of the Sheared LLaMA paper); "
        "unclipped: it counts as it is, and sampling weights are smoothed (rule of the paper's code).",
        flag="--dynamic-batches",
    )
    interval_steps: int = option(
        400,
        "With --dynamic-batches: optimizer steps between two updates of the domains' sampling weights.",
        ge=1,
    )
    eval_size: int = option(
        16, "With --dynamic-batches: number of held-out sequences that a domain's loss is measured on.", ge=1
    )


class Correction(Section):
    """Teacher correction (arXiv 2408.11796): fine-tuning the teacher on the distillation text."""

    heading: ClassVar[str] = LOSS
    prefix: ClassVar[str] = "correction"

    mode: Literal["off", "first", "alongside"] = option(
        "off",
        "Fine-tune the teacher on the training text. first: before distillation; alongside: in the same "
        "steps.",
        flag="--teacher-correction",
    )
    tokens: Tokens | None = option(
        None,
        "Token budget of --teacher-correction first; by default that of --tokens.",
        ge=1,
        metavar="COUNT",
    )
    learning_rate: float | None = option(
        None, "Peak learning rate of teacher correction; by default a fifth of --learning-rate.", gt=0
    )
    warmup_steps: int | None = option(
        None,
        "Warm-up steps of teacher correction; by default 120, or a tenth of all steps if that is fewer.",
        ge=0,
    )


class Generate(Section):
    """Text sampled from the teacher, as one more training domain."""

    heading: ClassVar[str] = TEXT
    prefix: ClassVar[str] = "generate"

    tokens: Tokens = option(
        0,
        "Number of tokens to sample from the teacher as training text, such as 10m; 0 for none.",
        ge=0,
        metavar="COUNT",
    )
    prompts: str | None = option(
        None,
        "Text whose first tokens are used as prompts; by default samples start without a prompt.",
        metavar="SOURCE",
    )
    prompt_tokens: int = option(
        16, "Number of tokens taken as a prompt from the start of each document of the prompts' text.", ge=1
    )
    max_new_tokens: int = option(512, "Largest number of tokens sampled after each prompt.", ge=1)
    temperature: float = option(1.0, "Softmax temperature when sampling text.", gt=0)
    top_p: float = option(
        1.0,
        "Sample only from the smallest set of tokens whose probabilities sum to at least this.",
        gt=0,
        le=1,
    )
    sampler: Annotated[str, AfterValidator(OneOf(SAMPLER_CHOICES))] = option(
        AUTO, "What samples the text: a server of the teacher, or this program."
    )
    weight: float = option(
        1.0, "Sampling weight of the sampled text, relative to those of the other training texts.", gt=0
    )

    def settled(self) -> Generate:
        """The same with what samples on this machine in the place of auto."""
        if self.sampler != AUTO:
            return self
        return self.model_copy(update={"sampler": sampler_on_this_machine()})


class Distill(Section):
    """Retraining on the teacher's logits."""

    heading: ClassVar[str] = SCHEDULE

    data: str = option(
        DEFAULT_TEXT, f"Training text: {TEXT_FORMS}.", flag="--train-data", heading=TEXT, metavar="SOURCE"
    )
    domains: tuple[Domain, ...] = option(
        (),
        "One of several training texts, with its sampling weight (by default 1), instead of --train-data; "
        "repeatable.",
        flag="--domain",
        heading=TEXT,
        metavar="NAME=SOURCE[@WEIGHT]",
        multiple=True,
    )
    dynamic_batches: DynamicBatches = DynamicBatches()
    correction: Correction = Correction()
    generate: Generate = Generate()
    loss_on: Literal["all", "responses"] = option(
        "all",
        "Tokens that the loss is computed on. responses: assistant turns and completions only.",
        heading=TEXT,
    )
    tokens: Tokens = option(
        SHORT_RETRAINING_TOKENS,
        "Token budget of training, such as 100m; in a run, 0 leaves training out.",
        ge=0,
        metavar="COUNT",
    )
    context_length: int = option(4096, "Tokens per training sequence.", ge=8)
    intra_document_masking: bool = option(
        default=False,
        text="Keep attention and loss within each document of a sequence that packs several.",
        heading=TEXT,
    )
    batch_size: int | None = option(
        None,
        "Sequences per optimizer step, over all GPUs; by default as many as let the token budget fill 400 "
        "steps, at least 1 and at most 1152.",
        flag="--train-batch-size",
        ge=1,
    )
    micro_batch_size: int = option(1, "Sequences per forward pass on each GPU.", heading=SCALE, ge=1)
    learning_rate: float = option(1e-4, "Peak learning rate of the cosine schedule.", gt=0)
    min_learning_rate_ratio: float = option(
        0.1, "Final learning rate of the cosine schedule, as a fraction of the peak.", ge=0, le=1
    )
    warmup_steps: int | None = option(
        None,
        "Linear warm-up steps; by default 40 (correct-teacher: 120), or a tenth of all steps if that is "
        "fewer.",
        ge=0,
    )
    warmup_ratio: float | None = option(
        None, "Linear warm-up as a fraction of all steps, instead of --warmup-steps.", ge=0, le=1
    )
    loss: Annotated[str, AfterValidator(OneOf(LOSSES))] = option(
        "forward-kl", "Divergence between the teacher's and the student's distributions.", heading=LOSS
    )
    kl_weight: float = option(
        1.0, "Weight of the KL loss in distillation; cross-entropy gets 1 - weight.", heading=LOSS, ge=0, le=1
    )
    temperature: float = option(
        1.0, "Softmax temperature of the KL loss in distillation.", heading=LOSS, gt=0
    )
    top_k: int | None = option(
        None,
        "Use only the teacher's top-k tokens per position for the KL loss; by default all tokens, in "
        "cache-logits 1024.",
        heading=LOSS,
        ge=1,
    )
    top_k_tail: TopKTail = option(
        "drop",
        "With --top-k: what becomes of all other tokens. drop: they are left out and the rest renormalised; "
        "bucket: their summed probability counts as one more token.",
        heading=LOSS,
    )
    kl_weighting: KLWeighting = option(
        "uniform",
        "How much each position counts in the KL loss. uniform: all alike; entropy: more where teacher and "
        "student are uncertain of the next token (EA-KD, arXiv 2311.13621).",
        heading=LOSS,
    )
    hidden_state_loss: StateLoss = option(
        "auto",
        "Loss on hidden states. auto: cosine if at least a third of the layers is removed, otherwise off.",
        heading=LOSS,
    )
    embedding_loss: StateLoss = option(
        "auto", "Loss on embeddings. auto: the same as --hidden-state-loss.", heading=LOSS
    )
    layer_pairs: LayerPairs | None = option(
        None,
        "Layers that --hidden-state-loss compares, counted from 0, such as 29:13; by default the third to "
        "last layer of each model.",
        heading=LOSS,
        metavar="TEACHER:STUDENT,...",
    )
    teacher_logits: str | None = option(
        None,
        "Directory written by cache-logits, used instead of a teacher in memory.",
        heading=LOSS,
        metavar="DIR",
    )
    sharding: Literal["auto", "ddp", "fsdp"] = option(
        "auto",
        "How models are spread over GPUs. ddp: a copy on each; fsdp: sharded (FSDP2); auto: fsdp on several "
        "GPUs.",
        heading=SCALE,
    )
    activation_checkpointing: bool = option(
        default=False,
        text="Recompute activations in the backward pass: less memory, more time.",
        heading=SCALE,
        course=True,
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto", "Whether to use torch.compile. auto: on a GPU only.", heading=SCALE, course=True
    )
    report_to: Annotated[tuple[Tracker, ...], written(parse_names)] = option(
        ("tensorboard",),
        "Where training curves are logged: tensorboard, wandb, mlflow, or none.",
        course=True,
        metavar="NAME,...",
    )
    save_steps: int = option(50, "Save a checkpoint every N optimizer steps.", ge=1, course=True, metavar="N")

    @model_validator(mode="after")
    def _domains_have_names_of_their_own(self) -> Distill:
        names = [domain.name for domain in self.domains]
        if len(set(names)) != len(names):
            raise ValueError(f"two domains have the same name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _choices_take_effect(self) -> Distill:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("warmup_steps and warmup_ratio both say how long the warm-up is")
        if self.top_k_tail == "bucket" and self.top_k is None and self.teacher_logits is None:
            raise ValueError("top_k_tail bucket needs top_k: without it, no token is left out")
        if self.kl_weighting != "uniform" and self.kl_weight == 0:
            raise ValueError(f"kl_weighting {self.kl_weighting} has no effect with kl_weight 0")
        if self.top_k is not None and self.kl_weight == 0:
            raise ValueError(f"top_k {self.top_k} has no effect with kl_weight 0")
        return self

    def loss_choices(self) -> list[str]:
        """The recipe's names of what is not as by default about the loss and the teacher."""
        own = {name for name, field in Distill.model_fields.items() if declaration_of(field).heading == LOSS}
        usual = Distill()
        changed = [f"distill.{name}" for name in sorted(own) if getattr(self, name) != getattr(usual, name)]
        return changed + (["distill.correction.mode"] if self.correction.mode != "off" else [])

    def mixture(self) -> tuple[Domain, ...]:
        """The training domains: those given, or the one text."""
        return self.domains or (Domain(name="text", data=self.data, weight=1.0, reference_loss=None),)
