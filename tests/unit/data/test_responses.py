"""The loss on responses: spans of characters, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.core.errors import UnsupportedError, UsageError
from compressor.data.conversations import responses
from compressor.data.packing import mask_path, write_tokens
from compressor.data.rows import Completion, Conversation
from compressor.data.sources import survey
from compressor.data.template import Rendered
from compressor.data.tokenise import tokenise_all
from tests.tiny_models import make_tokenizer
from tests.unit.data.texts import chat, counted, with_mask, with_template, write_rows

CHATML = (
    "{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|pad|>{{ m.role }}<|pad|>\n\n{{ m.content|trim }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|pad|>assistant<|pad|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GENERATION = (
    "{% for m in messages %}<|begin|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
CHAT = [
    *chat(user="one river?", assistant="a stone — 石 🙂"),
    *chat(user="and more", assistant="winter"),
]
# Without a branch for the header of an answer to come: it stands before every answer all the same.
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }}"
    "{% else %} ASSISTANT:{{ m.content }}<|end|>{% endif %}{% endfor %}"
)
ZEPHYR = "{% for m in messages %}<|pad|>{{ m.role }}\n{{ m.content|trim }}<|end|>\n{% endfor %}"
ALPACA = (
    "{{ bos_token }}Be kind.{% for m in messages %}{{ '\n\n### ' + m.role|capitalize }}:\n"
    "{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
)
# What is rendered, piece by piece, and whether a piece is a response.
CHATML_PIECES = [
    ("<|begin|>user\none river?<|end|>\n<|begin|>assistant\n", False),
    ("a stone — 石 🙂<|end|>", True),
    ("\n<|begin|>user\nand more<|end|>\n<|begin|>assistant\n", False),
    ("winter<|end|>", True),
    ("\n", False),
]
BY_HAND: dict[str, list[tuple[str, bool]]] = {
    CHATML: CHATML_PIECES,
    LLAMA3: [
        ("<|begin|><|pad|>user<|pad|>\n\none river?<|end|><|pad|>assistant<|pad|>\n\n", False),
        ("a stone — 石 🙂<|end|>", True),
        ("<|pad|>user<|pad|>\n\nand more<|end|><|pad|>assistant<|pad|>\n\n", False),
        ("winter<|end|>", True),
    ],
    MISTRAL: [
        ("<|begin|>[INST] one river? [/INST]", False),
        (" a stone — 石 🙂<|end|>", True),
        ("[INST] and more [/INST]", False),
        (" winter<|end|>", True),
    ],
    GENERATION: CHATML_PIECES,
    VICUNA: [
        ("<|begin|>USER: one river? ASSISTANT:", False),
        ("a stone — 石 🙂<|end|>", True),
        ("USER: and more ASSISTANT:", False),
        ("winter<|end|>", True),
    ],
    ZEPHYR: [
        ("<|pad|>user\none river?<|end|>\n<|pad|>assistant\n", False),
        ("a stone — 石 🙂<|end|>", True),
        ("\n<|pad|>user\nand more<|end|>\n<|pad|>assistant\n", False),
        ("winter<|end|>", True),
        ("\n", False),
    ],
    ALPACA: [
        ("<|begin|>Be kind.\n\n### User:\none river?\n\n### Assistant:\n", False),
        ("a stone — 石 🙂<|end|>", True),
        ("\n\n### User:\nand more\n\n### Assistant:\n", False),
        ("winter<|end|>", True),
    ],
    LLAMA2: [
        ("<|begin|>[INST] one river? [/INST]", False),
        (" a stone — 石 🙂<|end|>", True),
        ("<|begin|>[INST] and more [/INST]", False),
        (" winter<|end|>", True),
    ],
}
NAMES = ["ChatML", "Llama 3", "Mistral", "generation blocks", "Vicuna", "Zephyr", "Alpaca", "Llama 2"]


def hand_made(pieces: list[tuple[str, bool]], tokenizer: Any) -> list[list[int]]:
    """Tokens of the pieces one by one: none of these texts has a token across two of them."""
    ids: list[int] = []
    mask: list[int] = []
    for text, is_response in pieces:
        own = tokenizer(text, add_special_tokens=False).input_ids
        ids, mask = ids + own, mask + [int(is_response)] * len(own)
    return [ids, mask]


@pytest.mark.parametrize("template", BY_HAND, ids=NAMES)
def test_responses_by_hand(template: str) -> None:
    tokenizer = with_template(template)

    assert with_mask(tokenizer, CHAT) == hand_made(BY_HAND[template], tokenizer)


def test_generation_blocks_as_transformers_marks_them() -> None:
    """Up to the end of a response in ASCII: it marks but the first token of a last character in several."""
    tokenizer = with_template(GENERATION)
    messages = [
        {**message, "content": message["content"].encode("ascii", "ignore").decode()} for message in CHAT
    ]
    theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)

    assert with_mask(tokenizer, messages) == [list(theirs["input_ids"]), list(theirs["assistant_masks"])]


@pytest.mark.parametrize("template", [CHATML, GENERATION])
def test_only_the_completion_of_a_prompt_counts(template: str) -> None:
    tokenizer = with_template(template)
    document = Conversation(messages=CHAT, num_prompt_messages=3)
    pieces = [(text, is_response and text.startswith("winter")) for text, is_response in BY_HAND[template]]

    assert with_mask(tokenizer, document) == hand_made(pieces, tokenizer)


# The same, where the assistant opens the conversation.
OPENED = {
    CHATML: [("<|begin|>assistant\n", False), ("winter<|end|>", True), ("\n", False)],
    LLAMA3: [("<|begin|><|pad|>assistant<|pad|>\n\n", False), ("winter<|end|>", True)],
    MISTRAL: [("<|begin|>", False), (" winter<|end|>", True)],
    GENERATION: [("<|begin|>assistant\n", False), ("winter<|end|>", True), ("\n", False)],
    VICUNA: [("<|begin|> ASSISTANT:", False), ("winter<|end|>", True)],
    ZEPHYR: [("<|pad|>assistant\n", False), ("winter<|end|>", True), ("\n", False)],
    ALPACA: [("<|begin|>Be kind.\n\n### Assistant:\n", False), ("winter<|end|>", True)],
    LLAMA2: [(" winter<|end|>", True)],
}


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("template", OPENED, ids=NAMES)
def test_an_answer_that_opens_the_conversation(template: str, counts: bool) -> None:
    """Before everything that the other conversation holds, but for the template's own beginning."""
    tokenizer = with_template(template)
    opening = {**CHAT[3], **({} if counts else {"weight": 0})}
    found_ids, found_mask = with_mask(tokenizer, [opening, *CHAT])
    begins = "<|begin|>Be kind." if template == ALPACA else "<|begin|>"
    (first, _), *rest = BY_HAND[template]
    if template in (LLAMA3, MISTRAL, VICUNA, ALPACA):
        first = first.removeprefix(begins)
    opened = [(text, is_response and counts) for text, is_response in OPENED[template]]
    ids, mask = hand_made([*opened, (first, False), *rest], tokenizer)

    assert tokenizer.decode(found_ids) == tokenizer.decode(ids)
    own = tokenizer.decode([token for token, counts in zip(ids, mask, strict=True) if counts])
    assert [counted(tokenizer, [opening, *CHAT]), sum(found_mask)] == [own, sum(mask)]


