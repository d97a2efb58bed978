"""Whose a base model is, and what its licence asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFWriter

from compressor.bundle.licence import Terms, terms_of
from compressor.bundle.publish import require_repository
from compressor.core.errors import UsageError


@pytest.mark.parametrize(
    ("hub_id", "identifier", "notice", "begins"),
    [
        ("meta-llama/Llama-3.1-8B", "llama3.1", "Built with Llama", "Llama"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama3.2", "Built with Llama", "Llama"),
        ("meta-llama/Meta-Llama-3-8B", "llama3", "Built with Meta Llama 3", "Llama 3"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", None, None),
        ("someone/else", "unknown", None, None),
    ],
)
def test_published_models(
    hub_id: str, identifier: str, notice: str | None, begins: str | None, tmp_path: Path
) -> None:
    terms = terms_of(hub_id, tmp_path)
    assert (terms.identifier, terms.name_begins) == (identifier, begins)
    assert terms.notices[:1] == (() if notice is None else (notice,))


def test_a_local_model_is_what_its_card_says(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlanguage: en\nlicense: llama3.1\n---\n# A fine-tuned model\n")
    terms = terms_of(None, tmp_path)
    assert (terms.identifier, terms.known_from) == ("llama3.1", "its model card")
    assert terms.notices[0] == "Built with Llama"
    card.write_text("---\nlicense: other\nlicense_name: Own-Licence\n---\n")
    assert terms_of(None, tmp_path).identifier == "own-licence"


@pytest.mark.parametrize(
    "text", ["", "license: mit\n", "---\nlicense: mit\n", "---\n: [\n---\n", "---\n- a\n---\n"]
)
def test_cards_that_say_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert terms_of(None, tmp_path).identifier == "unknown"


def test_a_gguf_file_is_what_its_header_says(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    terms = terms_of(None, tmp_path, gguf=file)
    assert (terms.identifier, terms.known_from) == ("apache-2.0", "its GGUF file")
    file.write_bytes(b"no GGUF")
    assert terms_of(None, tmp_path, gguf=file).identifier == "unknown"


@pytest.mark.parametrize(
    ("begins", "name", "is_allowed"),
    [
        ("Llama", "me/Llama-4B", True),
        ("Llama", "me/my-Llama", False),
        ("Llama 3", "me/Llama-3-4B", True),
        ("Llama 3", "me/Llama-4B", False),
        (None, "me/anything", True),
        (None, "anything", False),
        (None, "a/b/c", False),
        (None, "/b", False),
    ],
)
def test_names_of_repositories(begins: str | None, name: str, is_allowed: bool) -> None:
    terms = Terms(identifier="some", known_from="a test", name_begins=begins)
    if is_allowed:
        require_repository(name, terms)
    else:
        with pytest.raises(UsageError):
            require_repository(name, terms)
