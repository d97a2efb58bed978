"""From documents to token ids, and which of them are responses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compressor.core.errors import UnsupportedError, UsageError
from compressor.data.conversations import Span, render_all, responses
from compressor.data.messages import CORRECT
from compressor.data.rows import Document, TextPiece
from compressor.data.sources import Documents

LossOn = Literal["all", "responses"]
TokenArray = npt.NDArray[np.uint32]
MaskArray = npt.NDArray[np.uint8]
# Documents rendered and tokenised together: asking the template's process costs as much as one of them.
GROUP_DOCUMENTS = 64
# White space that a template leaves behind a document's end token.
_MAX_TRAILING_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class Tokenised:
    """A document's tokens.

    Attributes:
        ids: `[num_tokens]`, without BOS.
        mask: `[num_tokens]`, 1 where the loss counts; None where it counts everywhere.
        begins: Whether a document begins with the first of them.
    """

    ids: TokenArray
    mask: MaskArray | None
    begins: bool


def grouped(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Up to `size` documents after the other."""
    rows = iter(documents)
    while group := list(itertools.islice(rows, size)):
        yield group


def tokenised_groups(
    reader: Documents, spec: str, tokenizer: Any, *, loss_on: LossOn = "all"
) -> Iterator[list[Tokenised]]:
    """A reader's documents, tokenised in groups; between two of them its position may be kept."""
    for group in grouped(reader, GROUP_DOCUMENTS):
        first = reader.num_taken - len(group)
        yield tokenise_all(spec, group, tokenizer, loss_on=loss_on, first=first)


def tokenise_all(
    spec: str, group: Sequence[Document], tokenizer: Any, *, loss_on: LossOn = "all", first: int = 0
) -> list[Tokenised]:
    """Tokenise documents.

    Args:
        spec: Their source, for messages.
        group: The documents.
        tokenizer: A Hugging Face tokenizer.
        loss_on: `responses` for the mask of responses.
        first: How many documents come before them, for messages.

    Raises:
        UsageError: for a conversation that cannot be rendered, a text the tokenizer cannot take, or one
            without responses where only they count.
        UnsupportedError: for responses and a template or tokenizer that does not tell where they are.
    """
    tracks = loss_on == "responses"
    tokenised = []
    texts = render_all(group, tokenizer, tracks=tracks)
    for number, (document, rendered) in enumerate(zip(group, texts, strict=True), first + 1):
        place = getattr(document, "where", "") or f"{spec}, document {number}"
        spans = responses(document, rendered, tokenizer, where=place) if tracks else None
        ids, mask = encode_marked(rendered.text, tokenizer, spans, place)
        if not isinstance(document, TextPiece) or document.ends:
            _end_once_(ids, mask, tokenizer)
        tokenised.append(
            Tokenised(
                ids=np.asarray(ids, dtype=np.uint32),
                mask=None if spans is None else np.asarray(mask, dtype=np.uint8),
                begins=not isinstance(document, TextPiece) or document.begins,
            )
        )
    return tokenised


def encode_marked(
    text: str, tokenizer: Any, spans: list[Span] | None, where: str
) -> tuple[list[int], list[int]]:
    """Token ids of a text as it stands, and 1 for those of the spans; without spans no mask.

    Raises:
        UsageError: for a text that the tokenizer cannot take.
        UnsupportedError: for spans and a tokenizer that does not say which characters a token stands for.
    """
    if spans is not None and not tokenizer.is_fast:
        raise UnsupportedError(
            "this tokenizer does not say which characters a token stands for",
            where="--loss-on responses",
            expected="a fast tokenizer (tokenizer.json)",
            found=type(tokenizer).__name__,
            hint="put the model's tokenizer.json beside it, or train with --loss-on all",
        )
    wanted = {"return_offsets_mapping": True} if spans is not None else {}
    try:
        # Not verbose: a text may be longer than the model's context here.
        found = tokenizer(text, add_special_tokens=False, verbose=False, **wanted)
    except BaseException as error:
        # The Rust library's panics are not subclasses of Exception.
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)) or not _is_of_tokenizers(error):
            raise
        raise UsageError(
            "the tokenizer cannot take this text",
            where=where,
            found=error,
            hint=CORRECT,
        ) from error
    ids = list(found.input_ids)
    return ids, [] if spans is None else _mask(found.offset_mapping, spans)


def _is_of_tokenizers(error: BaseException) -> bool:
    return isinstance(error, (TypeError, ValueError)) or type(error).__name__ == "PanicException"


def _mask(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """1 for the tokens of the spans: from the first that reaches into one to the last that does."""
    mask = [0] * len(offsets)
    token = 0
    for start, end in sorted(spans):
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        last = token
        while last < len(offsets) and offsets[last][0] < end:
            last += 1
        mask[token:last] = [1] * (last - token)
        token = max(token, last - 1)
    return mask


def _end_once_(ids: list[int], mask: list[int], tokenizer: Any) -> None:
    """Let a document end with the end-of-text token, unless its template has it end so already."""
    end = tokenizer.eos_token_id
    if end is None:
        return
    for behind in range(min(len(ids), _MAX_TRAILING_TOKENS + 1)):
        if ids[-1 - behind] == end:
            if behind == 0 or not tokenizer.decode(ids[-behind:]).strip():
                return
            break
    ids.append(end)
    if mask:
        mask.append(mask[-1])  # a response ends with it
