"""The bundle by other programs: the published CycloneDX schema, and model-signing's own verification."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub_stand_in import WRITE_TOKEN, hub_stand_in
from tests.integration.command import command_here, succeed_here, write_recipe


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_the_bill_follows_the_published_schema(finished: Path) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    pytest.importorskip("jsonschema")
    from cyclonedx.schema import SchemaVersion

    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    text = (finished / "sbom.cdx.json").read_text()
    assert validator.validate_str(text) is None
    broken = json.loads(text)
    broken["components"][0]["type"] = "no such type"
    assert validator.validate_str(json.dumps(broken)) is not None


class Keys:
    """A key pair of the kind that model-signing takes, and its own verification."""

    def __init__(self, directory: Path) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        self.directory = directory
        self.private, self.public = directory / "key.pem", directory / "key.pub"
        encoding = serialization.Encoding.PEM
        self.private.write_bytes(
            key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        self.public.write_bytes(
            key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    def check(self, sums: Path) -> None:
        """Verify the signature that lies beside sums."""
        from model_signing import verifying

        signed = self.directory / "signed"
        signed.mkdir(exist_ok=True)
        shutil.copy(sums, signed)
        config = verifying.Config().use_elliptic_key_verifier(public_key=self.public)
        config.verify(signed, sums.with_name("SHA256SUMS.sigstore.json"))


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    pytest.importorskip("model_signing")
    return Keys(tmp_path)


def test_the_signature_of_the_sums_holds_until_they_change(finished: Path, keys: Keys) -> None:
    run = Path(shutil.copytree(finished, keys.directory / "out"))
    made = succeed_here("publish", run, "--private-key", keys.private)
    assert made["signature"] == str(run / "SHA256SUMS.sigstore.json")
    keys.check(run / "SHA256SUMS")
    succeed_here("verify", run)
    with (run / "SHA256SUMS").open("a") as file:
        file.write("0" * 64 + "  added\n")
    with pytest.raises(ValueError, match=r"."):
        keys.check(run / "SHA256SUMS")


def test_a_repository_and_the_bundle_each_have_a_signature_of_their_sums(
    finished: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished, keys.directory / "out"))
    with hub_stand_in(keys.directory / "hub", monkeypatch, WRITE_TOKEN) as hub:
        succeed_here("publish", run, "--private-key", keys.private, "--push-to-hub", "me/small")
    uploaded = hub.root / "me/small" / "SHA256SUMS"
    assert uploaded.read_text() != (run / "SHA256SUMS").read_text()
    keys.check(uploaded)
    keys.check(run / "SHA256SUMS")


@pytest.mark.parametrize("kind", ["no PEM", "encrypted", "RSA", "another curve"])
def test_a_bad_key_is_refused_before_any_file_is_read(finished: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    run, file = Path(shutil.copytree(finished, tmp_path / "out")), tmp_path / "key.pem"
    (run / "student" / "model.safetensors").unlink()
    key: Any = ec.generate_private_key(ec.SECP256K1() if kind == "another curve" else ec.SECP256R1())
    if kind == "RSA":
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    secret: Any = serialization.NoEncryption()
    if kind == "encrypted":
        secret = serialization.BestAvailableEncryption(b"secret")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    file.write_bytes(b"no PEM" if kind == "no PEM" else pem)
    done = command_here("publish", run, "--private-key", file)
    assert done.returncode == 2, done.stderr
    assert "this private key cannot sign" in done.stderr
    assert str(file) in done.stderr


def test_a_private_key_that_fails_is_no_matter_of_the_network(
    finished: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_signing._signing import sign_ec_key

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sign_ec_key.Signer, "sign", fail)
    done = command_here("publish", finished, "--private-key", keys.private)
    assert done.returncode == 5, done.stderr


def test_signing_without_the_library_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)  # as if it were not installed
    done = command_here("publish", finished, "--sign")
    assert done.returncode == 4
    assert "compress-export[signing]" in done.stderr
