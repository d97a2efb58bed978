"""Models from anywhere: configs, weight files, GGUF files, and the files of tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import pseudo_text
from tests.fuzz.commands import commanded
from tests.fuzz.gguf_layout import mutated_gguf
from tests.fuzz.kind import Finished, Kind, Seed, Target, Workspace, files_of
from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_safetensors, mutated_text
from tests.gguf_files import TinyGguf
from tests.tiny_models import SPECIAL_TOKENS, make_model, save_checkpoint

_SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
_SHAPE = ("--shape", "intermediate_size=48")
_PLANNED = (*_SHAPE, "--formats", "huggingface", "--json")
_RANDOM = (*_SHAPE, "--importance", "random")
_CODE = "import os; os.mkdir('/fz7q')\n"
_TEXT, _WINDOWS = "text.txt", ("--seq-len", "32", "--size", "1")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CONFIGS = ("config.json", "generation_config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def _checkpoint(directory: Path, model_type: str, **overrides: Any) -> dict[str, bytes]:
    """A tiny checkpoint, with code beside it that nothing may run."""
    save_checkpoint(directory, make_model(model_type, **{**_SIZES, **overrides}).bfloat16())
    files = {**files_of(directory), _TEXT: pseudo_text(400, 0).encode()}
    return {**files, "modeling_fz7q.py": _CODE.encode(), "tokenization_fz7q.py": _CODE.encode()}


def _json(*names: str) -> tuple[Target, ...]:
    return tuple(Target(file=name, change=mutated_json) for name in names)


def config_seeds(scratch: Path) -> list[Seed]:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = {"rope_scaling": {**rope, "original_max_position_embeddings": 512}}
    made = [
        _checkpoint(scratch / "llama", "llama", **scaled),
        _checkpoint(scratch / "qwen3", "qwen3", tie_word_embeddings=False),
        _checkpoint(scratch / "phi3", "phi3"),
        _checkpoint(scratch / "mistral", "mistral", sliding_window=None),
    ]
    return [Seed(files=files, targets=_json(*_CONFIGS)) for files in made]


def read_model(workspace: Workspace, way: int) -> Iterator[Finished]:
    """A plan of the model, and every third time a command that reads its weights too."""
    yield commanded("plan", workspace.input, *_PLANNED)
    further = (
        ("prune", workspace.input, *_RANDOM, "-o", workspace.out),
        ("export", workspace.input, "--format", "huggingface", "-o", workspace.out),
        ("verify", workspace.input),
        ("evaluate", workspace.input, "--data", workspace.input / _TEXT, *_WINDOWS, "-o", workspace.out),
    )
    if way % 8 < len(further):
        yield commanded(*further[way % 8])


def read_weights(workspace: Workspace, way: int) -> Iterator[Finished]:
    """A student is pruned of the model, or the model is checked or copied."""
    commands = (
        ("prune", workspace.input, *_RANDOM, "-o", workspace.out),
        ("verify", workspace.input),
        ("export", workspace.input, "--format", "huggingface", "-o", workspace.out),
    )
    yield commanded(*commands[way % len(commands)])


def weight_seeds(scratch: Path) -> list[Seed]:
    from compressor.models.checkpoint import CheckpointReader, whole, write_checkpoint

    single = _checkpoint(scratch / "single", "llama")
    with CheckpointReader(scratch / "single") as reader:
        specs = [whole(name, reader.tensor(name)) for name in reader]
    (scratch / "shards").mkdir()
    write_checkpoint(scratch / "shards", specs, max_shard_bytes=30_000)
    shards = files_of(scratch / "shards")
    beside = {name: content for name, content in single.items() if name != _WEIGHTS}
    names = sorted(name for name in shards if name.endswith(".safetensors"))
    return [
        Seed(files=single, targets=(Target(file=_WEIGHTS, change=mutated_safetensors),)),
        Seed(
            files={**beside, **shards},
            targets=(*_json(_INDEX), Target(file=names[0], change=mutated_safetensors)),
        ),
    ]


def gguf_seeds(scratch: Path) -> list[Seed]:
    kinds = (
        TinyGguf(hidden_size=32, intermediate_size=64, head_dim=8),
        TinyGguf(kind="Q8_0", hidden_size=32, intermediate_size=64, head_dim=8),
        TinyGguf(architecture="qwen3", hidden_size=32, intermediate_size=64, head_dim=8),
        TinyGguf(tokenizer="llama", pre=None, hidden_size=32, intermediate_size=64, head_dim=8),
    )
    target = Target(file="model.gguf", change=mutated_gguf)
    found = []
    for number, kind in enumerate(kinds):
        content = kind.write(scratch / f"{number}.gguf").read_bytes()
        found.append(Seed(files={"model.gguf": content}, targets=(target,)))
    return found


def read_gguf(workspace: Workspace, way: int) -> Iterator[Finished]:
    file = workspace.input / "model.gguf"
    yield commanded("plan", file, *_PLANNED)
    if way % 2:
        yield commanded("prune", file, *_RANDOM, "-o", workspace.out)


def tokenizer_seeds(scratch: Path) -> list[Seed]:
    files = _checkpoint(scratch / "fast", "llama")
    older = {name: content for name, content in files.items() if not name.startswith("tokenizer")}
    document = _document(files["tokenizer.json"])
    words, merges = document["model"]["vocab"], document["model"]["merges"]
    pairs = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n"
    words |= {token["content"]: token["id"] for token in document["added_tokens"]}
    older |= {"vocab.json": _encoded(words), "merges.txt": pairs.encode()}
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), SPECIAL_TOKENS[1])
    older["tokenizer_config.json"] = _encoded({"tokenizer_class": "GPT2TokenizerFast", **roles})
    targets = (*_json(*_TOKENIZER), Target(file="tokenizer.json", change=mutated_bytes))
    text = Target(file="merges.txt", change=mutated_text)
    return [
        Seed(files=files, targets=targets),
        Seed(files=older, targets=(*_json("vocab.json", "tokenizer_config.json", "added_tokens.json"), text)),
    ]


def _document(content: bytes) -> Any:
    import json

    return json.loads(content)


def _encoded(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()


MODEL_KINDS = (
    Kind(name="config", seeds=config_seeds, read=read_model),
    Kind(name="safetensors", seeds=weight_seeds, read=read_weights),
    Kind(name="gguf", seeds=gguf_seeds, read=read_gguf),
    Kind(name="tokenizer", seeds=tokenizer_seeds, read=read_weights),
)
