"""Passing a bundle on: an upload to the Hugging Face Hub, and a signature of its sums by sigstore."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.bundle.licence import Terms
from compressor.bundle.sums import SIGNATURE_FILE, SUMS_FILE, read_sums, sums_text
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


def require_write_access() -> None:
    """Refuse to begin without a token of the hub that may write; a fine-grained one may still lack a right.

    Raises:
        NetworkError: without a token, for one that only reads, or when the hub is out of reach.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    what, hint = "nothing can be uploaded", "go online, and set HF_TOKEN to a token that may write"
    try:
        found = HfApi().whoami()
    except lost_connections(HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise NetworkError(what, where="--push-to-hub", found=reason, hint=hint) from error
    if found.get("auth", {}).get("accessToken", {}).get("role") == "read":
        reason = "a token that may only read"
        raise NetworkError(what, where="--push-to-hub", found=reason, hint=hint)


def upload_files(out_dir: Path) -> dict[str, Path]:
    """What a repository holds, by its path there: the student at the top, exports and documents below.

    The sums are not among them: a repository has its own, by `write_uploaded_sums`.
    """
    return {there: out_dir / name for name, there in _uploaded_names(read_sums(out_dir))}


def write_uploaded_sums(out_dir: Path, directory: Path) -> None:
    """Write the sums of a repository's files, by their paths there, to a directory."""
    sums = read_sums(out_dir)
    uploaded = {there: sums[name] for name, there in _uploaded_names(sums)}
    (directory / SUMS_FILE).write_text(sums_text(uploaded), "utf-8")


def _uploaded_names(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Of the files that are uploaded: the path in the bundle and the one in the repository."""
    for name in names:
        if not name.startswith(_LEFT_OUT):
            yield name, name.removeprefix(f"{_STUDENT}/")


def push_to_hub(out_dir: Path, repository: str, *, private: bool, signer: Signer | None = None) -> str:
    """Upload a bundle in one commit; returns the commit's address. The token is the hub client's own.

    The repository gets sums of its own files, and with a `signer` (of `open_signer`) their signature. That
    of an earlier upload is removed otherwise: it fits no more.

    Raises:
        NetworkError: when the hub is out of reach, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    with tempfile.TemporaryDirectory() as scratch:
        own = Path(scratch)
        write_uploaded_sums(out_dir, own)
        if signer is not None:
            sign_sums(own, signer)
        files = upload_files(out_dir) | {path.name: path for path in sorted(own.iterdir())}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()
        ]
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            if signer is None and api.file_exists(repository, SIGNATURE_FILE):
                operations.append(CommitOperationDelete(path_in_repo=SIGNATURE_FILE))
            commit = api.create_commit(repository, operations, commit_message="Add the model and its exports")
        except lost_connections(HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
            raise NetworkError(
                "the bundle cannot be uploaded",
                where=repository,
                found=f"{type(error).__name__}: {str(error)[:300]}",
                hint="go online, and set HF_TOKEN to a token that may write to this repository",
            ) from error
    return str(commit.commit_url)


@dataclass(frozen=True, kw_only=True)
class Signer:
    """What sums are signed with.

    Attributes:
        config: Of model-signing.
        needs_network: Whether signing asks sigstore; a private key signs alone.
    """

    config: Any
    needs_network: bool


def open_signer(private_key: Path | None = None) -> Signer:
    """What `sign_sums` signs with: a private key, which is read now, or else sigstore.

    Sigstore takes the identity of a CI job where there is one, and otherwise asks.

    Raises:
        DependencyError: without model-signing.
        UsageError: for a key that cannot sign.
        NetworkError: when sigstore is out of reach.
    """
    config = _signing().Config()
    if private_key is None:
        try:
            config.use_sigstore_signer(use_ambient_credentials=True)
        except Exception as error:  # it asks sigstore for what it trusts
            raise _unsigned("--sign", error) from error
        return Signer(config=config, needs_network=True)
    try:
        return Signer(config=config.use_elliptic_key_signer(private_key=private_key), needs_network=False)
    except Exception as error:  # what is no key raises whatever reading it runs into
        raise UsageError(
            "this private key cannot sign",
            where=str(private_key),
            expected="a PEM file with an unencrypted key on the elliptic curve P-256, P-384 or P-521",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            hint="make one by `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`, or decrypt an "
            "encrypted one by `openssl pkey -in FILE -out key.pem`",
        ) from error


def sign_sums(directory: Path, signer: Signer) -> Path:
    """Sign a directory's `SHA256SUMS`, and so every file that it names.

    Returns the signature's file, which lies beside the sums.

    Raises:
        NetworkError: when sigstore is out of reach, or knows no identity.
    """
    read_sums(directory)
    signature = directory / SIGNATURE_FILE
    # What is signed is a directory, to it the sums are the whole model.
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(directory / SUMS_FILE, Path(scratch) / SUMS_FILE)
        try:
            signer.config.sign(scratch, signature)
        except Exception as error:  # sigstore's client raises what its libraries do
            if not signer.needs_network:
                raise
            raise _unsigned(str(directory / SUMS_FILE), error) from error
    return signature


def _unsigned(where: str, error: Exception) -> NetworkError:
    return NetworkError(
        "the sums cannot be signed",
        where=where,
        found=f"{type(error).__name__}: {str(error)[:300]}",
        hint="go online and sign in when asked, or give --private-key",
    )


def _signing() -> Any:
    """The module of model-signing that signs; refused where it, or what it imports, is missing."""
    try:
        return importlib.import_module("model_signing.signing")
    except ImportError as error:
        raise DependencyError("signing needs model-signing", found=error, hint=_INSTALL) from error
