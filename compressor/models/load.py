"""From a checkpoint on disk to a model in memory, and to a copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from compressor.core.errors import CompressExportError, UnsupportedError, VerificationError
from compressor.models.tokenizer_files import copy_tokenizer


def load_model(directory: Path, *, dtype: str, device: str, trust_remote_code: bool = False) -> Any:
    """Load a checkpoint for evaluation: `eval()` mode, gradients off.

    Raises:
        UnsupportedError: when transformers reads the config otherwise than it says, or refuses it.
        VerificationError: when weights are missing, left over or of the wrong shape.
        ResourceError: when the weights alone do not fit into memory.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from compressor.models.checkpoint import CONFIG_FILE, read_config
    from compressor.models.config.rope import refuse_misread_rope
    from compressor.models.memory import require_model_memory
    from compressor.models.shapes import refuse_misfit

    refuse_misread_rope(read_config(directory), where=str(directory / CONFIG_FILE))
    refuse_by_class(directory, trust_remote_code=trust_remote_code)
    require_model_memory((directory, dtype), device=device)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except CompressExportError:
        raise
    except Exception as error:  # each class, and each config beside the weights, raises what it likes
        raise VerificationError(
            "the checkpoint cannot be loaded",
            where=str(directory),
            found=error,
            hint="download the checkpoint again",
        ) from error
    refuse_misfit(report, directory)
    return model.to(device).eval().requires_grad_(requires_grad=False)


def copy_checkpoint(source: Path, destination: Path) -> None:
    """Copy a checkpoint's weights byte by byte, with its config, portable, and the files beside them."""
    from compressor.models.checkpoint import INDEX_FILE, read_config, weight_files
    from compressor.models.config.portable import write_config

    for file in (*weight_files(source), source / INDEX_FILE):
        if file.is_file():
            shutil.copyfile(file, destination / file.name)
    write_config(destination, read_config(source))
    copy_tokenizer(source, destination)


def refuse_by_class(directory: Path, *, trust_remote_code: bool) -> None:
    """Refuse a config that transformers' class refuses, for its reason, or that another class reads."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, __version__

    from compressor.models.checkpoint import CONFIG_FILE, read_config

    trust = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, **trust)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, **trust)
    except Exception as error:  # each class raises what it likes
        raise UnsupportedError(
            f"transformers {__version__} refuses this config",
            where=str(directory / CONFIG_FILE),
            found=f"{type(error).__name__}: {error}",
            hint="correct the field that it names, or install the transformers release that the model needs",
        ) from error
    named = read_config(directory)["model_type"]
    if config.model_type != named and not trust_remote_code:
        raise UnsupportedError(
            f"transformers {__version__} reads this {named} config as {config.model_type}",
            where=str(directory / CONFIG_FILE),
            expected=named,
            found=config.model_type,
            hint="leave layer_types out if all layers are alike",
        )
