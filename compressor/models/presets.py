"""Published architectures: model aliases, and the shapes they were compressed to.

Facts from the models' published configurations. Compressed shapes: Llama-3.1-Minitron and
MN-Minitron, arXiv 2408.11796; Minitron, arXiv 2407.14679; Sheared LLaMA, arXiv 2310.06694.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from compressor.models.dims import SHAPE_FIELDS, Dims


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published model: hub id (None: no Hugging Face weights), dimensions, and its compressed shapes.

    `targets` maps what a user may type after `--target` to the alias of the compressed model.
    `removed_layers` are those of the model it was pruned from, 0-based, where the publication names them.
    `pretraining_tokens` is the published budget it was trained on from random weights, with its source.
    """

    alias: str
    hub_id: str | None
    dims: Dims
    source: str
    targets: dict[str, str] = field(default_factory=dict)
    removed_layers: tuple[int, ...] = ()
    pretraining_tokens: int | None = None
    pretraining_source: str | None = None


def _dims(model_type: str, *sizes: int, head_dim: int = 128, tie_word_embeddings: bool = False) -> Dims:
    """From hidden and intermediate size, layers, query heads, key/value heads and vocabulary."""
    names = (name for name in SHAPE_FIELDS if name != "head_dim")
    shape = dict(zip(names, sizes, strict=True))
    return Dims(model_type=model_type, head_dim=head_dim, tie_word_embeddings=tie_word_embeddings, **shape)


_MINITRON = "arXiv 2407.14679"
_MINITRON_2 = "arXiv 2408.11796"
_SHEARED = "arXiv 2310.06694"

_PRESETS = (
    Preset(
        alias="llama3.1-8b",
        hub_id="meta-llama/Llama-3.1-8B",
        dims=_dims("llama", 4096, 14336, 32, 32, 8, 128256),
        source="published configuration",
        targets={"4b": "4b-width", "4b-width": "4b-width", "4b-depth": "4b-depth"},
        pretraining_tokens=15_000_000_000_000,
        pretraining_source="15T, as cited by arXiv 2408.11796",
    ),
    Preset(
        alias="4b-width",
        hub_id="nvidia/Llama-3.1-Minitron-4B-Width-Base",
        dims=_dims("llama", 3072, 9216, 32, 32, 8, 128256),
        source=_MINITRON_2,
    ),
    Preset(
        alias="4b-depth",
        removed_layers=tuple(range(15, 31)),
        hub_id="nvidia/Llama-3.1-Minitron-4B-Depth-Base",
        dims=_dims("llama", 4096, 14336, 16, 32, 8, 128256),
        source=_MINITRON_2,
    ),
    Preset(
        alias="mistral-nemo-12b",
        hub_id="mistralai/Mistral-Nemo-Base-2407",
        dims=_dims("mistral", 5120, 14336, 40, 32, 8, 131072),
        source="published configuration",
        targets={"8b": "mn-minitron-8b"},
    ),
    Preset(
        alias="mn-minitron-8b",
        hub_id="nvidia/Mistral-NeMo-Minitron-8B-Base",
        dims=_dims("mistral", 4096, 11520, 40, 32, 8, 131072),
        source=_MINITRON_2,
    ),
    Preset(
        alias="nemotron4-15b",
        hub_id=None,
        dims=_dims("nemotron", 6144, 24576, 32, 48, 8, 256000),
        source=_MINITRON,
        targets={"8b": "minitron-8b", "4b": "minitron-4b"},
        pretraining_tokens=8_000_000_000_000,
        pretraining_source="8T, arXiv 2402.16819",
    ),
    Preset(
        alias="minitron-8b",
        hub_id="nvidia/Minitron-8B-Base",
        dims=_dims("nemotron", 4096, 16384, 32, 48, 8, 256000),
        source=_MINITRON,
        targets={"4b": "minitron-4b"},
    ),
    Preset(
        alias="minitron-4b",
        hub_id="nvidia/Minitron-4B-Base",
        dims=_dims("nemotron", 3072, 9216, 32, 24, 8, 256000),
        source=_MINITRON,
    ),
    Preset(
        alias="nemotron3-8b",
        hub_id=None,
        dims=_dims("nemotron", 4096, 16384, 32, 32, 32, 256000),
        source=_MINITRON,
    ),
    Preset(
        alias="llama2-7b",
        hub_id="meta-llama/Llama-2-7b-hf",
        dims=_dims("llama", 4096, 11008, 32, 32, 32, 32000),
        source="published configuration",
        targets={"2.7b": "sheared-2.7b", "1.3b": "sheared-1.3b", "370m": "sheared-370m"},
        pretraining_tokens=2_000_000_000_000,
        pretraining_source="2T, arXiv 2307.09288",
    ),
    Preset(
        alias="sheared-2.7b",
        hub_id="princeton-nlp/Sheared-LLaMA-2.7B",
        dims=_dims("llama", 2560, 6912, 32, 20, 20, 32000),
        source=_SHEARED,
    ),
    Preset(
        alias="sheared-1.3b",
        hub_id="princeton-nlp/Sheared-LLaMA-1.3B",
        dims=_dims("llama", 2048, 5504, 24, 16, 16, 32000),
        source=_SHEARED,
    ),
    Preset(
        alias="sheared-370m",
        hub_id=None,
        dims=_dims("llama", 1024, 2816, 24, 8, 8, 32000),
        source=_SHEARED,
    ),
    Preset(
        alias="smollm2-135m",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        dims=_dims("llama", 576, 1536, 30, 9, 3, 49152, head_dim=64, tie_word_embeddings=True),
        source="published configuration",
        pretraining_tokens=2_000_000_000_000,
        pretraining_source="2T, arXiv 2502.02737",
    ),
)

PRESETS: dict[str, Preset] = {preset.alias: preset for preset in _PRESETS}


def preset_of_dims(dims: Dims) -> Preset | None:
    """The published model with exactly these dimensions, or None."""
    return next((preset for preset in _PRESETS if preset.dims == dims), None)


def published_target(teacher: Dims, target: str) -> Preset | None:
    """The published compressed shape that `target` names for this teacher, or None."""
    preset = preset_of_dims(teacher)
    if preset is None:
        return None
    name = target.lower()
    alias = name if name in preset.targets.values() else preset.targets.get(name)
    return PRESETS[alias] if alias else None
