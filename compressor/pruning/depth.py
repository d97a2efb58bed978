"""Which layers to remove, by what the model loses without them.

Minitron (arXiv 2407.14679, section 2.2) measures the perplexity without each single layer; its successor
(2408.11796) the loss, and a task, without each contiguous block. The layers before a block compute what they
compute in the whole model, so they run once for all blocks that begin behind them: a block costs the layers
that follow it, and all blocks of one size of a model of L layers about L / 2 forward passes.

Scattered layers are removed greedily: the layer that is missed least goes, and all others are measured
again without it. Single-layer losses, the first round, say little about many layers at once.

Under `torchrun` every process runs its share of the sequences and questions.

Legend: B sequences of equal length, T tokens, H hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from compressor.calibration.likelihood import negative_log_likelihood
from compressor.calibration.stream import begun
from compressor.core.errors import VerificationError
from compressor.core.processes import own_share, sum_over_processes
from compressor.data.calibration import spread
from compressor.data.depth_task import read_task
from compressor.data.multiple_choice import EncodedQuestion, encode
from compressor.data.tokenise import TokenArray
from compressor.models.adapter import ModelAdapter
from compressor.models.dims import Dims
from compressor.models.load import load_model
from compressor.models.tokenizer import load_tokenizer
from compressor.planning.depth import curve_sizes, removal
from compressor.pruning.depth_record import Curve, DepthRecord, Measured, Removal, best_position
from compressor.recipe.compression import Prune
from compressor.runs.stage import StageContext

# From the last hidden states `[B, T, H]` behind the final norm to a sum over the sample.
Score = Callable[[torch.Tensor], float]
# By size of the block, in float64 `[num_positions]`.
_Sums = dict[int, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Token ids `[B, T]` that are run together, and what is summed over samples."""

    ids: torch.Tensor
    score: Score


def encoded_questions(
    checkpoint: Path, settings: Prune, context: StageContext
) -> tuple[EncodedQuestion, ...]:
    """The questions of the task that layers are chosen by, for the model at `checkpoint`; none without one.

    Raises:
        UsageError, DependencyError, UnsupportedError: as `read_task` and `encode` do.
    """
    if settings.depth_task is None:
        return ()
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=context.trust_remote_code)
    return tuple(encode(question, tokenizer) for question in read_task(settings.depth_task))


def choose_layers(
    checkpoint: Path,
    dims: Dims,
    student: Dims,
    settings: Prune,
    windows: TokenArray,
    context: StageContext,
    *,
    questions: Sequence[EncodedQuestion] = (),
) -> DepthRecord:
    """Measure the model at `checkpoint` without blocks of layers, and say which ones the student lacks.

    Args:
        checkpoint: The model.
        dims: Its dimensions.
        student: Those of the student, which has fewer layers.
        settings: How layers are chosen, and which curves are measured.
        windows: Calibration sequences `[num_windows, seq_len]`; `settings.depth_size` of them are used.
        context: Of the stage.
        questions: Those of the settings' task.

    Raises:
        VerificationError: for a loss that is not finite.
    """
    trust = context.trust_remote_code
    used = windows[spread(len(windows), min(settings.depth_size, len(windows)), seed=context.seed)]
    model = load_model(checkpoint, dtype=context.dtype, device=context.device, trust_remote_code=trust)
    measure = DepthMeasure(ModelAdapter(model), used, questions)
    num_removed = dims.num_hidden_layers - student.num_hidden_layers
    kind = removal(settings, dims, student)
    is_greedy = kind == "scattered"
    num_rounds = num_removed if is_greedy else 1
    with context.console.progress("depth", num_rounds * measure.num_own_samples) as tick:
        sizes = {*curve_sizes(settings, dims.num_hidden_layers), 1 if is_greedy else num_removed}
        curves = measure.without_blocks(range(dims.num_hidden_layers), {0, *sizes}, on_sample=tick)
        removals: tuple[Removal, ...] = ()
        if is_greedy:
            removals = measure.greedy(num_removed, first=curves[1], on_sample=tick)
            removed = tuple(sorted(one.layer for one in removals))
        else:
            start = best_position(curves[num_removed])
            removed = tuple(range(start, start + num_removed))
    return DepthRecord(
        importance="loss" if settings.depth_importance == "loss" else "task",
        removal=kind,
        num_layers=dims.num_hidden_layers,
        seq_len=int(used.shape[1]),
        num_sequences=len(used),
        num_questions=len(questions),
        whole=curves[0][0],
        curves=tuple(Curve(size=size, without=curves[size]) for size in sorted(sizes)),
        removals=removals,
        removed_layers=removed,
    )


