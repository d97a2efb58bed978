"""The bundle by other programs: the published CycloneDX schema, and model-signing's own verification."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.integration.command import command_here, succeed_here, write_recipe


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(
        root / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        repair={"method": "off"},
        distill={"tokens": 0},
        export={"formats": ["huggingface"]},
    )
    succeed_here("run", "--config", recipe, "-o", root / "out")
    return root / "out"


def test_the_bill_follows_the_published_schema(run: Path) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    pytest.importorskip("jsonschema")
    from cyclonedx.schema import SchemaVersion

    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    text = (run / "sbom.cdx.json").read_text()
    assert validator.validate_str(text) is None
    broken = json.loads(text)
    broken["components"][0]["type"] = "no such type"
    assert validator.validate_str(json.dumps(broken)) is not None


def test_the_signature_of_the_sums_holds_until_they_change(run: Path, tmp_path: Path) -> None:
    verifying = pytest.importorskip("model_signing.verifying")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    encoding = serialization.Encoding.PEM
    private.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    made = succeed_here("publish", run, "--private-key", private)
    signed = tmp_path / "signed"
    signed.mkdir()
    shutil.copy(run / "SHA256SUMS", signed)

    def check() -> None:
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(signed, made["signature"])

    check()
    succeed_here("verify", run)
    with (signed / "SHA256SUMS").open("a") as file:
        file.write("0" * 64 + "  added\n")
    with pytest.raises(ValueError, match=r"."):
        check()


def test_signing_without_the_library_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)  # as if it were not installed
    done = command_here("publish", run, "--sign")
    assert done.returncode == 4
    assert "compress-export[signing]" in done.stderr
