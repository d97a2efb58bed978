"""The model card: where its names and its numbers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import VerificationError
from compressor.pipeline import summary
from compressor.pipeline.report import MAX_COURSE_ROWS, closed_gap, model_card, write_model_card
from compressor.pipeline.summary import (
    CutRecord,
    DistillRecord,
    PruneRecord,
    RepairCounts,
    RepairRecord,
    RunSummary,
    fitting,
    read_summary,
    repairs_of,
)
from tests.unit.pipeline.summaries import evaluation, make_summary, plan_of


def summary_of(model: str, text: str, **parts: Any) -> RunSummary:
    return make_summary(plan_of(model, text), evaluation(teacher=1.0, pruned=1.5), **parts)


@pytest.mark.parametrize(
    ("distilled", "pruned", "expected"),
    [(2.0, 3.0, 0.5), (1.0, 3.0, 1.0), (1.0, 1.0, None), (0.9, 0.8, None)],
)
def test_closed_gap(distilled: float, pruned: float, expected: float | None) -> None:
    assert closed_gap(evaluation(teacher=1.0, pruned=pruned, distilled=distilled)) == expected
    assert closed_gap(evaluation(teacher=1.0, pruned=3.0)) is None


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("llama3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("someone/some-model", "someone/some-model"),
        ("nemotron4-15b", "nemotron4-15b"),
    ],
)
def test_the_card_names_what_others_can_find(tmp_path: Path, model: str, name: str) -> None:
    write_model_card(tmp_path, summary_of(model, "org/texts:english"))

    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"\nbase_model: {name}\n" in card
    assert f"`{name}`" in card
    assert "- training text: org/texts:english\n" in card
    assert "- evaluation text: held-out part of org/texts:english\n" in card


def test_the_card_leaves_out_where_local_files_are(tmp_path: Path) -> None:
    model, text = tmp_path / "folder" / "my-model", tmp_path / "folder" / "wiki.txt"
    model.mkdir(parents=True)
    write_model_card(tmp_path, summary_of(str(model), str(text)))

    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "\nbase_model: my-model\n" in card
    assert "- evaluation text: held-out part of wiki.txt\n" in card
    assert "folder" not in card


def test_the_card_says_which_losses_and_how_the_domains_weights_moved(tmp_path: Path) -> None:
    updates = [{"step": step, "weights": [step / 100, 1 - step / 100]} for step in range(1, 31)]
    dynamic = {"domains": ["web", "code"], "updates": updates}
    reported = {"tokens": 99, "loss": "forward KL", "loss_rule": "a rule", "dynamic_batches": dynamic}
    distill = DistillRecord.model_validate(reported)
    write_model_card(tmp_path, summary_of("someone/some-model", "org/text", distill=distill))

    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- loss: forward KL\n- a rule\n" in card
    course = card[card.index("| from step | web | code |") :].splitlines()
    assert "| 30 | 0.300 | 0.700 |" in course
    assert 2 <= sum(line.startswith("| ") for line in course) <= 1 + MAX_COURSE_ROWS


def test_the_card_says_what_removing_measured_layers_cost(tmp_path: Path) -> None:
    depth = {
        "importance": "task",
        "whole": {"loss": 3.0, "accuracy": 0.75},
        "without": {"loss": 3.51234, "accuracy": 0.5},
    }
    prune = PruneRecord.model_validate({"removed_layers": [4, 5], "depth": depth, "importance": "random"})
    write_model_card(tmp_path, summary_of("someone/some-model", "org/text", prune=prune))

    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    expected = "- layers 4, 5 removed by task: loss 3.0000 to 3.5123, accuracy 0.7500 to 0.5000, before"
    assert expected in card
    others = PruneRecord.model_validate({"removed_layers": [4, 5]})
    write_model_card(tmp_path, summary_of("someone/some-model", "org/text", prune=others))
    assert "removed by" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_card_counts_the_layers_that_each_repair_changed(tmp_path: Path) -> None:
    write_model_card(tmp_path, summary_of("someone/some-model", "org/text"))
    assert "fitted again" not in (tmp_path / "README.md").read_text(encoding="utf-8")

    def counted(accepted: int, left: int) -> RepairRecord:
        return RepairRecord.model_validate({"num_accepted": accepted, "num_left": left, "outlier_tokens": 3})

    parts = {
        "reconstruct": counted(20, 1),
        "reconstruct_sparse": counted(0, 21),
        "reconstruct_fp8": counted(17, 4),
    }
    write_model_card(tmp_path, summary_of("someone/some-model", "org/text", **parts))
    lines = (tmp_path / "README.md").read_text(encoding="utf-8").splitlines()
    found = [line.partition(" left as they were")[0] for line in lines if "fitted again" in line]
    assert found == [
        "- `stages/reconstruct`: 20 linear layers fitted again, 1",
        "- `stages/reconstruct-sparse`: 0 linear layers fitted again, 21",
        "- `stages/reconstruct-fp8`: 17 linear layers fitted again, 4",
    ]


def test_repairs_between_several_cuts_come_first() -> None:
    def cut(name: str, accepted: int | None) -> CutRecord:
        repair = None if accepted is None else RepairCounts(num_accepted=accepted, num_left=9)
        facts = {"removed_layers": (), "layer_importance": (), "tokens": 1, "perplexity": 2.0}
        return CutRecord.model_validate({"name": name, "repair": repair, **facts})

    summary = summary_of(
        "someone/some-model",
        "org/text",
        cuts=(cut("cut-1", 5), cut("cut-2", None), cut("cut-3", 7)),
        reconstruct=RepairRecord(num_accepted=7, num_left=9),
    )
    found = {place: counts.num_accepted for place, counts in repairs_of(summary).items()}
    assert list(found.items()) == [("stages/cut-1-reconstruct", 5), ("stages/reconstruct", 7)]


def test_records_that_do_not_fit_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation of no student, as an editor leaves it that also makes the sums again."""
    odd = make_summary(plan_of("llama3.1-8b", "org/texts"), evaluation(teacher=1.0))
    with pytest.raises(IndexError):
        model_card(tmp_path, odd)
    with pytest.raises(VerificationError, match="do not fit together"), fitting(tmp_path):
        model_card(tmp_path, odd)

    def lacks_the_teacher(*_: object, **__: object) -> RunSummary:
        raise KeyError("teacher")

    for name in ("load_recipe", "read_plan", "read_manifest"):
        monkeypatch.setattr(summary, name, lambda *_: None)
    monkeypatch.setattr("exporters.checks.run.demanded", lambda _: [])
    monkeypatch.setattr(summary, "summary_of", lacks_the_teacher)
    with pytest.raises(VerificationError, match="KeyError: 'teacher'"):
        read_summary(tmp_path)
