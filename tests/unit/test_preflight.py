"""What a run is measured on, and what its texts are refused for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.console import Console
from compressor.data.sources import source_fingerprint
from compressor.errors import UsageError
from compressor.preflight import evaluation_config, require_texts, require_trainable, require_windows
from compressor.recipe import Recipe, load_recipe


def test_a_text_that_the_model_was_made_with_is_measured_on_its_held_out_part(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.txt" for name in ("train", "evaluate", "prompts")}
    for name, file in files.items():
        file.write_text(name)
    recipe = load_recipe(
        None,
        {
            "model": "smollm2-135m",
            "calibration.data": str(files["train"]),
            "distill.data": str(files["train"]),
            "evaluate.data": str(files["evaluate"]),
        },
    )
    assert evaluation_config(recipe).split == "all"
    assert evaluation_config(recipe, (source_fingerprint(str(files["evaluate"])),)).split == "held_out"
    files["evaluate"].write_text("train")
    assert evaluation_config(recipe).split == "held_out"


CHAT = [{"role": "user", "content": "one river?"}, {"role": "assistant", "content": "a stone"}]


def rows_of(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def recipe_of(train: Path, **fields: object) -> Recipe:
    text = {"distill.data": str(train), "calibration.data": str(train), "distill.tokens": 64}
    short = {"distill.context_length": 8, "calibration.seq_len": 8, "evaluate.window": 8}
    return load_recipe(None, {"model": "smollm2-135m", **text, **short, **fields})


@pytest.mark.parametrize(
    "bad", ["not JSON", '{"body": "x"}', '{"messages": [{"role": "user"}]}', '{"text": 3}']
)
@pytest.mark.parametrize("role", ["distill.data", "calibration.data", "evaluate.data"])
def test_a_broken_row_of_any_text_is_named_before_any_work(tmp_path: Path, role: str, bad: str) -> None:
    fine = [{"text": f"row {number}"} for number in range(30)]
    good, broken = rows_of(tmp_path / "good.jsonl", *fine), rows_of(tmp_path / "broken.jsonl", *fine, bad)

    require_texts(recipe_of(good), Console(quiet=True))
    with pytest.raises(UsageError) as caught:
        require_texts(recipe_of(good, **{role: str(broken)}), Console(quiet=True))
    assert caught.value.where == f"{broken}:31"


def test_what_is_skipped_or_mended_is_counted(tmp_path: Path) -> None:
    rows = ['{"text": "half \\ud83d of one"}', "", {"text": ""}, *({"text": f"row {n}"} for n in range(9))]
    path = rows_of(tmp_path / "x.jsonl", *rows)
    console = Console(quiet=True)
    require_texts(recipe_of(path), console)

    assert console.warnings == [
        f"2 empty rows of {path} are skipped",
        f"1 broken surrogates in {path} are read as U+FFFD",
    ]


def test_a_plain_row_where_only_responses_count(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "x.jsonl", *[{"messages": CHAT}] * 5, {"text": "plain"}, {"messages": CHAT})
    require_texts(recipe_of(path), Console(quiet=True))
    with pytest.raises(UsageError, match="no responses") as caught:
        require_texts(recipe_of(path, **{"distill.loss_on": "responses"}), Console(quiet=True))
    assert caught.value.where == f"{path}:6"


@pytest.mark.parametrize(
    "fields", [{"distill.generate.tokens": 100}, {"distill.dynamic_batches.variant": "paper"}]
)
def test_what_needs_a_loss_on_all_tokens(tmp_path: Path, fields: dict[str, object]) -> None:
    path = rows_of(tmp_path / "x.jsonl", *[{"messages": CHAT}] * 5)
    require_trainable(recipe_of(path, **fields))
    with pytest.raises(UsageError, match="loss on all tokens"):
        require_trainable(recipe_of(path, **fields, **{"distill.loss_on": "responses"}))


@pytest.mark.parametrize("position", [0, 17, 29])
def test_a_conversation_that_the_template_leaves_out_is_found_in_either_part(
    tmp_path: Path, tiny_tokenizer: Any, position: int
) -> None:
    rows: list[object] = [{"messages": CHAT}] * 29
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    bad = {"messages": [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}, CHAT[1]]}
    path = rows_of(tmp_path / "x.jsonl", *rows[:position], bad, *rows[position:])
    recipe = recipe_of(path, **{"distill.tokens": 100_000})

    with pytest.raises(UsageError, match="leaves out") as caught:
        require_windows(recipe, tiny_tokenizer, ())
    assert caught.value.where == f"{path}:{position + 1}"
    require_windows(recipe_of(rows_of(tmp_path / "y.jsonl", *rows)), tiny_tokenizer, ())
