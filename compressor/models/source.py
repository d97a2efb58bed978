"""From MODEL on the command line to its dimensions, and to a checked checkpoint on disk.

MODEL is an alias, a Hugging Face id, a local directory or a `.gguf` file. Only safetensors and GGUF
are read, never pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compressor.core.errors import UnsupportedError, UsageError, nearest
from compressor.models.dims import Dims, num_parameters
from compressor.models.files import refuse_export
from compressor.models.load import refuse_by_class
from compressor.models.presets import PRESETS
from compressor.models.tokenizer import has_tokenizer, require_convertible, require_known_ids
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, check_files, read_artifact

SourceKind = Literal["directory", "hub", "gguf"]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from: nothing is read yet."""

    given: str
    kind: SourceKind
    location: str


def short_name(model: str) -> str:
    """What to call a MODEL in directories and tables: alias, hub name, directory or file name."""
    path = Path(model)
    return path.stem.lower() if path.suffix == ".gguf" else path.name


def distinct_names(models: tuple[str, ...]) -> list[str]:
    """Short names, numbered where they do not tell the models apart."""
    names = [short_name(model) for model in models]
    if len(set(names)) == len(names):
        return names
    return [f"{name}-{number}" for number, name in enumerate(names, 1)]


def resolve_source(model: str) -> ModelSource:
    """Tell an alias, a hub id, a directory and a GGUF file apart.

    Raises:
        UsageError: for an unknown alias (with the nearest), or a missing path.
        UnsupportedError: for an alias without Hugging Face weights, or an export for a runtime.
    """
    path = Path(model).expanduser()
    if (path.suffix == ".gguf" and not path.is_dir()) or path.is_file():
        if not path.is_file():
            what = "this GGUF file does not exist"
            if path.exists():
                what = "this path is a FIFO, socket or device instead of a GGUF file"
            raise UsageError(what, where=model, hint="name a regular .gguf file")
        if path.suffix != ".gguf":
            raise UsageError(
                "this file holds no model that can be read",
                where=model,
                expected="a directory or a .gguf file",
                hint="name the directory that holds the model's config.json",
            )
        return ModelSource(given=model, kind="gguf", location=str(path))
    if model in PRESETS:
        hub_id = PRESETS[model].hub_id
        if hub_id is None:
            raise UnsupportedError(
                "this alias has no Hugging Face weights; it can only be planned",
                where=model,
                hint="use it with the plan command, or name a model with weights",
            )
        return ModelSource(given=model, kind="hub", location=hub_id)
    if path.is_dir():
        refuse_export(path)
        return ModelSource(given=model, kind="directory", location=str(path))
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(
            "this model path does not exist",
            where=model,
            expected="a directory, a .gguf file or a Hugging Face id (owner/name)",
            hint="correct the path",
        )
    if "/" not in model:
        raise UsageError(
            f"{model!r} is no directory here, and no known alias",
            expected="an alias, a Hugging Face id (owner/name), a directory or a .gguf file",
            hint=nearest(model, PRESETS) or f"aliases: {', '.join(PRESETS)}",
        )
    return ModelSource(given=model, kind="hub", location=model)


def plan_dims(model: str) -> Dims:
    """A model's dimensions for planning; published models need neither network nor weights."""
    known = (preset.dims for preset in PRESETS.values() if model in (preset.alias, preset.hub_id))
    return next(known, None) or source_dims(resolve_source(model))


def source_dims(source: ModelSource) -> Dims:
    """A model's dimensions, without its weights: from a checked `config.json` or a GGUF file's header."""
    if source.kind == "gguf":
        from compressor.models.gguf.convert import gguf_dims

        return gguf_dims(Path(source.location))
    directory = Path(source.location)
    if source.kind == "hub":
        from compressor.models.hub import download_config

        directory = download_config(source.location)
    dims = _checked_config(directory)[0]
    require_known_ids(directory, dims.vocab_size)
    refuse_by_class(directory, trust_remote_code=False)
    return dims


