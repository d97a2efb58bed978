"""The residual stream in the basis of its principal components, of which a student keeps the first.

Everything that reads the stream divides it by its root mean square, which no rotation changes: with the
norms' gains moved into the matrices behind them, a model whose stream is rotated computes what it did
(SliceGPT, arXiv 2401.15024, section 3). Of the rotated channels those of least variance are then left out.
As a departure from SliceGPT one rotation serves all layers, so that no matrix is needed between them and the
student is of the same class.

With g the gain of the norm before a matrix, and B the kept components:

    reads the stream    W diag(g) B sqrt(H / K)        embedding  E B
    writes to it        B^T W                          norms      1

The root mean square over K channels is that over H times sqrt(H / K), as far as the others are 0. That factor
goes to the matrices too, and not to the norms, whose 1 is exact in 16 bits.

Legend: T tokens, H hidden_size, K kept components, I inputs of a matrix, O its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compressor.calibration.hooks import observed
from compressor.core.errors import UsageError, VerificationError
from compressor.data.tokenise import TokenArray
from compressor.models.adapter import ModelAdapter
from compressor.models.axes import Weight
from compressor.models.checkpoint import row_blocks
from compressor.models.load import load_model
from compressor.pruning.plan import PrunePlan
from compressor.runs.artifact import sha256_of_file
from compressor.runs.stage import StageContext

ROTATION_FILE = "rotation.safetensors"
STREAM = "hidden"


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """The principal components of a model's residual stream.

    Attributes:
        components: float32 `[H, H]`; column i is the direction of the i-th largest variance.
        variances: float64 `[H]`, descending: of a token whose root mean square is 1, along each component.
    """

    components: torch.Tensor
    variances: torch.Tensor

    def kept(self, plan: PrunePlan) -> torch.Tensor:
        """B, the components that a plan keeps, float64 `[H, K]`."""
        return self.components[:, list(plan.kept[STREAM][0])].double()

    def kept_variance(self, plan: PrunePlan) -> float:
        """The share of the variance along the kept components."""
        kept = self.variances[list(plan.kept[STREAM][0])].sum() / self.variances.sum()
        return float(kept)

    def save(self, directory: Path) -> str:
        """Write the rotation beside the plan that names it; returns the file's sha256."""
        tensors = {"components": self.components.contiguous(), "variances": self.variances.contiguous()}
        save_file(tensors, directory / ROTATION_FILE)
        return sha256_of_file(directory / ROTATION_FILE)

    @classmethod
    def load(cls, file: Path, *, digest: str, hidden_size: int) -> Rotation:
        """The rotation that a plan names by its sha256.

        Raises:
            UsageError: when the file is not there, or is another one.
        """
        hint = f"keep {ROTATION_FILE} beside the plan that was written with it"
        try:
            found, tensors = sha256_of_file(file), load_file(file)
        except (OSError, SafetensorError) as error:
            raise UsageError(
                "the rotation of a prune plan cannot be read", where=str(file), found=error, hint=hint
            ) from error
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        expected = {"components": (hidden_size, hidden_size), "variances": (hidden_size,)}
        if (found, shapes) != (digest, expected):
            raise UsageError(
                "this is not the rotation that the prune plan names",
                where=str(file),
                expected=f"sha256 {digest}, {expected}",
                found=f"sha256 {found}, {shapes}",
                hint=hint,
            )
        return cls(components=tensors["components"], variances=tensors["variances"])


def rotation_of(directory: Path, plan: PrunePlan) -> Rotation | None:
    """The rotation in the directory of a plan; None where the plan keeps channels as they are."""
    if plan.rotation is None:
        return None
    file, size = directory / ROTATION_FILE, plan.source.hidden_size
    return Rotation.load(file, digest=plan.rotation, hidden_size=size)


def find_rotation(checkpoint: Path, plan: PrunePlan, windows: TokenArray, context: StageContext) -> Rotation:
    """`principal_components` of the loaded model, for the layers that a plan keeps."""
    trust = context.trust_remote_code
    model = load_model(checkpoint, dtype=context.dtype, device=context.device, trust_remote_code=trust)
    with context.console.progress("principal components", len(windows)) as tick:
        return principal_components(ModelAdapter(model), windows, layers=plan.layers, on_window=tick)


