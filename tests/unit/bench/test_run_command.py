"""What `bench run` refuses before it opens a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.cli.main import invoke
from compressor.core import hardware


@pytest.mark.parametrize(("own", "wanted"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_another_device_than_the_machines_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own: str,
    wanted: str,
) -> None:
    monkeypatch.setattr(hardware, "resolve_device", lambda _wanted: own)
    words = ["bench", "--random-weights", "llama3.1-8b", "4b-width", "--device", wanted]
    assert invoke([*words, "-o", str(tmp_path / "out")]) == 2
    assert "--device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runtime", "tensorrt-llm", "--batch-size", "8"), "--batch-size"),
        (("--concurrency", "8", "--num-requests", "10"), "--concurrency, --num-requests"),
        (("--precision", "fp32,fp32"), "given twice"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert invoke(["bench", "teacher", "student", *options, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
