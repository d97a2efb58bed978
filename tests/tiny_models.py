"""Models of two or three layers with random weights, and a tokenizer for them: no network, no files.

Every size differs from every other that it could be mistaken for: the vocabulary from all projection
widths, key/value heads from query heads. Weights are larger than a fresh model's and norms are not
ones, so that a wrong channel or a forgotten norm shows in the logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from compressor.models.config.portable import make_portable

MODEL_TYPES = ("llama", "mistral", "nemotron", "phi3", "qwen2", "qwen3")
VOCAB_SIZE = 331
ROPE_THETA = 50_000.0
EMBEDDING_STD = 0.3
SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|pad|>", "<|unknown|>")
BOS_ID, EOS_ID, PAD_ID, UNK_ID = range(VOCAB_SIZE - len(SPECIAL_TOKENS), VOCAB_SIZE)
_CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def make_model(
    model_type: str = "llama", *, tie_word_embeddings: bool = True, seed: int = 0, **overrides: Any
) -> Any:
    """A small random model in evaluation mode, fp32, on the CPU.

    Args:
        model_type: One of `MODEL_TYPES`.
        tie_word_embeddings: Whether the LM head is the embedding.
        seed: Seed of the weights; the global generator is left alone.
        **overrides: Fields of the Hugging Face config.
    """
    fields = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "tie_word_embeddings": tie_word_embeddings,
        "rope_theta": ROPE_THETA,
        **overrides,
    }
    config = AutoConfig.for_model(model_type, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _randomise_(model)
    return model.eval().requires_grad_(requires_grad=False)


def save_checkpoint(path: Path, model: Any) -> Path:
    """Write a model and its tokenizer as a Hugging Face checkpoint, portable; returns `path`."""
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    make_portable(path)
    return path


def edit_json(file: Path, **fields: Any) -> None:
    """Change fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def edit_tensors(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights of a checkpoint in one file."""
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with `VOCAB_SIZE` entries: 256 bytes, 71 merges, 4 special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    merges += [(vowel, consonant) for vowel in "aeiou" for consonant in "nrstlmdcg"]
    entries = [*alphabet, *("".join(pair) for pair in merges), *SPECIAL_TOKENS]
    tokenizer = Tokenizer(BPE(vocab={entry: index for index, entry in enumerate(entries)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    begin, end, pad, unknown = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
        chat_template=_CHAT_TEMPLATE,
        model_max_length=2048,
    )


def _randomise_(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # norms and biases
            centre = 0.0 if name.endswith("bias") else 1.0
            torch.nn.init.uniform_(parameter, centre - 0.4, centre + 0.4)
        elif "embed" in name or "lm_head" in name:
            torch.nn.init.normal_(parameter, std=EMBEDDING_STD)
        else:
            torch.nn.init.normal_(parameter, std=1.2 / parameter.shape[-1] ** 0.5)
