"""What a text is refused for before anything long begins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.data.conversations import render_all, responses
from compressor.data.files import find_files, is_local
from compressor.data.hub import open_hub_split
from compressor.data.sources import Documents, Split, survey
from compressor.data.tokenise import GROUP_DOCUMENTS, LossOn, grouped

# No text takes more characters for a token, on average: a bound for what a budget of tokens will read.
CHARACTERS_PER_TOKEN = 16
_MAX_NAMED = 5


def check_texts(specs: Iterable[str], console: Console) -> None:
    """Read all of some local texts; of those of the hub, see that they are there.

    Rows of the hub are checked as they come.

    Raises:
        UsageError: for a text that is missing or empty, a row that cannot be read, with its place, or a data
            set without the split that is to be read.
        NetworkError: when the hub cannot be reached.
    """
    for spec in dict.fromkeys(specs):
        if not is_local(spec):
            open_hub_split(spec)
            continue
        text, found = find_files(spec), survey(spec)
        if text.cards:
            console.warn(f"not read as text of {spec}: {_listed(text.cards)}")
        if text.other_splits:
            console.warn(f"only the train split of {spec} is read, not {_listed(text.other_splits)}")
        if found.num_empty:
            console.warn(f"{found.num_empty} empty rows of {spec} are skipped")
        if found.num_replaced:
            console.warn(f"{found.num_replaced} broken surrogates in {spec} are read as U+FFFD")


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def check_responses(specs: Iterable[str]) -> None:
    """Refuse local texts without responses, or in which these cannot be told from the rest.

    Raises:
        UsageError: naming the first row that is plain text, or the text whose training part holds no
            response.
    """
    for spec in filter(is_local, specs):
        found = survey(spec, answers=True)
        if found.plain_rows is not None:
            raise UsageError(
                "plain text holds no responses, which --loss-on responses needs",
                where=found.plain_rows,
                expected="conversations, prompt and completion, or instruction and output",
                hint="give such rows, or use --loss-on all",
            )
        if found.first_response is None or found.first_response >= found.cut:
            raise _without_responses(spec, f"none in the {found.cut} rows of the training part")


def _without_responses(spec: str, found: str) -> UsageError:
    return UsageError(
        "this text holds no response to train on",
        where=spec,
        expected="an answer of the assistant, or a completion",
        found=found,
        hint="give conversations with answers, or use --loss-on all",
    )


def check_rendering(
    spec: str, split: Split, tokenizer: Any, *, max_tokens: int | None, loss_on: LossOn = "all"
) -> None:
    """Render about `max_tokens`, None for all, of a local text's conversations, and find their responses.

    Raises:
        UsageError: for responses and a text in which the template shows none.
        UsageError, UnsupportedError, VerificationError: as `render_all` and `responses` do.
    """
    tracks = loss_on == "responses"
    if not is_local(spec) or not survey(spec, answers=tracks).has_conversations:
        return
    characters = num_documents = num_responses = 0
    for group in grouped(Documents(spec, split, answers=tracks), GROUP_DOCUMENTS):
        for document, rendered in zip(group, render_all(group, tokenizer, tracks=tracks), strict=True):
            characters += len(rendered.text)
            if tracks:
                spans = responses(document, rendered, tokenizer, where=spec)
                num_responses += sum(end > start for start, end in spans)
        num_documents += len(group)
        if max_tokens is not None and characters > max_tokens * CHARACTERS_PER_TOKEN:
            break
    if tracks and not num_responses:
        raise _without_responses(spec, f"none in {num_documents} documents as the chat template writes them")
