"""The tokenizer inside a GGUF file: what is refused, what is kept, and another one in its place."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.main import invoke
from compressor.core.errors import CompressExportError, UnsupportedError, UsageError, VerificationError
from compressor.models.gguf.convert import convert_gguf
from compressor.models.gguf.header import read_header
from compressor.models.gguf.tokenizer import write_tokenizer
from compressor.models.source import open_checkpoint, resolve_source
from compressor.models.tokenizer import load_tokenizer
from tests import gguf_files
from tests.gguf_files import TinyGguf, vocabulary
from tests.tiny_models import make_tokenizer


def converted(model: TinyGguf, tmp_path: Path, **options: Any) -> Path:
    path = model.write(tmp_path / "model.gguf")
    return convert_gguf(path, tmp_path / "scratch", "float32", **options)


def with_field(name: str, value: object) -> TinyGguf:
    return TinyGguf(tokenizer_fields={name: value})


@pytest.mark.parametrize("field", ["add_sep_token", "remove_extra_whitespaces"])
def test_a_switch_that_is_off_changes_nothing(field: str, tmp_path: Path) -> None:
    """llama.cpp's converter writes `add_sep_token` of every model whose pairs have no separator."""
    for name in ("plain", "switch"):
        (tmp_path / name).mkdir()
    plain = converted(TinyGguf(), tmp_path / "plain")
    switched = converted(with_field(f"ggml.{field}", False), tmp_path / "switch")
    assert (switched / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("tied", ["all", "two"])
def test_scores_that_do_not_order_the_merges_are_refused(
    tied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp merges the leftmost of equal pairs; files of its old converter may have one score for all."""
    words = vocabulary("llama")
    plain = [index for index, kind in enumerate(words.types) if kind == 1]
    scores = list(words.scores)
    for index in plain if tied == "all" else plain[5:7]:
        scores[index] = -1000.0
    monkeypatch.setattr(gguf_files, "vocabulary", lambda _kind: replace(words, scores=scores))
    with pytest.raises(VerificationError, match="no order") as caught:
        converted(TinyGguf(tokenizer="llama"), tmp_path)
    assert "--tokenizer DIR" in str(caught.value)


def test_a_token_of_thousands_of_letters_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place of a token may be one where two others meet: a million letters have a million places."""
    words = gguf_files.vocabulary("llama")
    tokens = [*words.tokens[:-1], "b" * (1 << 20)]
    monkeypatch.setattr(gguf_files, "vocabulary", lambda _kind: replace(words, tokens=tokens))
    with pytest.raises(VerificationError, match="far longer than any word"):
        converted(TinyGguf(tokenizer="llama"), tmp_path)


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (TinyGguf(pre="smollm9"), UnsupportedError, "'smollm9' is not known"),
        (TinyGguf(pre="kimi-k2"), UnsupportedError, "--tokenizer DIR"),
        (TinyGguf(pre=None), UnsupportedError, "does not name its pre-tokenizer"),
        (with_field("ggml.remove_extra_whitespaces", True), UnsupportedError, "not understood"),
        (with_field("ggml.add_sep_token", True), UnsupportedError, "not understood"),
        (with_field("ggml.precompiled_charsmap", [1, 2]), UnsupportedError, "--tokenizer DIR"),
        (with_field("ggml.eot_token_id", 9_999), VerificationError, "eot_token_id"),
        (with_field("chat_template.../x", "{{ x }}"), VerificationError, "cannot be a file name"),
    ],
)
def test_what_would_give_other_tokens_is_refused(
    model: TinyGguf, error: type[CompressExportError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        converted(model, tmp_path)
    assert says in str(caught.value)


def test_types_roles_and_templates_are_kept(tmp_path: Path) -> None:
    templates = {
        "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
        "chat_template.tool_use": "{{ tools }}",
    }
    directory = converted(TinyGguf(tokenizer_fields=templates), tmp_path)
    tokenizer, words = load_tokenizer(directory), vocabulary("gpt2")
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    special = {**dict.fromkeys(words.tokens[:4], True), "<|tool|>": False}
    assert {entry["content"]: entry["special"] for entry in added} == special
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (words.bos, words.eos)
    assert tokenizer.chat_template == {"default": templates["chat_template"], "tool_use": "{{ tools }}"}
    assert tokenizer.apply_chat_template([{"role": "user", "content": "12"}], tokenize=False) == "12"
    assert not [token for token in tokenizer.get_vocab() if token.startswith("[PAD")]


def write_own_tokenizer(directory: Path) -> None:
    """What a GGUF file's model has, with a field more."""
    directory.mkdir()
    header = read_header(TinyGguf().write(directory.with_suffix(".gguf")))
    write_tokenizer(header, directory, max_length=64)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "note": "the original's"}))