def open_checkpoint(
    source: ModelSource,
    scratch: Path,
    *,
    dtype: str,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    on_warning: Callable[[str], None] = lambda _: None,
) -> ModelArtifact:
    """Bring a model onto this disk as a checked safetensors checkpoint.

    A GGUF file is converted under `scratch` to this dtype, with a `tokenizer` directory's files in place of
    its own; others stay where they are. Warnings are of what can be used but may not be meant.

    Raises:
        UsageError, UnsupportedError, VerificationError, NetworkError, DependencyError: for what cannot be
            used.
    """
    from compressor.models.checkpoint import CheckpointReader, hash_and_check
    from compressor.models.shapes import check_source

    directory = Path(source.location)
    refuse_needless_tokenizer(source, tokenizer)
    if source.kind == "gguf":
        from compressor.models.gguf.convert import convert_gguf

        given = Path(tokenizer).expanduser() if tokenizer else None
        directory = convert_gguf(directory, scratch, dtype, tokenizer=given)
    elif source.kind == "hub":
        from compressor.models.hub import download_model

        directory = download_model(source.location, trust_remote_code=trust_remote_code)
    dims, warnings = _checked_config(directory)
    for warning in warnings:
        on_warning(warning)
    with CheckpointReader(directory) as reader:
        check_source(reader, dims, where=directory)
    require_known_ids(directory, dims.vocab_size)
    require_convertible(directory, dims.vocab_size, trust_remote_code=trust_remote_code)
    refuse_by_class(directory, trust_remote_code=trust_remote_code)
    lineage: tuple[str, ...] = ("source",)
    texts: tuple[str, ...] = ()
    if (directory / ARTIFACT_FILE).is_file():
        ours = read_artifact(directory)
        _check_recorded(ours, source)
        lineage, texts = ours.lineage, ours.texts
    return ModelArtifact(
        path=directory,
        stage=lineage[-1],
        fingerprint=hash_and_check(directory, on_warning=on_warning),
        lineage=lineage,
        num_parameters=num_parameters(dims),
        texts=texts,
    )


def _check_recorded(ours: ModelArtifact, source: ModelSource) -> None:
    """Refuse a source of this tool's making whose files are not those that were recorded.

    A published one has files beside them, and from the hub not all of them are downloaded.
    """
    redo = f"the {ours.stage} command with --overwrite; {ARTIFACT_FILE} is not for edited directories"
    if source.kind == "gguf":
        redo = f"delete {ours.path}, then the same command converts the file again"
    files = ours.files
    if source.kind == "hub":
        files = {name: record for name, record in files.items() if (ours.path / name).is_file()}
    check_files(ours.path, files, contents=True, redo=redo, may_have_more=source.kind != "gguf")


def refuse_needless_tokenizer(source: ModelSource, tokenizer: str | None) -> None:
    """Refuse `--tokenizer` for a model that brings its own, and a directory that holds none."""
    if tokenizer is None:
        return
    if source.kind != "gguf":
        raise UsageError(
            "only a GGUF file is given another tokenizer; this model brings its own",
            where="--tokenizer",
            found=source.given,
            hint="leave --tokenizer out, or put the files into the model's directory",
        )
    if not has_tokenizer(Path(tokenizer).expanduser()):
        raise UsageError(
            "this directory holds no tokenizer",
            where="--tokenizer",
            expected="tokenizer.json",
            found=tokenizer,
            hint="name a directory that holds tokenizer.json",
        )


def _checked_config(directory: Path) -> tuple[Dims, tuple[str, ...]]:
    """The dimensions a directory's config says, its files and fields checked; and warnings."""
    from compressor.models.checkpoint import CONFIG_FILE, read_config
    from compressor.models.config.fields import check_config
    from compressor.models.files import check_files, refuse_adapter_directory

    check_files(directory)
    refuse_adapter_directory(directory)
    config = read_config(directory)
    refuse_quantised(config, directory)
    return check_config(config, where=str(directory / CONFIG_FILE))


def quantization_method(config: Mapping[str, object]) -> str | None:
    """The method that a config's `quantization_config` names, as transformers reads it; None without one."""
    stated = config.get("quantization_config")
    if not isinstance(stated, dict):
        return None
    if stated.get("load_in_8bit") or stated.get("load_in_4bit"):
        return "bitsandbytes"
    method = stated.get("quant_method")
    return None if method is None else str(method)


def refuse_quantised(config: Mapping[str, object], directory: Path) -> None:
    """Refuse, as unsupported, a checkpoint whose weights are quantised already."""
    found = None
    if config.get("quantization_config"):
        found = f"quantization_config, quant_method {quantization_method(config) or 'not said'}"
    if (directory / "hf_quant_config.json").is_file():
        found = "hf_quant_config.json"
    if found:
        raise UnsupportedError(
            "the checkpoint is already quantised",
            where=str(directory),
            expected="16- or 32-bit weights",
            found=found,
            hint="start from the model it was quantised from",
        )