@torch.no_grad()
def principal_components(
    adapter: ModelAdapter,
    windows: TokenArray,
    *,
    layers: Sequence[int],
    on_window: Callable[[], None] = lambda: None,
) -> Rotation:
    """The rotation by what reaches the norms that stay: those of kept layers, and the one before the head.

    Every token counts alike, divided by its root mean square, as the norms see it. Sums of one window are in
    float32, of all windows in float64.

    Args:
        adapter: The model in memory.
        windows: Token ids `[num_windows, seq_len]`.
        layers: The layers that stay.
        on_window: Called after every window.

    Raises:
        VerificationError: when the stream is not finite.
    """
    size, device = adapter.dims.hidden_size, next(adapter.body.parameters()).device
    total = torch.zeros(size, size, dtype=torch.float64)
    of_window = torch.zeros(size, size, device=device)

    def observe(stream: torch.Tensor) -> None:
        x_TH = stream.flatten(0, -2).float()
        x_TH = x_TH / x_TH.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-30)
        of_window.addmm_(x_TH.T, x_TH)

    kept = [adapter.layers[index] for index in layers]
    norms = [layer.part(weight.module) for layer in kept for weight in layer.family.layer if is_norm(weight)]
    norms.append(adapter.model.get_submodule(adapter.family.final_norm))
    with observed(inputs=[(norm, observe) for norm in norms]):
        for window in windows:
            adapter.body(torch.from_numpy(window.astype("int64"))[None].to(device), use_cache=False)
            total += of_window.double().cpu()
            of_window.zero_()
            on_window()
    if not total.isfinite().all():
        raise VerificationError("the residual stream is not finite", where="rotation", found="NaN or inf")
    return rotation_by(total / (windows.size * len(norms)))


def rotation_by(covariance: torch.Tensor) -> Rotation:
    """The eigenvectors of a covariance, float64 `[H, H]`; of each the largest entry is positive."""
    variances, components = torch.linalg.eigh(covariance)
    variances, components = variances.flip(0).clamp_min(0), components.flip(1)
    largest = components.abs().argmax(dim=0)
    components = components * components.gather(0, largest[None]).sign()
    return Rotation(components=components.float(), variances=variances)


def is_norm(weight: Weight) -> bool:
    """Whether a weight is the gain of a norm over the stream."""
    return weight.columns is None and set(weight.rows.values()) == {STREAM}


def norm_of(weight: Weight) -> str | None:
    """The norm through which a matrix reads the stream; None for the embedding, and what does not read it."""
    return weight.reads if weight.columns == STREAM else None


def writes(weight: Weight) -> bool:
    """Whether the output of a matrix is added to the stream."""
    return weight.columns is not None and set(weight.rows.values()) == {STREAM}


def reading_blocks(
    blocks: Iterator[torch.Tensor], kept: torch.Tensor, gain: torch.Tensor | None, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """Row blocks of a matrix `[O, H]`, of which those of `[O, K]` follow.

    Args:
        blocks: Of the matrix.
        kept: B, float64 `[H, K]`.
        gain: Of the norm that it reads through, `[H]`; None for an embedding, which no norm is before.
        dtype: Of the result; products are in float64.
    """
    folded = kept if gain is None else gain.double()[:, None] * kept * (len(kept) / kept.shape[1]) ** 0.5
    return ((block.double() @ folded).to(dtype) for block in blocks)


def writing_blocks(
    matrix: torch.Tensor, columns: torch.Tensor | None, kept: torch.Tensor, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """Row blocks of B^T W.

    Args:
        matrix: W, `[H, I]`, read once for every block.
        columns: The inputs that are kept; None: all.
        kept: B, float64 `[H, K]`.
        dtype: Of the result; products are in float64.
    """
    num_inputs = matrix.shape[1] if columns is None else len(columns)
    for some in kept.chunk(len(list(row_blocks(matrix))), dim=1):
        total = torch.zeros(some.shape[1], num_inputs, dtype=torch.float64)
        first = 0
        for block in row_blocks(matrix):
            part = (block if columns is None else block[:, columns]).double()
            total.addmm_(some[first : first + len(block)].T, part)
            first += len(block)
        yield total.to(dtype)
