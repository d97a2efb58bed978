"""Questions of which one of several answers is right, one JSON object on each line of a file.

    {"question": "The river is", "choices": ["wet", "dry"], "answer": 0}

`answer` is the index of the right choice, from 0. A model chooses the answer whose tokens it finds most
likely after the question, as lm-eval's `acc` does: the sum of their log-likelihoods, a space between the
two, white space at the end of the question counted with the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compressor.core.errors import UsageError
from compressor.data.files import read_lines
from compressor.data.messages import CORRECT

_FORM = '{"question": "...", "choices": ["...", "..."], "answer": 0}'
_Said = Annotated[str, Field(pattern=r"\S")]


class Question(BaseModel):
    """One question, its possible answers, and the index of the right one; `where` is its place."""

    model_config = ConfigDict(strict=True, frozen=True)

    question: _Said
    choices: Annotated[tuple[_Said, ...], Field(min_length=2)]
    answer: Annotated[int, Field(ge=0)]
    where: str = ""

    @model_validator(mode="after")
    def _check(self) -> Question:
        if self.answer >= len(self.choices):
            raise ValueError(f"there is no choice {self.answer}")
        return self

    def asked(self) -> Asked:
        """The question with each answer: a space between them, or the white space at the question's end."""
        context = self.question.rstrip()
        space = self.question[len(context) :] or " "
        answers = tuple((context, f"{space}{choice}") for choice in self.choices)
        return Asked(answers=answers, right=self.answer, where=self.where)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question as a model reads it.

    Attributes:
        answers: Of each answer what is before it, and itself, with the white space in front of it.
        right: Index of the right one.
        where: Its place, for errors.
    """

    answers: tuple[tuple[str, str], ...]
    right: int
    where: str


@dataclass(frozen=True, kw_only=True)
class EncodedQuestion:
    """A question's tokens with each answer behind them.

    Attributes:
        ids: `[num_choices, tokens]`, padded at the end, which a causal model does not see before.
        spans: The first token of every answer, and the one after its last.
        answer: Index of the right one.
    """

    ids: list[list[int]]
    spans: tuple[tuple[int, int], ...]
    answer: int


def read_questions(path: Path) -> list[Question]:
    """The questions of a file.

    Raises:
        UsageError: for a file that is not there or holds none, or naming a line that is no question.
    """
    if not path.is_file():
        raise UsageError(
            "there is no such file of questions",
            where=str(path),
            hint=f"name a .jsonl file with a line for every question: {_FORM}",
        )
    lines = [(f"{path}:{number}", line) for number, line in read_lines(path) if not line.isspace()]
    if not lines:
        raise UsageError("this file holds no question", where=str(path), hint=f"write lines such as {_FORM}")
    return [_question(line, where=where) for where, line in lines]


def _question(line: str, *, where: str) -> Question:
    try:
        return Question.model_validate_json(line).model_copy(update={"where": where})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UsageError(
            "a line is not a question with at least two choices and the index of the right one",
            where=where,
            expected=_FORM,
            found=f"{field}: {first['msg']}" if field else first["msg"],
            hint=CORRECT,
        ) from error


def encode(asked: Asked, tokenizer: Any) -> EncodedQuestion:
    """A question for a model.

    Raises:
        UsageError: where the tokenizer leaves nothing of the question or of an answer.
    """
    rows, spans = [], []
    for context, answer in asked.answers:
        row, before = _ids(context + answer, tokenizer), len(_ids(context, tokenizer))
        if not 0 < before < len(row):
            raise UsageError(
                "the tokenizer leaves nothing of a question or of an answer",
                where=asked.where,
                found=answer.strip()[:80],
                hint=CORRECT,
            )
        rows.append(row)
        spans.append((before, len(row)))
    longest = max(map(len, rows))
    ids = [row + [0] * (longest - len(row)) for row in rows]
    return EncodedQuestion(ids=ids, spans=tuple(spans), answer=asked.right)


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