WITH_CALLS = (
    "{% for m in messages %}[HEAD]{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}[CALL]{{ c.function|tojson }}{% endfor %}"
    "{{ '<|end|>' if m.role == 'assistant' }}{% endfor %}"
)
ANSWERS: list[tuple[dict[str, Any], str]] = [
    (
        {"content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": "river"}}}]},
        '[CALL]{"name": "look", "arguments": {"at": "river"}}<|end|>',
    ),
    ({"content": "a stone", "reasoning_content": "hm"}, "<think>hm</think>a stone<|end|>"),
    ({"content": "[CALL] me"}, "[CALL] me<|end|>"),
    ({"content": "q"}, "q<|end|>"),
    ({"content": "zxqbq"}, "zxqbq<|end|>"),
]


@pytest.mark.parametrize("head", ["<|pad|>{{ m.role }}\n", "{{ '|' if m.role == 'user' }}"])
@pytest.mark.parametrize(("answer", "text"), ANSWERS)
@pytest.mark.parametrize("opens", [False, True])
def test_calls_and_reasoning_belong_to_the_answer(
    answer: dict[str, Any], text: str, head: str, opens: bool
) -> None:
    tokenizer = with_template(WITH_CALLS.replace("[HEAD]", head))
    messages = [{"role": "user", "content": "look?"}] * (not opens) + [{"role": "assistant", **answer}]

    assert counted(tokenizer, messages) == text


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize(
    "content", ["<think>hm</think>a stone", "<think></think> a stone", "<think>\nhm", "a stone", ""]
)
def test_an_answer_that_begins_as_what_the_template_writes_before_others(content: str, opens: bool) -> None:
    tokenizer = with_template(
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' and '<think>' not in m.content %}"
        "<think></think>{% endif %}{{ m.content }}<|end|>{% endfor %}"
    )
    messages = [CHAT[0]] * (not opens) + [{"role": "assistant", "content": content}]

    assert counted(tokenizer, messages) == f"{content}<|end|>"


def test_an_answer_whose_beginning_cannot_be_told() -> None:
    """The template writes an answer's content only where it is what it expects."""
    tokenizer = with_template(
        "{% for m in messages %}{{ m.role }}: {% if m.content in ('one river?', 'winter') %}{{ m.content }}"
        "{% endif %}<|end|>{% endfor %}"
    )
    document = Conversation(messages=[CHAT[0], CHAT[3]], where="x.jsonl:4")
    rendered = Rendered(text="user: one river?<|end|>assistant: winter<|end|>", spans=())
    with pytest.raises(UnsupportedError, match="cannot be found") as caught:
        responses(document, rendered, tokenizer, where="x.jsonl:4")
    assert caught.value.where == "x.jsonl:4"


