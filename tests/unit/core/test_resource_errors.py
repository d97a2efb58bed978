"""Which errors are the machine's; each with a real one of the library where it can be provoked."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from safetensors import SafetensorError

from compressor.core.errors import CompressExportError, ResourceError, UsageError, VerificationError
from compressor.core.resource_errors import as_resource_error, killed_child

MEMORY: dict[str, Exception] = {
    "python": MemoryError(),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "c++": RuntimeError("std::bad_alloc"),
    "onnxruntime": RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer"),
    "mmap": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "safetensors": SafetensorError("Error while opening: Cannot allocate memory (os error 12)"),
    "cuda runtime": RuntimeError("cudaErrorMemoryAllocation"),
}
DISK: dict[str, Exception] = {
    **{
        name: OSError(getattr(errno, name), "refused", "/out/model.safetensors")
        for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "EMFILE")
    },
    "safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
    "torch's archive": RuntimeError("basic_ios::clear: iostream error"),
    "a library's sentence": RuntimeError("cannot write: [Errno 28] No space left on device"),
}


def wrapped(error: Exception, how: str) -> BaseException:
    """The error itself, or one that a library or this project put around it."""
    if how == "bare":
        return error
    outer = VerificationError("the checkpoint cannot be loaded", found=error)
    if how == "cause":
        outer.__cause__ = error
        return outer
    other = RuntimeError("while saving")
    other.__context__ = error
    return other


@pytest.mark.parametrize("how", ["bare", "cause", "context"])
@pytest.mark.parametrize("error", [*MEMORY.values(), *DISK.values()], ids=str)
def test_memory_and_disk_are_found_at_any_depth(error: Exception, how: str) -> None:
    found = as_resource_error(wrapped(error, how))

    assert isinstance(found, ResourceError)
    assert found.what == ("out of memory" if error in MEMORY.values() else found.what)


def test_a_real_allocation_that_fails() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)

    assert as_resource_error(caught.value) is not None


OTHERS: dict[str, Callable[[], CompressExportError | Exception]] = {
    "a missing file": lambda: FileNotFoundError(errno.ENOENT, "no such file"),
    "a corrupt file": lambda: VerificationError("the file is corrupt: out of memory, it says"),
    "a refused option": lambda: UsageError("the recipe cannot be read"),
    "a bug": lambda: KeyError("model"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_errors_stay_what_they_are(name: str) -> None:
    assert as_resource_error(OTHERS[name]()) is None


def test_a_usage_error_keeps_its_class() -> None:
    error = UsageError("the recipe cannot be read")
    error.__cause__ = PermissionError(errno.EACCES, "denied")

    assert as_resource_error(error) is None


def test_a_killed_child_is_told_from_a_failed_one() -> None:
    codes = {
        subprocess.run([sys.executable, "-c", program], check=False).returncode
        for program in ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(3)")
    }

    assert codes == {-signal.SIGKILL, 3}
    assert killed_child("trtllm-build", 3) is None
    assert "memory" in str(killed_child("trtllm-build", -signal.SIGKILL))
