"""Downloading a model from the hub by its index: what the checkpoint consists of, and nothing else.

A repository may also hold the weights in another format (`consolidated.*`), training checkpoints and whole
other models in sub-directories. Only files at the top level count, of the weights those that the index
names, and the model's code only where it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from compressor.core.errors import CompressExportError, NetworkError, UsageError
from compressor.core.network_errors import lost_connections
from compressor.models.checkpoint import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, weight_files, weight_map
from compressor.models.files import ADAPTER_CONFIG
from compressor.models.tokenizer_files import is_licence

# The model card, which states the licence.
_CARD = "README.md"
# Settings, tokenizers, chat templates; texts of licences are known by their names, weights by the index.
_BESIDE = (
    *("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt", "additional_chat_templates/*.jinja"),
    _CARD,
)
_CODE = "*.py"
_CONFIGS = (CONFIG_FILE, ADAPTER_CONFIG, "hf_quant_config.json")
_NEVER = ("consolidated*", "trainer_state.json", "training_args*", "optimizer*", "*.safetensors")


def download_config(hub_id: str) -> Path:
    """The local snapshot of a hub model with its config alone; else a UsageError or NetworkError."""
    listed = _revision_and_files(hub_id)
    return _cached(hub_id) if listed is None else _snapshot(hub_id, listed[0], _CONFIGS)


def download_card(hub_id: str) -> Path:
    """The local snapshot of a hub model with its model card, if it has one; else as `download_config`."""
    listed = _revision_and_files(hub_id)
    return _cached(hub_id) if listed is None else _snapshot(hub_id, listed[0], (_CARD,))


def download_model(hub_id: str, *, trust_remote_code: bool) -> Path:
    """The local snapshot of a hub model: weights by the index, and what belongs beside them.

    What cannot be found or reached, or holds no safetensors, is a UsageError or a NetworkError.
    """
    listed = _revision_and_files(hub_id)
    if listed is None:
        directory = _cached(hub_id)
        try:
            weight_files(directory)
        except CompressExportError as error:
            raise _unreachable(hub_id, error) from error
        return directory
    revision, files = listed
    patterns = (*_BESIDE, _CODE) if trust_remote_code else _BESIDE
    wanted = [name for name in files if is_licence(name) or _matches(name, patterns)]
    beside = [name for name in wanted if not _matches(name, _NEVER)]
    directory = _snapshot(hub_id, revision, beside)
    weights = {WEIGHTS_FILE}
    if INDEX_FILE in files:
        weights = set(weight_map(directory / INDEX_FILE).values())
    directory = _snapshot(hub_id, revision, [*beside, *(name for name in files if name in weights)])
    weight_files(directory)
    return directory


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a repository's file is of these, in the directory that the pattern names."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def _revision_and_files(hub_id: str) -> tuple[str, list[str]] | None:
    """The newest revision and its files; None where the hub is out of reach."""
    from huggingface_hub import HfApi

    try:
        info = _explained(hub_id, lambda: HfApi().model_info(hub_id))
    except CompressExportError:
        raise
    except Exception:  # noqa: BLE001 - offline, or what the installed client raises where there is no network
        return None
    return str(info.sha), [file.rfilename for file in info.siblings or ()]


def _snapshot(hub_id: str, revision: str, names: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download

    exact = [name.replace("[", "[[]") for name in names]
    # By the branch, not by the revision: only so does the cache know it again without a network.
    directory = Path(_reached(hub_id, snapshot_download, allow_patterns=exact))
    if directory.name != revision:
        raise NetworkError(
            "the model changed while it was downloaded",
            where=hub_id,
            expected=revision,
            found=directory.name,
            hint="run the same command again",
        )
    return directory


def _cached(hub_id: str) -> Path:
    """What an earlier download left."""
    from huggingface_hub import snapshot_download

    # Without a pattern a snapshot counts as incomplete for every file that was left out on purpose.
    return Path(_reached(hub_id, snapshot_download, local_files_only=True, allow_patterns=[CONFIG_FILE]))


def _reached(hub_id: str, download: Callable[..., str], **options: object) -> str:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(_explained(hub_id, lambda: download(hub_id, **options)))
    except lost_connections(LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise _unreachable(hub_id, error) from error


def _unreachable(hub_id: str, error: Exception) -> NetworkError:
    return NetworkError(
        "the model cannot be downloaded",
        where=hub_id,
        found=type(error).__name__,
        hint="go online and run the same command again, or give a local directory",
    )


def _explained(hub_id: str, work: Callable[[], Any]) -> Any:
    """What `work` returns, the hub's errors in our words."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return work()
    except HFValidationError as error:
        raise UsageError(
            "this is not a Hugging Face id",
            where=hub_id,
            found=error,
            hint="give OWNER/NAME or a local directory",
        ) from error
    except GatedRepoError as error:
        raise NetworkError(
            "access to this model is restricted",
            where=hub_id,
            hint="ask for access on its page and set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise NetworkError(
            "the hub has no such model, or it is private",
            where=hub_id,
            hint="check the id; for a private model set HF_TOKEN",
        ) from error