MUTED: list[dict[str, Any]] = [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"weight": 1, "train": 0}]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fields", MUTED)
@pytest.mark.parametrize("template", BY_HAND, ids=NAMES)
def test_no_loss_on_messages_that_do_not_count(template: str, fields: dict[str, Any], first: bool) -> None:
    tokenizer = with_template(template)
    messages = [{**m, "weight": 1} if m["role"] == "assistant" else m for m in CHAT]
    messages[1 if first else 3] = {**CHAT[1 if first else 3], **fields}
    kept = "winter" if first else "a stone"
    pieces = [(text, is_response and kept in text) for text, is_response in BY_HAND[template]]

    assert with_mask(tokenizer, messages) == hand_made(pieces, tokenizer)


@pytest.mark.parametrize("num_prompt_messages", [0, 2])
def test_all_blocks_of_a_message_that_does_not_count(num_prompt_messages: int) -> None:
    """As templates that write the thoughts in a block of their own."""
    tokenizer = with_template(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}so {% endgeneration %}|"
        "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    messages = [*CHAT, CHAT[2], {**CHAT[1], "weight": 0}, CHAT[0], CHAT[3]]
    messages[3] = {**messages[3], "train": False}
    document = Conversation(messages=messages, num_prompt_messages=num_prompt_messages)
    first = "" if num_prompt_messages else "so a stone — 石 🙂<|end|>"

    assert counted(tokenizer, document) == f"{first}so winter<|end|>"


@pytest.mark.parametrize(
    ("row", "same"),
    [
        (
            {"instruction": "one river", "output": "stone"},
            {"messages": chat(user="one river", assistant="stone")},
        ),
        ({"messages": CHAT}, {"messages": CHAT}),
        ({"prompt": "one ", "completion": "stone"}, {"prompt": "one ", "completion": "stone"}),
    ],
)
def test_fields_go_before_their_text_where_only_responses_count(
    tmp_path: Path, row: dict[str, Any], same: dict[str, Any]
) -> None:
    """As in Alpaca, whose rows hold both."""
    tokenizer = with_template(CHATML)

    def written(name: str, row: dict[str, Any], loss_on: Any) -> list[bytes]:
        rows = write_rows(tmp_path / f"{name}.jsonl", *[row] * 20)
        path = tmp_path / name
        write_tokens(str(rows), "train", tokenizer, path, max_tokens=10**6, loss_on=loss_on)
        return [file.read_bytes() for file in (path, mask_path(path)) if file.is_file()]

    both = {"text": "Below is an instruction.", **row}
    assert written("both", both, "responses") == written("fields", same, "responses")
    assert written("text of both", both, "all") == written("text", {"text": both["text"]}, "all")


def test_a_text_whose_answer_is_empty_has_no_response(tmp_path: Path) -> None:
    """And is as many documents as where the loss is on all, so that what is held out is the same."""
    empty = {"text": "one river", "instruction": "one river", "output": ""}
    full = {"text": "one river stone", "instruction": "one river", "output": "stone"}
    rows = write_rows(tmp_path / "rows.jsonl", *[empty, full] * 10)
    tokenizer = with_template(CHATML)
    path = tmp_path / "tokens"
    write_tokens(str(rows), "train", tokenizer, path, max_tokens=10**6, loss_on="responses")
    ids, mask = np.fromfile(path, "<u4"), np.fromfile(mask_path(path), np.uint8)

    assert tokenizer.decode(ids[mask == 1]) == "stone<|end|>" * 9
    assert tokenizer.decode(ids).startswith("one river<|end|><|begin|>user\none river<|end|>")
    assert survey(str(rows)).cut == survey(str(rows), answers=True).cut == 18


def test_a_completion_counts_with_the_end_token() -> None:
    tokenizer = make_tokenizer()
    document = Completion(prompt="one river", completion=" stone")

    assert with_mask(tokenizer, document) == hand_made(
        [("one river", False), (" stone<|end|>", True)], tokenizer
    )


def test_a_template_whose_prefix_is_no_prefix() -> None:
    """As one that shows the thoughts of the last turn only."""
    tokenizer = with_template(
        "{% for m in messages %}{{ m.role }}: {{ '<think>' if loop.last }}{{ m.content }}<|end|>\n"
        "{% endfor %}"
    )
    document = Conversation(messages=CHAT, where="x.jsonl:4")
    with pytest.raises(UnsupportedError, match="differently when they are alone") as caught:
        tokenise_all("x", [document], tokenizer, loss_on="responses")
    assert caught.value.where == "x.jsonl:4"


def test_plain_text_has_no_responses() -> None:
    with pytest.raises(UsageError, match="no responses") as caught:
        tokenise_all("x.jsonl", ["plain"], make_tokenizer(), loss_on="responses", first=4)
    assert caught.value.where == "x.jsonl, document 5"
