"""The tokenizer is what `tokenizer.json` computes; foreign, broken and enormous files end in one error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer

from compressor.cli.main import invoke
from compressor.core.errors import DependencyError, UsageError, VerificationError
from compressor.models.load import copy_checkpoint
from compressor.models.source import open_checkpoint, plan_dims, resolve_source
from compressor.models.tokenizer import TOKENIZER_TEXTS, load_tokenizer, require_known_ids
from compressor.models.tokenizer_files import copy_tokenizer, make_tokenizer_portable, tokenizer_digest
from exporters.verification.tokenizer_check import check_tokenizer
from tests.rope_forms import FIRST_WITH_ROPE_PARAMETERS, GENERATION
from tests.tiny_models import VOCAB_SIZE, make_model, make_tokenizer, save_checkpoint
from tests.unit.models.conftest import as_older_files

TEXTS = (*TOKENIZER_TEXTS, "<|begin|>system<|end|> x", "  a  b")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def digits(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])


def llama3_words(backend: Tokenizer) -> None:
    words = pre_tokenizers.Split(r"\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+", "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, BYTES])
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", VOCAB_SIZE - 4)]
    )


def prefixed(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("_")])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.enable_truncation(4)
    backend.enable_padding(length=8)


FORMS: dict[str, Callable[[Tokenizer], None]]
FORMS = {"digits": digits, "llama3": llama3_words, "prefixed": prefixed}


def tokenizer_directory(path: Path, form: str = "digits", **config: Any) -> Path:
    """The tiny vocabulary with other rules, under a class that computes something else."""
    path.mkdir(parents=True, exist_ok=True)
    backend = make_tokenizer().backend_tokenizer
    FORMS[form](backend)
    backend.save(str(path / "tokenizer.json"))
    fields = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "tokenizer_class": "LlamaTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps({**fields, **config}))
    return path


def raw(directory: Path) -> Tokenizer:
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    return backend


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "Qwen2Tokenizer", "GPT2TokenizerFast", None])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_the_file_decides_not_the_class(form: str, name: str | None, model_type: str, tmp_path: Path) -> None:
    config = {"add_bos_token": True, "legacy": True} | ({"tokenizer_class": name} if name else {})
    directory = tokenizer_directory(tmp_path / "source", form, **config)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    copy_tokenizer(directory, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    ours, anyone = load_tokenizer(directory), AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    differs = False
    for text in TEXTS:
        for special in (False, True):
            expected = raw(directory).encode(text, add_special_tokens=special).ids
            assert ours(text, add_special_tokens=special).input_ids == expected
            differs |= anyone(text, add_special_tokens=special).input_ids != expected
    for tokenizer in (ours, anyone):
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")
    if differs:  # transformers 5 takes Qwen2's rules for every qwen2 model, whatever its files say
        assert model_type == "qwen2"
        with pytest.raises(VerificationError, match="PreTrainedTokenizerFast reads it"):
            check_tokenizer(tmp_path, directory, trust_remote_code=False)
    else:
        assert check_tokenizer(tmp_path, directory, trust_remote_code=False).startswith("equal")


@pytest.mark.parametrize("change", ["digits", "post-processor", "added", "eos", "template", "class", "gone"])
def test_an_export_with_another_tokenizer_is_found(change: str, tmp_path: Path) -> None:
    directory = tokenizer_directory(tmp_path / "source", chat_template="{{ messages }}")
    out = tmp_path / "out"
    out.mkdir()
    copy_tokenizer(directory, out)
    shutil.copyfile(directory / "tokenizer.json", out / "tokenizer.json")
    (out / "config.json").write_text('{"model_type": "llama"}')
    document = json.loads((out / "tokenizer.json").read_text())
    config = json.loads((out / "tokenizer_config.json").read_text())
    if change == "digits":
        document["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
        document["model"]["vocab"]["12"] = VOCAB_SIZE + 1
        document["model"]["merges"].append(["1", "2"])
    elif change == "post-processor":
        llama3_words(backend := raw(directory))
        document["post_processor"] = json.loads(backend.to_str())["post_processor"]
    elif change == "added":
        document["added_tokens"] = document["added_tokens"][1:]
    elif change == "eos":
        config |= {"eos_token": "<|pad|>"}
    elif change == "template":
        config["chat_template"] = "{{ other }}"
    elif change == "class":
        config["tokenizer_class"] = "LlamaTokenizerFast"
    (out / "tokenizer.json").write_text(json.dumps(document))
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    if change == "gone":
        (out / "tokenizer.json").unlink()
    if (
        change == "class"
        and AutoTokenizer.from_pretrained(out)("a b").input_ids == raw(out).encode("a b").ids
    ):
        pytest.skip("this transformers does not rebuild the tokenizer from the class")
    with pytest.raises(VerificationError, match="token"):
        check_tokenizer(out, directory, trust_remote_code=False)


def test_everything_of_a_tokenizer_travels(tmp_path: Path) -> None:
    source, out = tokenizer_directory(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    travelling = {
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/tool_use.jinja": "{{ tools }}",
        "additional_chat_templates/rag.jinja": "{{ documents }}",
        "generation_config.json": "{}",
        "LICENSE": "text",
        "LICENSE-MODEL.md": "text",
        "NOTICE.txt": "text",
        "USE_POLICY.md": "text",
        "Acceptable_Use_Policy.md": "text",
        "Llama-License.pdf": "text",
        "licence": "text",
        "THIRD_PARTY_NOTICES.txt": "text",
        "LICENSES/Apache-2.0.txt": "text",
        "special_tokens_map.json": '{"eos_token": "<|end|>"}',
    }
    staying = {"README.md": "x", "model.safetensors": "x", "notes.txt": "x", "optimizer.pt": "x"}
    staying |= {"license_check.py": "x", "licenses/deep/er.txt": "x", "noticed.txt": "x"}
    for name, text in {**travelling, **staying}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    copy_tokenizer(source, out)
    copied = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert copied == {*travelling, "tokenizer.json", "tokenizer_config.json"}
    loaded = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert set(loaded.chat_template) == {"default", "tool_use", "rag"}
    assert load_tokenizer(source).chat_template == loaded.chat_template


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_fifos_do_not_block(name: str, tmp_path: Path) -> None:
    source, out = tokenizer_directory(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    (source / name).unlink(missing_ok=True)
    os.mkfifo(source / name)
    with pytest.raises(VerificationError, match="plain file"):
        copy_tokenizer(source, out)
    if name == "tokenizer.json":
        with pytest.raises(VerificationError, match="FIFO"):
            load_tokenizer(source)


def test_an_enormous_file_is_not_copied(tmp_path: Path) -> None:
    source, out = tokenizer_directory(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    with (source / "LICENSE").open("wb") as file:
        file.truncate(1 << 29)
    with pytest.raises(VerificationError, match="too large"):
        copy_tokenizer(source, out)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "not a JSON object"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c d"]}}', "loaded"),
        ('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "loaded"),
        ('{"model": {"type": "No"}}', "loaded"),
    ],
)
def test_a_broken_file_is_one_error(content: str, says: str, tmp_path: Path) -> None:
    directory = tokenizer_directory(tmp_path)
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(VerificationError, match=says):
        load_tokenizer(directory)


def test_a_panic_of_the_library_is_one_error(tmp_path: Path) -> None:
    """A Rust panic is no `Exception`: a template processor that names no such token panics while encoding."""
    directory = tokenizer_directory(tmp_path)
    document = json.loads((directory / "tokenizer.json").read_text())
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    (directory / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(VerificationError, match="cannot be loaded"):
        load_tokenizer(directory)


def test_an_end_token_that_the_file_lacks(tmp_path: Path) -> None:
    end, padding = {"eos_token": "<|eot|>"}, {"pad_token": "[PAD]"}
    with pytest.raises(VerificationError, match="eos token is not in its vocabulary"):
        load_tokenizer(tokenizer_directory(tmp_path / "a", **end))
    tokenizer = load_tokenizer(tokenizer_directory(tmp_path / "b", **padding))
    assert tokenizer.pad_token_id is None
    assert len(tokenizer) == VOCAB_SIZE


@pytest.mark.parametrize(
    ("size", "beyond"), [(VOCAB_SIZE, 0), (VOCAB_SIZE + 60, 0), (VOCAB_SIZE - 1, 1), (300, 31)]
)
def test_ids_beyond_the_embedding(size: int, beyond: int, tmp_path: Path) -> None:
    directory = tokenizer_directory(tmp_path)
    if not beyond:
        require_known_ids(directory, size)
        return
    with pytest.raises(VerificationError, match=str(size)) as caught:
        require_known_ids(directory, size)
    assert str(VOCAB_SIZE - 1 if beyond == 1 else 300) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "declares"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"900": {"content": "<|new|>", "special": True}}}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<|new|>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<|new|>"}}),
        ("special_tokens_map.json", {"additional_special_tokens": [{"content": "<|new|>"}]}),
        ("added_tokens.json", {"<|new|>": 900}),
    ],
)
def test_a_token_that_only_another_file_declares_is_refused(
    name: str, declares: dict[str, Any], tmp_path: Path
) -> None:
    """Who reads the directory with transformers gets an id of its own for it, who reads the file does not."""
    directory = tokenizer_directory(tmp_path)
    file = directory / name
    before = json.loads(file.read_text()) if file.exists() else {}
    known = json.loads((directory / "tokenizer.json").read_text())["added_tokens"][0]
    harmless = (
        {known["content"]: known["id"]}
        if name == "added_tokens.json"
        else {"additional_special_tokens": [known["content"]]}
    )
    file.write_text(json.dumps({**before, **harmless}))
    require_known_ids(directory, 1000)
    file.write_text(json.dumps({**before, **declares}))
    with pytest.raises(VerificationError, match="declared") as caught:
        require_known_ids(directory, 1000)
    assert "<|new|>" in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("how", ["added", "vocabulary", "older files"])
def test_a_model_with_too_few_rows_is_refused_before_any_work(
    how: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    if how == "added":
        backend = raw(directory)
        backend.add_special_tokens([AddedToken("<|im_start|>", special=True)])
        backend.save(str(directory / "tokenizer.json"))
    else:
        document = json.loads((directory / "tokenizer.json").read_text())
        document["model"]["vocab"]["<|im_start|>"] = VOCAB_SIZE
        (directory / "tokenizer.json").write_text(json.dumps(document))
        if how == "older files":
            as_older_files(directory)
    for call in (
        lambda: plan_dims(str(directory)),
        lambda: open_checkpoint(resolve_source(str(directory)), tmp_path, dtype="float32"),
    ):
        with pytest.raises(VerificationError, match=rf"{VOCAB_SIZE} \('<\|im_start\|>'\)"):
            call()
    assert invoke(["plan", str(directory), "--target", "60%"]) == 8
    assert "ids beyond" in capsys.readouterr().err


def test_older_vocabularies_are_converted_or_refused(tmp_path: Path) -> None:
    """vocab.json and merges.txt are a tokenizer, if what transformers makes of them keeps every character."""
    source, out = tmp_path / "source", tmp_path / "out"
    for directory in (source, out):
        directory.mkdir()
    make_tokenizer().backend_tokenizer.save(str(source / "tokenizer.json"))
    as_older_files(source)
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "unk_token": "<|unknown|>"}
    (source / "tokenizer_config.json").write_text(json.dumps({**special, "tokenizer_class": "GPT2Tokenizer"}))
    (source / "config.json").write_text('{"model_type": "gpt2"}')
    copy_tokenizer(source, out)
    reference = Tokenizer(BPE.from_file(str(source / "vocab.json"), str(source / "merges.txt")))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    for text in TOKENIZER_TEXTS:
        assert load_tokenizer(out)(text, add_special_tokens=False).input_ids == reference.encode(text).ids
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def older_files(directory: Path, model_type: str, tokenizer_class: str) -> Path:
    """A tiny model whose tokenizer is vocab.json and merges.txt, as the slow classes wrote it."""
    as_older_files(save_checkpoint(directory, make_model(model_type)))
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    config = {**special, "unk_token": "<|unknown|>", "tokenizer_class": tokenizer_class}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [("llama", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer"), ("qwen3", "Qwen2Tokenizer")],
)
def test_older_files_give_the_ids_of_plain_transformers(
    model_type: str, tokenizer_class: str, tmp_path: Path
) -> None:
    source, out = older_files(tmp_path / "source", model_type, tokenizer_class), tmp_path / "out"
    out.mkdir()
    expected = AutoTokenizer.from_pretrained(source, local_files_only=True)
    opened = open_checkpoint(resolve_source(str(source)), tmp_path, dtype="float32")
    copy_checkpoint(opened.path, out)

    plain = AutoTokenizer.from_pretrained(out, local_files_only=True)
    for text in (*TEXTS, "<|begin|>a <|end|>"):
        ids = expected(text).input_ids
        assert load_tokenizer(source)(text).input_ids == ids
        assert load_tokenizer(out)(text).input_ids == plain(text).input_ids == ids
    for role in ("bos", "eos", "pad"):
        assert getattr(plain, f"{role}_token_id") == getattr(expected, f"{role}_token_id")
    check_tokenizer(out, source, trust_remote_code=False)


@pytest.mark.skipif(GENERATION < FIRST_WITH_ROPE_PARAMETERS, reason="4.57 reads them")
@pytest.mark.parametrize("model_type", ["mistral", "nemotron"])
def test_older_files_that_plain_transformers_does_not_read_are_refused(
    model_type: str, tmp_path: Path
) -> None:
    """5 reads these families' tokenizers from other files, and asks for sentencepiece instead."""
    source = older_files(tmp_path / "source", model_type, "GPT2Tokenizer")
    with pytest.raises(ValueError, match="backend tokenizer"):
        AutoTokenizer.from_pretrained(source, local_files_only=True)
    with pytest.raises(VerificationError, match=r"own tokenizer\.json beside them"):
        open_checkpoint(resolve_source(str(source)), tmp_path, dtype="float32")


