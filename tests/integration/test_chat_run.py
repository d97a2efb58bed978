"""Chat quality in a run: the part that was not trained on, gates, card, page, and what verify says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from tests.chat_models import CHATS, save_chat_model, write_chats
from tests.integration.command import command_here, succeed_here, write_recipe
from tests.records import record_again
from tests.tiny_models import make_model

NUM_CHATS, HELD_OUT = 60, 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Any:
    """A run that is trained on most of the conversations, with FP8: its directory and its summary."""
    root = tmp_path_factory.mktemp("chat-run")
    chats = write_chats(root / "chats.jsonl", CHATS * (NUM_CHATS // len(CHATS)))
    recipe = write_recipe(
        root / "recipe.yaml",
        *(save_chat_model(root / "teacher", make_model()), chats),
        calibration={"data": str(tiny_text)},
        distill={"tokens": 256},
        quantize={"fp8": True},
        evaluate={"data": str(tiny_text), "chat_data": str(chats), "chat_size": 20, "chat_max_tokens": 8},
        export={"formats": ["huggingface"]},
        gates={"chat_perplexity_ratio": 1e6, "chat_finished": 0},
        preflight="on",
    )
    return root / "out", succeed_here("run", "--config", recipe, "-o", root / "out")


def test_only_conversations_that_were_not_trained_on_are_read(finished: Any) -> None:
    out, summary = finished
    chat = summary["chat"]
    assert list(chat["models"]) == ["teacher", "distilled", "quantized"]
    assert chat["protocol"]["split"] == "held_out"
    assert chat["text"]["conversations"] == HELD_OUT
    shown = (out / "stages" / "chat" / "replies.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(shown) == HELD_OUT
    assert "stages/chat" in summary["preflight"]["stages"]
    last = [chat[-1] for chat in CHATS][-1]
    assert last[1] not in json.loads(shown[-1])["prompt"]


def test_the_card_the_page_and_the_end_of_the_run_show_it(finished: Any) -> None:
    out, summary = finished
    turns = summary["chat"]["models"]["distilled"]["turns"]
    shown = f"{turns['perplexity']:.3f}"
    for name in ("README.md", "report.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert "Chat (6 held-out conversations" in text, name
        assert shown in text, name
    done = command_here("run", "--config", out / "recipe.yaml", "-o", out)
    before_and_after = done.stdout[done.stdout.index("Before and after") :]
    assert "perplexity of the assistant's turns" in before_and_after
    assert "finished replies" in before_and_after
    assert shown in before_and_after


def test_gates_judge_it(finished: Any) -> None:
    out, summary = finished
    rows = {(row["gate"], row["subject"]): row for row in summary["gates"]["rows"]}
    models = summary["chat"]["models"]
    for subject, name in (("student", "distilled"), ("student FP8", "quantized")):
        ratio = models[name]["turns"]["perplexity"] / models["teacher"]["turns"]["perplexity"]
        row = rows["chat_perplexity_ratio", subject]
        assert row["verdict"] == "PASS"
        assert row["value"] == pytest.approx(ratio, rel=1e-9)
        assert row["low"] < ratio < row["high"]
        row, share = rows["chat_finished", subject], models[name]["replies"]["finished"]
        ends = stats.binomtest(round(6 * share), 6).proportion_ci(method="wilson")
        assert (row["value"], row["low"], row["high"]) == pytest.approx((share, ends.low, ends.high))
    assert command_here("gate", out, "--chat-perplexity-ratio", "0.001").returncode == 6
    assert command_here("gate", out, "--chat-finished", "1").returncode == 6


def test_verify_counts_again(finished: Any) -> None:
    out, _ = finished
    succeed_here("verify", out)
    chat = out / "stages" / "chat"
    file = chat / "items" / "distilled.json"
    genuine, record = file.read_bytes(), (chat / "artifact.json").read_bytes()
    items = json.loads(genuine)
    items["replies"][0] = items["replies"][0][:-1]
    file.write_text(json.dumps(items), encoding="utf-8")
    record_again(chat)
    done = command_here("verify", out)
    assert done.returncode == 8
    assert "distilled, " in done.stderr
    file.write_bytes(genuine)
    (chat / "artifact.json").write_bytes(record)
    succeed_here("verify", out)


def test_a_run_begins_by_refusing_what_has_no_chat(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        evaluate={"chat_data": str(tiny_text)},
        preflight="off",
    )
    done = command_here("run", "--config", recipe, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "this row is none" in done.stderr
    assert not (tmp_path / "out" / "stages" / "prune").exists()