@pytest.mark.parametrize("pre", ["smollm", "made-up"])
def test_another_tokenizer_takes_the_place_of_the_files_own(pre: str, tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    write_own_tokenizer(own)
    shutil.copytree(own, other)
    (other / "NOTICE").write_text("a different digest")
    model, found = TinyGguf(pre=pre), []
    for given in (own, other):
        directory = converted(model, tmp_path, tokenizer=given)
        assert (directory / "tokenizer.json").read_bytes() == (given / "tokenizer.json").read_bytes()
        found.append(directory)
    assert found[0] != found[1], "the conversion with one tokenizer is not that with another"
    if pre == "smollm":
        assert converted(model, tmp_path) not in found


def test_another_tokenizer_must_fit_the_weights(tmp_path: Path) -> None:
    given = tmp_path / "given"
    write_own_tokenizer(given)
    document = json.loads((given / "tokenizer.json").read_text())
    document["model"]["vocab"]["beyond"] = TinyGguf().vocab_size
    (given / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(VerificationError, match=f"{TinyGguf().vocab_size} .'beyond'"):
        converted(TinyGguf(), tmp_path, tokenizer=given)


@pytest.mark.parametrize("change", ["two swapped", "shuffled", "fewer", "another"])
def test_the_tokenizer_of_another_model_is_refused(change: str, tmp_path: Path) -> None:
    given = tmp_path / "given"
    write_own_tokenizer(given)
    document = json.loads((given / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    tokens = sorted(vocab, key=lambda token: int(vocab[token]))
    first = len(document["added_tokens"])
    if change == "two swapped":
        tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
    elif change == "shuffled":
        tokens[first:] = reversed(tokens[first:])
    elif change == "fewer":
        tokens = tokens[:-40]
        kept = set(tokens)
        merges = [
            merge if isinstance(merge, list) else merge.split(" ") for merge in document["model"]["merges"]
        ]
        document["model"]["merges"] = [merge for merge in merges if "".join(merge) in kept]
    document["model"]["vocab"] = {token: index for index, token in enumerate(tokens)}
    (given / "tokenizer.json").write_text(json.dumps(document))
    if change == "another":
        make_tokenizer().save_pretrained(given)
    with pytest.raises(VerificationError, match="not the tokenizer that the GGUF file was made with"):
        converted(TinyGguf(), tmp_path, tokenizer=given)


def test_the_option_needs_a_gguf_file_and_a_tokenizer(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(TinyGguf().write(tmp_path / "model.gguf"))
    for source, tokenizer, says in (
        (str(tiny_checkpoint), str(tiny_checkpoint), "only a GGUF file"),
        (model, str(tmp_path), "holds no tokenizer"),
    ):
        with pytest.raises(UsageError, match=says):
            open_checkpoint(resolve_source(source), tmp_path, dtype="float32", tokenizer=tokenizer)
    arguments = ("--shape", "hidden_size=48", "--calib-data", str(tiny_text), "-o", str(tmp_path / "out"))
    assert invoke(["prune", str(tiny_checkpoint), *arguments, "--tokenizer", str(tmp_path)]) == 2
    assert "--tokenizer" in capsys.readouterr().err
