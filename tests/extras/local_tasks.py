"""Folders of multiple-choice tasks made of local text: which word, or which words, come next.

Their definitions are lm-eval's YAML, their items JSON lines beside them: no network, no code.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

NUM_ITEMS, NUM_CHOICES = 24, 4
# Of a paragraph, in words: what is read, and what is to be chosen.
READ, CHOSEN = 20, 8
# Of a text of which the last tenth is held out.
_HELD_OUT = 0.95
_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    train: {train}
    test: {test}
output_type: multiple_choice
training_split: train
fewshot_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
fewshot_delimiter: "\\n"
fewshot_config:
  sampler: first_n
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def write_tasks(directory: Path, text: Path, names: tuple[str, ...] = ("next_word", "other_word")) -> Path:
    """Tasks of these names, and a group `words` of them; returns `directory`."""
    directory.mkdir()
    words = text.read_text().split()
    for seed, name in enumerate(names):
        generator = random.Random(seed)  # noqa: S311 - not for secrets
        splits = {split: [_item(words, generator) for _ in range(NUM_ITEMS)] for split in ("train", "test")}
        _write_task(directory, name, splits)
    listed = "".join(f"  - {name}\n" for name in names)
    (directory / "words.yaml").write_text(f"group: words\ntask:\n{listed}")
    return directory


def write_continuations(directory: Path, text: Path, *, num_items: int, name: str = "continuation") -> Path:
    """A task: how does a paragraph go on? The wrong choices are other paragraphs'; returns `directory`.

    Its paragraphs are of the end of the text, which trainings and calibrations hold out.
    """
    whole = text.read_text(encoding="utf-8")
    held_out = whole[int(_HELD_OUT * len(whole)) :]
    found = [line.split()[: READ + CHOSEN] for line in held_out.splitlines() if not line.startswith("<")]
    paragraphs = [words for words in found if len(words) == READ + CHOSEN]
    generator = random.Random(0)  # noqa: S311 - not for secrets
    generator.shuffle(paragraphs)
    endings = [f" {' '.join(words[READ:])}" for words in paragraphs]
    rows = []
    for number, words in enumerate(paragraphs[: 2 * num_items]):
        others = generator.sample([*endings[:number], *endings[number + 1 :]], NUM_CHOICES - 1)
        answer = generator.randrange(NUM_CHOICES)
        choices = [*others[:answer], endings[number], *others[answer:]]
        rows.append({"question": " ".join(words[:READ]), "choices": choices, "answer": answer})
    directory.mkdir()
    _write_task(directory, name, {"train": rows[num_items:], "test": rows[:num_items]})
    return directory


def _write_task(directory: Path, name: str, splits: Mapping[str, list[dict[str, object]]]) -> None:
    files = {split: directory / f"{name}-{split}.jsonl" for split in splits}
    for split, rows in splits.items():
        files[split].write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (directory / f"{name}.yaml").write_text(_TASK.format(name=name, **files), encoding="utf-8")


def _item(words: list[str], generator: random.Random) -> dict[str, object]:
    start = generator.randrange(len(words) - 10)
    answer = generator.randrange(NUM_CHOICES)
    choices = [f" {generator.choice(words)}" for _ in range(NUM_CHOICES)]
    choices[answer] = f" {words[start + 8]}"
    return {"question": " ".join(words[start : start + 8]), "choices": choices, "answer": answer}
