"""Records of measured quality that say more than was measured, or less, are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from compressor.core.errors import VerificationError
from compressor.evaluation.chat_figures import pairs_of, replies_of, turns_of
from compressor.evaluation.chat_record import ChatItems, ChatModel, ChatProtocol, ChatRecord, items_file
from compressor.evaluation.task_record import Paired
from compressor.runs.artifact import ModelArtifact
from exporters.checks.chat import check_chat
from exporters.checks.comparison import check_comparison
from exporters.checks.perplexities import check_perplexities

END = 9
COUNTS = (3, 5, 2, 4)
Change = Callable[[dict[str, Any]], object]


def artifact_of(directory: Path, stage: str, record: dict[str, Any]) -> ModelArtifact:
    """The artifact of a stage that measured, with its record in both places."""
    (directory / "evaluation.json").write_text(json.dumps(record))
    return ModelArtifact(
        path=directory, stage=stage, fingerprint="", lineage=(stage,), num_parameters=10, details=record
    )


def chat_record(directory: Path) -> dict[str, Any]:
    """Two models and four conversations, with their items written."""
    items = {
        "teacher": ChatItems(
            replies=((1, 2, END), (3, END), (4, 5, 6, END), (1, END)),
            log_likelihood=(-0.1, -0.2, -0.15, -0.3),
            relevance=(1.0, 2.0, 1.5, 0.5),
        ),
        "student": ChatItems(
            kl=(0.1, 0.3, 0.2, 0.05),
            top1=(2 / 3, 0.8, 0.5, 1.0),
            replies=((1, 2, END), (3, 3, 3, 3), (4, 5, END), (END,)),
            log_likelihood=(-0.4, -0.9, -0.2, -1.0),
            relevance=(0.5, 0.1, 1.0, 0.0),
        ),
    }
    losses = {"teacher": (0.1, 0.2, 0.4, 0.1), "student": (0.5, 0.3, 0.9, 0.4)}
    models = {
        name: ChatModel(
            num_parameters=10,
            turns=turns_of(losses[name], COUNTS, own, information=1.0, model=name),
            replies=replies_of(own, (END,)),
        )
        for name, own in items.items()
    }
    (directory / "items").mkdir()
    for name, own in items.items():
        items_file(directory, name).write_text(json.dumps(own.to_json()))
    line = json.dumps({"prompt": "", "replies": dict.fromkeys(models, "")})
    (directory / "replies.jsonl").write_text(f"{line}\n" * len(COUNTS))
    protocol = ChatProtocol(
        split="all", template="", max_new_tokens=4, end_tokens=(END,), compute_dtype="float32"
    )
    return ChatRecord(
        protocol=protocol,
        text={"conversations": len(COUNTS)},
        conversation_tokens=COUNTS,
        models=models,
        paired=pairs_of(models, items, COUNTS, (END,)),
    ).to_json()


def pair_of(record: dict[str, Any], metric: str) -> dict[str, Any]:
    return next(pair for pair in record["paired"] if pair["metric"] == metric)


CHAT: dict[str, Change] = {
    "p-value of a loss": lambda record: pair_of(record, "mean_nll").update(p_value=0.9),
    "no test of a loss": lambda record: pair_of(record, "mean_nll").update(p_value=None),
    "p-value of lengths": lambda record: pair_of(record, "tokens").update(p_value=1e-3),
    "p-value of shares": lambda record: pair_of(record, "finished").update(p_value=None),
    "interval of a loss": lambda record: pair_of(record, "mean_nll").update(low=0.2),
    "interval of a share": lambda record: pair_of(record, "finished").update(high=-0.1),
    "shares without their test": lambda record: pair_of(record, "finished").update(
        only_first=None, only_this=None
    ),
    "more items": lambda record: pair_of(record, "finished").update(num_items=400),
    "no comparisons": lambda record: record.update(paired=[]),
    "a comparison lost": lambda record: record["paired"].pop(),
    "another model": lambda record: pair_of(record, "tokens").update(model="other"),
    "another figure": lambda record: pair_of(record, "tokens").update(metric="other"),
    "a student that was not compared": lambda record: record["models"]["student"]["turns"].update(
        kl=None, top1=None
    ),
    "more conversations": lambda record: record["text"].update(conversations=400),
}


@pytest.mark.parametrize("change", [None, *CHAT])
def test_figures_of_chat(change: str | None, tmp_path: Path) -> None:
    record = chat_record(tmp_path)
    if change is None:
        assert check_chat(tmp_path, artifact_of(tmp_path, "evaluate-chat", record))["num_replies"] == 8
        return
    CHAT[change](record)
    with pytest.raises(VerificationError):
        check_chat(tmp_path, artifact_of(tmp_path, "evaluate-chat", record))


def text_record() -> dict[str, Any]:
    """Two models on two windows of five tokens."""

    def model(first: float, second: float) -> dict[str, Any]:
        mean = (first + second) / 2
        return {
            "perplexity": math.exp(mean),
            "mean_nll": mean,
            "num_tokens": 8,
            "window": 5,
            "num_windows": 2,
            "window_nll": [first, second],
            "information": 1.0,
            "num_parameters": 10,
        }

    agreement = {"kl": 0.2, "top1": 0.5, "margin": 0.1, "window_kl": [0.1, 0.3], "window_top1": [0.25, 0.75]}
    return {
        "schema": "compress-export/evaluation/1",
        "metric": "perplexity",
        "protocol": {"window": 5, "stride": 5, "split": "all", "compute_dtype": "float32"},
        "text": {"windows": 2},
        "models": {"teacher": model(1.0, 2.0), "student": {**model(1.5, 2.5), "agreement": agreement}},
    }


def _without_windows(model: dict[str, Any]) -> None:
    model.update(window_nll=[], mean_nll=0.0, perplexity=1.0)


def _on_one_window(model: dict[str, Any]) -> None:
    mean = model["window_nll"].pop(0)
    model.update(num_windows=1, num_tokens=4, window_nll=[mean], mean_nll=mean, perplexity=math.exp(mean))


TEXT: dict[str, Change] = {
    "no windows": lambda record: _without_windows(record["models"]["teacher"]),
    "fewer windows": lambda record: _on_one_window(record["models"]["teacher"]),
    "a text of more windows": lambda record: record["text"].update(windows=200),
    "a student that was not compared": lambda record: record["models"]["student"].update(agreement=None),
}


@pytest.mark.parametrize("change", [None, *TEXT])
def test_figures_of_a_text(change: str | None, tmp_path: Path) -> None:
    record = text_record()
    if change is None:
        assert check_perplexities(tmp_path, artifact_of(tmp_path, "evaluate", record))["num_models"] == 2
        return
    TEXT[change](record)
    with pytest.raises(VerificationError):
        check_perplexities(tmp_path, artifact_of(tmp_path, "evaluate", record))


def test_a_text_that_an_earlier_version_measured_holds_no_windows(tmp_path: Path) -> None:
    record = text_record()
    for model in record["models"].values():
        for name in ("window_nll", "information", "agreement"):
            model.pop(name, None)
    check_perplexities(tmp_path, artifact_of(tmp_path, "evaluate", record))


def test_the_interval_of_scores_is_scipys() -> None:
    before, now = [1.0, 2.0, 4.0, 3.0, 7.0], [1.5, 1.0, 5.5, 3.5, 9.0]
    test = stats.ttest_rel(now, before)
    ends = test.confidence_interval(0.95)
    found = Paired(
        task="replies",
        model="student",
        metric="tokens",
        num_items=5,
        difference=0.7,
        low=float(ends.low),
        high=float(ends.high),
        p_value=float(test.pvalue),
    )
    check_comparison(found, before, now, where="")
    with pytest.raises(VerificationError, match="p_value"):
        check_comparison(found.model_copy(update={"p_value": 1.1 * test.pvalue}), before, now, where="")