@pytest.mark.parametrize("content", [b"\n\x0e\n\x05<unk>\x15", b"IQ== 0\nIg== 1\n", b""])
def test_a_sentencepiece_file_alone_needs_its_library(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it transformers takes the file for one of tiktoken's, and fails for a reason of its own."""
    monkeypatch.setattr("compressor.models.tokenizer.find_spec", lambda _name: None)
    directory = save_checkpoint(tmp_path / "model", make_model())
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.model").write_bytes(content)

    for work in (
        lambda: open_checkpoint(resolve_source(str(directory)), tmp_path, dtype="float32"),
        lambda: load_tokenizer(directory),
    ):
        with pytest.raises(DependencyError, match="sentencepiece") as caught:
            work()
        assert caught.value.exit_code == 4
    out = tmp_path / "student"
    options = ["--shape", "num_hidden_layers=2", "--importance", "weight-magnitude", "-o", str(out)]
    assert invoke(["prune", str(directory), *options]) == 4
    assert "pip install sentencepiece" in capsys.readouterr().err
    assert not out.exists()


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    make_tokenizer_portable(tmp_path)
    for call in (lambda: load_tokenizer(tmp_path), lambda: tokenizer_digest(tmp_path)):
        with pytest.raises(UsageError, match="no tokenizer"):
            call()
