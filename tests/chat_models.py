"""A tiny chat model that learned a few conversations by heart, and others that answer badly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from compressor.models.config.portable import make_portable
from tests.tiny_models import EOS_ID, make_model, make_tokenizer

# The assistant's turn stands in a block of its own only where transformers is to mark it.
_TURN = (
    "{{ m['role'] }}\n{% if m['role'] == 'assistant' %}@{{ m['content'] }}<|end|>&"
    "{% else %}{{ m['content'] }}<|end|>{% endif %}\n"
)
_CHATML = (
    "{% for m in messages %}<|begin|>" + _TURN + "{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
CHATML = _CHATML.replace("@", "").replace("&", "")
MARKED_CHATML = _CHATML.replace("@", "{% generation %}").replace("&", "{% endgeneration %}")

CHATS = [
    [("user", "name a river"), ("assistant", "the rhine")],
    [("user", "a colour?"), ("assistant", "red, as copper is"), ("user", "why?"), ("assistant", "it is old")],
    [("system", "be kind"), ("user", "the north"), ("assistant", "winter, snow and a letter")],
    [("user", "seven"), ("assistant", "eight")],
    [("user", "stone"), ("assistant", "a garden has one")],
    [("user", "good morning"), ("assistant", "and to you")],
]


def messages_of(chat: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """A conversation as templates take it."""
    return [{"role": role, "content": content} for role, content in chat]


def write_chats(path: Path, chats: Sequence[Sequence[tuple[str, str]]] = CHATS) -> Path:
    """Conversations as JSON lines; returns `path`."""
    rows = [json.dumps({"messages": messages_of(chat)}) for chat in chats]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def chat_tokenizer(template: str | None = CHATML) -> Any:
    """The tiny tokenizer with a chat template whose turns end with its end-of-text token."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def save_chat_model(path: Path, model: Any, template: str | None = CHATML) -> Path:
    """Write a model with a chat template, or without one; returns `path`."""
    model.save_pretrained(path)
    chat_tokenizer(template).save_pretrained(path)
    make_portable(path)
    return path


def learned_model(*, steps: int = 120) -> Any:
    """A model that answers `CHATS` as they stand, and ends its answers; no logits of it are near a tie."""
    model, tokenizer = make_model(), chat_tokenizer()
    rows = [tokenizer.apply_chat_template(messages_of(chat), return_dict=True)["input_ids"] for chat in CHATS]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [EOS_ID] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    model.train().requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(requires_grad=False)


def marked(chat: list[tuple[str, str]]) -> tuple[list[int], list[bool]]:
    """transformers' own ids and mask, by a template with generation blocks around the same text."""
    found = chat_tokenizer(MARKED_CHATML).apply_chat_template(
        messages_of(chat), return_dict=True, return_assistant_tokens_mask=True
    )
    return list(found["input_ids"]), [bool(one) for one in found["assistant_masks"]]


def logits_of(directory: Path, ids: list[int]) -> torch.Tensor:
    """Float64 logits by transformers, `[num_tokens, vocab_size]`."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()