class DepthMeasure:
    """A loaded model, measured without some of its layers on windows and questions."""

    def __init__(
        self, adapter: ModelAdapter, windows: TokenArray, questions: Sequence[EncodedQuestion] = ()
    ) -> None:
        """Prepare the samples.

        Args:
            adapter: The model.
            windows: `[num_windows, seq_len]`; each stands alone, and its first token is context only.
            questions: Of a task; without them no accuracy is measured.
        """
        self._adapter = adapter
        head = adapter.lm_head_weight
        self._windows = [_window_sample(window, head) for window in windows]
        self._questions = [_question_sample(question, head) for question in questions]
        self._num_tokens = windows.shape[0] * (windows.shape[1] - 1)

    @property
    def num_own_samples(self) -> int:
        """How many samples this process runs to measure blocks once."""
        return len(own_share(self._windows)) + len(own_share(self._questions))

    def without_blocks(
        self, kept: Sequence[int], sizes: set[int], *, on_sample: Callable[[], None] = lambda: None
    ) -> dict[int, tuple[Measured, ...]]:
        """What is left without each block of neighbours among the `kept` layers, by size and position.

        Size 0 means nothing is removed, once.

        Raises:
            VerificationError: for a loss that is not finite.
        """
        losses = self._sums(self._windows, kept, sizes, on_sample)
        right = self._sums(self._questions, kept, sizes, on_sample) if self._questions else None
        found = {}
        for size in sizes:
            means = (losses[size] / self._num_tokens).tolist()
            _refuse_nonfinite(losses[size], kept, size)
            shares = (right[size] / len(self._questions)).tolist() if right else [None] * len(means)
            found[size] = tuple(
                Measured(loss=loss, accuracy=share) for loss, share in zip(means, shares, strict=True)
            )
        return found

    def greedy(
        self, count: int, *, first: Sequence[Measured], on_sample: Callable[[], None] = lambda: None
    ) -> tuple[Removal, ...]:
        """Remove `count` layers one after the other; `first` is measured without each single layer."""
        kept = list(range(self._adapter.dims.num_hidden_layers))
        removals: list[Removal] = []
        while len(removals) < count:
            without = self.without_blocks(kept, {1}, on_sample=on_sample)[1] if removals else first
            position = best_position(without)
            removals.append(Removal(layer=kept.pop(position), without=without[position]))
        return tuple(removals)

    def _sums(
        self,
        samples: Sequence[Sample],
        kept: Sequence[int],
        sizes: set[int],
        on_sample: Callable[[], None],
    ) -> _Sums:
        sums = {size: torch.zeros(_num_positions(len(kept), size), dtype=torch.float64) for size in sizes}
        for sample in own_share(samples):
            self._add_(sums, sample, kept)
            on_sample()
        return {size: sum_over_processes(total) for size, total in sorted(sums.items())}

    @torch.no_grad()
    def _add_(self, sums: _Sums, sample: Sample, kept: Sequence[int]) -> None:
        """Add one sample's scores without every block."""
        adapter = self._adapter
        layers, norm = adapter.layers, adapter.model.get_submodule(adapter.family.final_norm)
        states, calls = begun(adapter, sample.ids.to(adapter.lm_head_weight.device))

        def run(index: int, states_BTH: torch.Tensor) -> torch.Tensor:
            output = layers[index].module(states_BTH, **calls[index])
            result: torch.Tensor = output[0] if isinstance(output, tuple) else output
            return result

        for position, layer in enumerate(kept):
            for size, total in sums.items():
                if size and position < len(total):
                    rest = states
                    for index in kept[position + size :]:
                        rest = run(index, rest)
                    total[position] += sample.score(norm(rest))
            states = run(layer, states)
        if 0 in sums:
            sums[0] += sample.score(norm(states))


def _num_positions(num_layers: int, size: int) -> int:
    return num_layers - size + 1 if size else 1


def _window_sample(window: TokenArray, head_VH: torch.Tensor) -> Sample:
    """Scored by the sum of -log p over its tokens but the first."""
    ids = torch.from_numpy(window.astype("int64"))[None]
    targets = ids[0, 1:].to(head_VH.device)
    return Sample(
        ids=ids,
        score=lambda states: negative_log_likelihood(states[0, :-1], head_VH, targets).item(),
    )


def _question_sample(question: EncodedQuestion, head_VH: torch.Tensor) -> Sample:
    """Scored 1 where the right answer is the most likely one, else 0; of equals, the first is chosen."""
    ids = torch.tensor(question.ids)

    def score(states_BTH: torch.Tensor) -> float:
        likelihoods = []
        for row, (first, end) in enumerate(question.spans):
            targets = ids[row, first:end].to(head_VH.device)
            hidden = states_BTH[row, first - 1 : end - 1]
            likelihoods.append(-negative_log_likelihood(hidden, head_VH, targets).item())
        return float(likelihoods.index(max(likelihoods)) == question.answer)

    return Sample(ids=ids, score=score)


def _refuse_nonfinite(losses: torch.Tensor, kept: Sequence[int], size: int) -> None:
    bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
    if bad:
        without = ", ".join(str(index) for index in kept[bad[0] : bad[0] + size]) or "none"
        raise VerificationError(
            "the loss without some layers is not finite",
            where=f"without layers: {without}",
            found=losses[bad[0]].item(),
            hint="find weights that are not finite with `compress-export verify`; else use --dtype float32",
        )
