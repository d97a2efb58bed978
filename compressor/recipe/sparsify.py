"""The section of the recipe on N:M sparsity, and on the training that recovers from it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.recipe.forms import Tokens
from compressor.recipe.option import OneOf, Section, option


class Sparsify(Section):
    """N:M sparsity of the decoder's linear layers, and the training that recovers from it.

    Training follows the Adaptive Sparse Trainer (arXiv 2407.20584); what is not said here (text,
    batch, warm-up) is as for distillation.
    """

    heading: ClassVar[str] = "Sparsity"

    pattern: str | None = option(
        None,
        "Make linear layers sparse: N of every M weights along the input dimension are kept, such as 2:4.",
        flag="--sparsity",
        metavar="N:M",
        pattern=r"^[0-9]{1,4}:[0-9]{1,4}$",
    )
    method: Annotated[str, AfterValidator(OneOf(SPARSITY_METHODS))] = option(
        "sparsegpt",
        "How the kept weights are chosen.",
        flag="--sparsity-method",
    )
    skip: tuple[str, ...] = option(
        (),
        "Shell pattern of names of linear layers' tensors to leave dense, such as '*down_proj*'; repeatable.",
        multiple=True,
        metavar="PATTERN",
    )
    block_size: int = option(
        128, "Number of columns that SparseGPT handles per block.", flag="--sparsegpt-block-size", ge=4
    )
    dampening_fraction: float = option(
        0.01, "SparseGPT's dampening, as a fraction of the mean diagonal of the Hessian.", ge=0
    )
    raise_dampening: bool = option(
        default=False, text="Raise SparseGPT's dampening when a Hessian is singular."
    )
    update_weights: bool = option(
        default=True, text="Let SparseGPT update the kept weights; otherwise only its mask is used."
    )
    swaps: int = option(
        0,
        "Refine the mask of any method in at most this many sweeps: kept and dropped weights of a group are "
        "exchanged where that lowers the error of the layer's outputs (arXiv 2512.10922).",
        flag="--mask-swaps",
        ge=0,
        metavar="N",
    )
    tokens: Tokens | None = option(
        None,
        "Token budget of training after sparsifying; by default that of --tokens.",
        flag="--recovery-tokens",
        ge=0,
        metavar="COUNT",
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate of training after sparsifying; by default that of --learning-rate.",
        flag="--recovery-learning-rate",
        gt=0,
    )
    kl_weight: float = option(
        0.67,
        "Weight of the KL loss when training a sparse model; cross-entropy gets 1 - weight.",
        flag="--recovery-kl-weight",
        ge=0,
        le=1,
    )
    temperature: float = option(
        2.0,
        "Softmax temperature of the KL loss when training a sparse model.",
        flag="--recovery-temperature",
        gt=0,
    )
    mask_interval: int | None = option(
        None,
        "Optimizer steps after which ast selects the mask again; by default 10, fewer in short runs.",
        ge=1,
    )
    mask_decay: float = option(
        1e-4, "Weight decay that ast applies to masked weights once its ramp is complete.", ge=0
    )
    decay_ramp_steps: int | None = option(
        None,
        "Steps over which ast raises its decay from 0 to --mask-decay; by default a quarter of all steps.",
        ge=1,
    )
    slorb: Literal["off", "fixed", "trained"] = option(
        "off",
        "Add a low-rank branch to the sparse layers, written as a PEFT adapter. fixed: computed once; "
        "trained: trained with the sparse weights.",
    )
    slorb_group: int = option(
        16,
        "Number of input channels per rank of the low-rank branch (--slorb).",
        flag="--slorb-group-size",
        ge=2,
    )

    @property
    def slorb_group_size(self) -> int | None:
        """Input channels per rank, None without a branch."""
        return None if self.slorb == "off" else self.slorb_group
