"""Passing a bundle on: an upload to the Hugging Face Hub, and a signature of its sums by sigstore."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from compressor.bundle.licence import Terms
from compressor.bundle.sums import SIGNATURE_FILE, SUMS_FILE, read_sums
from compressor.core.errors import DependencyError, NetworkError, UsageError
from compressor.core.network_errors import lost_connections

_INSTALL = "pip install 'compress-export[signing]'"
_STUDENT = "student"
# Of a repository: the student lies at its top, where loaders look for it; stages stay at home.
_LEFT_OUT = ("stages/", "bench/")


def require_repository(name: str, terms: Terms | None = None) -> None:
    """Refuse a name that is no repository's, or that the base model's licence does not allow.

    Raises:
        UsageError: naming what it must be.
    """
    owner, slash, model = name.partition("/")
    if not (owner and slash and model) or "/" in model:
        raise UsageError(
            "this is no repository of the hub",
            where="--push-to-hub",
            expected="OWNER/NAME",
            found=name[:80],
            hint="write the owner and the name, with one slash between them",
        )
    if terms is not None and not terms.allows_name(model.replace("-", " ")) and not terms.allows_name(model):
        raise UsageError(
            f"the licence of the base model, {terms.identifier}, asks for another name",
            where="--push-to-hub",
            expected=f"a name that begins with {terms.name_begins}",
            found=model,
            hint=f"call it {(terms.name_begins or '').replace(' ', '-')}-{model}",
        )


def upload_files(out_dir: Path) -> dict[str, Path]:
    """What a repository holds, by its path there: the student at the top, exports and documents below."""
    found: dict[str, Path] = {}
    for name in (*read_sums(out_dir), SUMS_FILE, SIGNATURE_FILE):
        path = out_dir / name
        if name.startswith(_LEFT_OUT) or not path.is_file():
            continue
        found[name.removeprefix(f"{_STUDENT}/")] = path
    return found


def push_to_hub(out_dir: Path, repository: str, *, private: bool) -> str:
    """Upload a bundle in one commit; returns the commit's address. The token is the hub client's own.

    Raises:
        NetworkError: when the hub is out of reach, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
        for name, path in upload_files(out_dir).items()
    ]
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message="Add the model and its exports")
    except lost_connections(HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise NetworkError(
            "the bundle cannot be uploaded",
            where=repository,
            found=f"{type(error).__name__}: {str(error)[:300]}",
            hint="go online, and set HF_TOKEN to a token that may write to this repository",
        ) from error
    return str(commit.commit_url)


def sign_sums(out_dir: Path, *, private_key: Path | None = None) -> Path:
    """Sign `SHA256SUMS`, and so every file that it names: by sigstore, or with a private key.

    Returns the signature's file, which lies beside the sums.

    Raises:
        DependencyError: without model-signing.
        NetworkError: when sigstore is out of reach, or knows no identity.
    """
    signing = _signing()
    read_sums(out_dir)
    config = signing.Config()
    if private_key is not None:
        config = config.use_elliptic_key_signer(private_key=private_key)
    else:
        config = config.use_sigstore_signer()
    signature = out_dir / SIGNATURE_FILE
    # What is signed is a directory, to it the sums are the whole model.
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(out_dir / SUMS_FILE, Path(scratch) / SUMS_FILE)
        try:
            config.sign(scratch, signature)
        except Exception as error:  # sigstore's client raises what its libraries do
            raise NetworkError(
                "the sums cannot be signed",
                where=str(out_dir / SUMS_FILE),
                found=f"{type(error).__name__}: {str(error)[:300]}",
                hint="go online and sign in when asked, or give --private-key",
            ) from error
    return signature


def _signing() -> Any:
    """The module of model-signing that signs; refused where it, or what it imports, is missing."""
    try:
        return importlib.import_module("model_signing.signing")
    except ImportError as error:
        raise DependencyError("signing needs model-signing", found=error, hint=_INSTALL) from error
