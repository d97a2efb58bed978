"""What a run is measured on, and what its texts are refused for."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import NemotronConfig

from compressor.core.console import Console
from compressor.core.errors import UnsupportedError, UsageError
from compressor.data.sources import Documents, source_fingerprint
from compressor.models.dims import dims_of_config
from compressor.pipeline.consistency import require_consistent
from compressor.pipeline.preflight import (
    evaluation_config,
    require_expressible,
    require_texts,
    require_trainable,
    require_windows,
)
from compressor.recipe.recipe import Recipe, load_recipe


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


def test_a_search_trains_on_the_text_that_its_shapes_are_measured_on(tmp_path: Path) -> None:
    """Also of a run whose student is not trained: its shape is chosen on the part that no trial read."""
    train, other = tmp_path / "train.txt", tmp_path / "other.txt"
    train.write_text("train")
    other.write_text("other")
    untrained = {"calibration.data": str(other), "distill.tokens": 0, "target": "60%"}
    assert evaluation_config(recipe_of(train, **untrained)).split == "all"
    assert evaluation_config(recipe_of(train, **untrained, **{"search.candidates": 2})).split == "held_out"


@pytest.mark.parametrize(
    "trained", [{"search.candidates": 2}, {"sparsify.pattern": "2:4", "sparsify.tokens": 64}]
)
def test_a_text_too_short_for_any_training_is_refused_before_any_work(
    tmp_path: Path, tiny_tokenizer: Any, trained: dict[str, object]
) -> None:
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text("many words of a river " * 200)
    short.write_text("one\n\ntwo\n\nthree")
    texts = {"calibration.data": str(long), "evaluate.data": str(long), "distill.tokens": 0}
    untrained = recipe_of(short, **texts, **{"distill.context_length": 64})
    require_windows(untrained, tiny_tokenizer, ())
    with pytest.raises(UsageError, match="shorter than one sequence") as caught:
        require_windows(
            recipe_of(short, **texts, **{"distill.context_length": 64}, **trained), tiny_tokenizer, ()
        )
    assert str(short) in str(caught.value.where)


RESPONSES = {"distill.loss_on": "responses"}
CHAT = [{"role": "user", "content": "one river?"}, {"role": "assistant", "content": "a stone"}]


def rows_of(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def recipe_of(train: Path, **fields: object) -> Recipe:
    text = {"distill.data": str(train), "calibration.data": str(train), "distill.tokens": 64}
    short = {"distill.context_length": 8, "calibration.seq_len": 8, "evaluate.seq_len": 8}
    return load_recipe(None, {"model": "smollm2-135m", **text, **short, **fields})


def refused(path: Path, message: str, where: str) -> UsageError:
    """A text that is fine unless the loss is on responses alone."""
    require_texts(recipe_of(path), Console())
    with pytest.raises(UsageError, match=message) as caught:
        require_texts(recipe_of(path, **RESPONSES), Console())
    assert caught.value.where == where
    return caught.value


@pytest.mark.parametrize(
    "bad", ["not JSON", '{"body": "x"}', '{"messages": [{"role": "user"}]}', '{"text": 3}']
)
@pytest.mark.parametrize("role", ["distill.data", "calibration.data", "evaluate.data"])
def test_a_broken_row_of_any_text_is_named_before_any_work(tmp_path: Path, role: str, bad: str) -> None:
    fine = [{"text": f"row {number}"} for number in range(30)]
    good, broken = rows_of(tmp_path / "good.jsonl", *fine), rows_of(tmp_path / "broken.jsonl", *fine, bad)

    require_texts(recipe_of(good), Console())
    with pytest.raises(UsageError) as caught:
        require_texts(recipe_of(good, **{role: str(broken)}), Console())
    assert caught.value.where == f"{broken}:31"


def test_what_is_skipped_or_mended_is_counted(tmp_path: Path) -> None:
    rows = ['{"text": "half \\ud83d of one"}', "", {"text": ""}, *({"text": f"row {n}"} for n in range(9))]
    path = rows_of(tmp_path / "x.jsonl", *rows)
    console = Console()
    require_texts(recipe_of(path), console)

    assert console.warnings == [
        f"2 empty rows of {path} are skipped",
        f"1 broken surrogates in {path} are read as U+FFFD",
    ]


def test_a_plain_row_where_only_responses_count(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "x.jsonl", *[{"messages": CHAT}] * 5, {"text": "plain"}, {"messages": CHAT})
    refused(path, "no responses", f"{path}:6")


QUESTION = {"messages": CHAT[:1]}
INSTRUCTION = {"instruction": "do", "input": "this", "output": "done"}
UNANSWERED: dict[str, list[dict[str, Any]]] = {
    "questions alone": [QUESTION] * 20,
    "completions that are empty": [{"prompt": "one river", "completion": ""}] * 20,
    "answers that are empty": [{"messages": [CHAT[0], {"role": "assistant", "content": ""}]}] * 20,
    "answers in the prompt": [{"prompt": CHAT, "completion": CHAT[:1]}] * 20,
    "answers that do not count": [{"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}] * 20,
    "answers not to train on": [{"messages": [CHAT[0], {**CHAT[1], "train": False}]}] * 20,
    "answers held out": [QUESTION] * 18 + [{"messages": CHAT}] * 2,
    "an empty output beside its text": [{"text": "do this", "instruction": "do this", "output": ""}] * 20,
}


@pytest.mark.parametrize("rows", UNANSWERED.values(), ids=UNANSWERED)
def test_a_text_without_any_response_is_refused_before_any_work(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    path = rows_of(tmp_path / "x.jsonl", *rows)
    assert "18 rows" in str(refused(path, "no response", str(path)).found)
    answered = rows_of(tmp_path / "y.jsonl", *rows[:10], {"messages": CHAT}, *rows[10:])
    require_texts(recipe_of(answered, **RESPONSES), Console())


def test_a_template_that_shows_no_response_is_refused_before_any_stage(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """Its marks of what was generated stand beside the answers, not around them."""
    path = rows_of(tmp_path / "x.jsonl", *[{"messages": CHAT}] * 20)
    recipe = recipe_of(path, **RESPONSES)

    marking = copy.deepcopy(tiny_tokenizer)
    marking.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
        "{% generation %}{% endgeneration %}{% endfor %}"
    )
    require_texts(recipe, Console())
    with pytest.raises(UsageError, match="no response") as caught:
        require_windows(recipe, marking, ())
    assert caught.value.where == str(path)
    require_windows(recipe, tiny_tokenizer, ())


@pytest.mark.parametrize("weight", [0.5, 2, -1, "0"])
def test_a_response_that_counts_in_part_is_refused(tmp_path: Path, weight: object) -> None:
    rows: list[object] = [{"messages": CHAT}] * 6
    path = rows_of(tmp_path / "x.jsonl", *rows, {"messages": [CHAT[0], {**CHAT[1], "weight": weight}]})
    refused(path, "'weight' is neither", f"{path}:7")


@pytest.mark.parametrize("structured", [INSTRUCTION, {"messages": CHAT}, {"prompt": "p", "completion": "c"}])
def test_a_text_beside_the_fields_it_was_made_of_is_read_for_its_responses(
    tmp_path: Path, structured: dict[str, object]
) -> None:
    path = rows_of(tmp_path / "x.jsonl", *[{"text": "rendered", **structured}] * 20)

    require_texts(recipe_of(path, **RESPONSES), Console())
    assert set(Documents(str(path), "all")) == {"rendered"}
    assert "rendered" not in Documents(str(path), "all", answers=True)


def test_what_is_not_read_of_a_directory_is_said(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl", *(f"validation-{part}.jsonl" for part in range(7))):
        rows_of(tmp_path / name, *({"text": f"row {number}"} for number in range(9)))
    (tmp_path / "README.md").write_text("what these rows are")
    console = Console()
    require_texts(recipe_of(tmp_path), console)

    names = ", ".join(["test.jsonl", *(f"validation-{part}.jsonl" for part in range(4))])
    assert console.warnings == [
        f"not read as text of {tmp_path}: README.md",
        f"only the train split of {tmp_path} is read, not {names} and 3 more",
    ]


@pytest.mark.parametrize(
    "fields", [{"distill.generate.tokens": 100}, {"distill.dynamic_batches.variant": "clipped"}]
)
def test_what_needs_a_loss_on_all_tokens(tmp_path: Path, fields: dict[str, object]) -> None:
    path = rows_of(tmp_path / "x.jsonl", *[{"messages": CHAT}] * 5)
    require_trainable(recipe_of(path, **fields))
    with pytest.raises(UsageError, match="loss on all tokens"):
        require_trainable(recipe_of(path, **fields, **RESPONSES))


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


def test_a_question_that_the_tokenizer_leaves_nothing_of_is_refused(
    tiny_text: Path, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": "the river", "choices": [answer, "dry"], "answer": 0} for answer in ("wet", "old")]
    task = rows_of(tmp_path / "task.jsonl", *rows)
    by_task = {"prune.depth_importance": "task", "prune.depth_task": str(task)}
    recipe = recipe_of(tiny_text, **by_task)
    require_windows(recipe, tiny_tokenizer, ())
    ids = "compressor.data.multiple_choice._ids"
    monkeypatch.setattr(ids, lambda text, _tokenizer: [1] if "old" in text else [1] * len(text))
    with pytest.raises(UsageError, match="leaves nothing of a question") as caught:
        require_windows(recipe, tiny_tokenizer, ())
    assert caught.value.where == f"{task}:2"


def test_stored_logits_at_another_temperature_are_refused_with_the_recipe(tiny_text: Path) -> None:
    stored = {"distill.teacher_logits": "store", "distill.temperature": 2.0}
    with pytest.raises(UsageError, match="at temperature 1 only"):
        require_consistent(recipe_of(tiny_text, **stored))
    require_consistent(recipe_of(tiny_text, **stored, **{"distill.top_k": 64}))


def test_default_formats_that_a_family_cannot_take_name_those_that_can() -> None:
    """The advice is followed to its end: with it the same model is taken."""
    config = NemotronConfig(hidden_size=64, intermediate_size=128, num_attention_heads=2).to_dict()
    student = dims_of_config(config)
    base = {"model": "smollm2-135m", "target": "60%"}
    with pytest.raises(UnsupportedError, match="cannot be exported to ONNX") as caught:
        require_expressible(load_recipe(None, base), config, student)
    advice, formats = str(caught.value.hint).rsplit(" ", 1)
    assert advice.endswith("--formats")
    assert "onnx" not in formats
    named = load_recipe(None, {**base, "export.formats": formats})
    require_expressible(named, config, student)
    with pytest.raises(UnsupportedError, match="cannot be exported to ONNX") as caught:
        require_expressible(
            load_recipe(None, {**base, "export.formats": "huggingface,onnx"}), config, student
        )
    assert "leave onnx out" in str(caught.value.hint)
