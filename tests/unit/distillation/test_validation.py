"""Held-out losses on the way of a distillation: measured, shown and recorded, and without influence on it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.core.errors import VerificationError
from compressor.distillation import validation
from compressor.distillation.distill_stage import GENERATED
from compressor.distillation.generate_stage import TEXT_FILE
from compressor.distillation.validation import doubled, num_sequences
from compressor.forecast.record import TrainingForecast, ValidationCurve
from compressor.forecast.schedule import RateSchedule
from compressor.planning.schedule import training_schedule
from compressor.recipe.training import Distill
from compressor.training.validation import Validation, validation_steps
from tests.good_teacher import teach_well
from tests.short_training import make_config
from tests.tiny_models import make_tokenizer
from tests.unit.distillation.test_stage import Setup, make_context

STEPS, BATCH, LENGTH = 40, 2, 32
SCHEDULE = RateSchedule(max_steps=STEPS, warmup_steps=4, learning_rate=5e-3, min_learning_rate_ratio=0.1)
SETTINGS = {"tokens": STEPS * BATCH * LENGTH, "learning_rate": 5e-3, "save_steps": 10}


@pytest.fixture
def setup(tmp_path: Path, tiny_text: Path) -> Setup:
    return Setup(tmp_path, tiny_text)


def loss_of(model: Path, text: Path, num_windows: int) -> float:
    """A checkpoint's mean loss on the first windows of the text's last tenth, by plain transformers."""
    content = text.read_text()
    tail = content[content.index("\n", int(len(content) * 0.9)) + 1 :]
    ids = make_tokenizer()(tail, add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[: num_windows * LENGTH]).view(num_windows, LENGTH)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        return float(loaded(input_ids=windows, labels=windows).loss)


def test_losses_are_those_of_plain_transformers_on_the_texts_tail(setup: Setup) -> None:
    details = setup.distill(**SETTINGS)
    curve = TrainingForecast.model_validate(details["forecast"]).validation
    assert curve is not None
    assert curve.steps == (0, *validation_steps(SCHEDULE))
    assert curve.num_tokens == 16 * LENGTH
    expected = [loss_of(path, setup.text, 16) for path in (setup.student.path, setup.out, setup.teacher.path)]
    assert [curve.loss[0], curve.loss[-1], curve.teacher_loss] == pytest.approx(expected, rel=1e-5)
    assert curve.loss[-1] < curve.loss[0]


def test_the_forecast_is_shown_from_a_quarter_on_and_recorded_with_its_outcome(
    setup: Setup, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_well(monkeypatch)
    with caplog.at_level(logging.INFO, logger="compressor"):
        found = TrainingForecast.model_validate(setup.distill(**SETTINGS)["forecast"])
    lines = [line for line in caplog.messages if "held-out loss" in line]
    assert len(lines) == 1 + len(validation_steps(SCHEDULE))
    assert ["forecast" in line for line in lines] == [
        STEPS / 4 <= step < STEPS for step in (0, *validation_steps(SCHEDULE))
    ]
    assert found.at_quarter is not None
    assert found.validation is not None
    end = found.at_quarter.end
    assert found.at_quarter.made_at == STEPS / 4
    assert f"forecast: {end.loss:.3f} ({end.low:.3f} to {end.high:.3f}) at the end" in "\n".join(lines)
    assert found.contained is (end.low <= found.validation.loss[-1] <= end.high)
    assert found.at_end is not None
    assert found.at_end.twice.step == 2 * STEPS


@pytest.mark.parametrize(
    "settings",
    [
        {"correction": {"mode": "alongside"}, "hidden_state_loss": "off"},
        {"kl_weight": 0},
    ],
)
def test_without_a_teacher_that_stays_as_it_is_the_loss_is_measured_and_not_forecast(
    setup: Setup, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One that is trained as well will not have the loss that it began with."""
    with caplog.at_level(logging.INFO, logger="compressor"):
        found = TrainingForecast.model_validate(setup.distill(**SETTINGS, **settings)["forecast"])
    assert found.validation is not None
    assert found.validation.steps[-1] == STEPS
    assert found.validation.teacher_loss is None
    assert found.at_quarter is None
    assert "the teacher's loss" in (found.reason or "")
    assert not any("forecast" in line for line in caplog.messages)


def test_measuring_leaves_the_training_as_it_would_be_without(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.distill(name="measured", **SETTINGS)
    monkeypatch.setattr(validation, "MIN_STEPS", STEPS + 1)
    details = setup.distill(name="plain", **SETTINGS)
    assert details["forecast"]["validation"] is None
    files = [setup.root / name / "model.safetensors" for name in ("measured", "plain")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_training_that_was_killed_goes_on_with_its_curve(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = setup.distill(name="whole", **SETTINGS)["forecast"]

    def stop(curve: Any) -> None:
        if curve.steps[-1] > STEPS / 2:
            raise KeyboardInterrupt

    measure = Validation._measure

    def measure_and_stop(self: Validation, step: int) -> None:
        measure(self, step)
        stop(self.curve)

    monkeypatch.setattr(Validation, "_measure", measure_and_stop)
    with pytest.raises(KeyboardInterrupt):
        setup.distill(name="killed", **SETTINGS)
    monkeypatch.setattr(Validation, "_measure", measure)
    assert setup.distill(name="killed", **SETTINGS)["forecast"] == whole


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tokens": 23 * BATCH * LENGTH}, "fewer than 24 steps"),
        ({"context_length": 8192, "tokens": 24 * 8192, "batch_size": 1}, "shorter than one sequence"),
    ],
)
def test_where_nothing_can_be_measured_the_record_says_why(
    setup: Setup, settings: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained in name only: the reason is known before the first step."""
    found: list[validation.Watched] = []

    def remember(*arguments: Any) -> validation.Watched:
        found.append(validation.watch_training(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.distillation.distill_stage.watch_training", remember)
    with pytest.raises(KeyboardInterrupt):
        setup.distill(**settings)
    assert found[0].extensions == []
    assert reason in json.dumps(found[0].report())


def test_text_that_the_run_sampled_is_trained_on_and_not_counted(
    setup: Setup, make_text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = setup.root / "sampled"
    sampled.mkdir()
    rows = [json.dumps({"text": line}) for line in make_text(num_words=4000, seed=9).read_text().splitlines()]
    (sampled / TEXT_FILE).write_text("\n".join(rows) + "\n")
    context = make_context(setup.teacher)
    context.others = {GENERATED: replace(setup.teacher, path=sampled, files={})}
    found: list[validation.Watched] = []

    def measure(training: Any, module: Any) -> validation.Watched:
        assert [domain.name for domain in training.domains] == ["text", GENERATED]
        found.append(validation.watch_training(training, module))
        found[0].extensions[0].before_training()
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.distillation.distill_stage.watch_training", measure)
    with pytest.raises(KeyboardInterrupt):
        setup.distill(context, **SETTINGS)
    curve = found[0].extensions[0].curve
    assert curve.num_tokens == 16 * LENGTH
    assert curve.loss == pytest.approx((loss_of(setup.student.path, setup.text, 16),), rel=1e-5)


def test_a_loss_on_responses_is_not_compared_with_one_on_all_tokens(setup: Setup) -> None:
    rows = [
        json.dumps({"prompt": "ask " * 8, "completion": f"answer {number} " * 8}) for number in range(400)
    ]
    text = setup.root / "chat.jsonl"
    text.write_text("\n".join(rows) + "\n")
    details = setup.distill(data=str(text), loss_on="responses", tokens=24 * BATCH * LENGTH)
    assert "responses" in details["forecast"]["reason"]


@pytest.mark.parametrize(
    ("max_steps", "batch_size", "context_length", "num_domains", "expected"),
    [
        (40, 2, 32, 1, 16),
        (120, 1, 512, 1, 1),
        (2000, 8, 512, 1, 64),
        (400, 4, 4096, 1, 10),
        (400, 4, 4096, 7, 1),
        (2000, 8, 512, 4, 25),
    ],
)
def test_measuring_costs_a_twentieth_of_the_training(
    max_steps: int, batch_size: int, context_length: int, num_domains: int, expected: int
) -> None:
    """In forward passes: three for each trained sequence, one for each that is measured, 24 times."""
    plan = make_config(max_steps=max_steps, batch_size=batch_size)
    size = num_sequences(plan, context_length, num_domains)
    assert size == expected
    is_affordable = 24 * size * num_domains <= 0.05 * 3 * max_steps * batch_size
    assert is_affordable or size * context_length < 512 + context_length


@pytest.mark.parametrize(
    ("max_steps", "warmup_steps", "expected"),
    [(400, 40, (3, 9, 12)), (400, 0, (0, 10, 12)), (400, 100, (3, 0, 12)), (400, 200, (3, 0, 12))],
)
def test_most_losses_before_the_quarter_are_measured_after_the_warm_up(
    max_steps: int, warmup_steps: int, expected: tuple[int, ...]
) -> None:
    """How many steps lie in the warm-up, up to the quarter, and after it; quarter and end are measured."""
    steps = validation_steps(replace(SCHEDULE, max_steps=max_steps, warmup_steps=warmup_steps))
    warm = min(warmup_steps, max_steps // 4)
    found = (
        sum(step <= warm for step in steps),
        sum(warm < step <= max_steps / 4 for step in steps),
        sum(step > max_steps / 4 for step in steps),
    )
    assert found == expected
    assert {max_steps // 4, max_steps} <= set(steps)


@pytest.mark.parametrize("max_steps", range(24, 80, 5))
def test_the_quarter_is_measured_at_the_nearest_step(max_steps: int) -> None:
    schedule = replace(SCHEDULE, max_steps=max_steps, warmup_steps=max_steps // 10)
    steps = validation_steps(schedule)
    assert steps[-1] == max_steps
    assert any(abs(step - max_steps / 4) <= 0.5 for step in steps)
    curve = ValidationCurve(num_tokens=1, steps=(0, *steps), loss=tuple(range(len(steps) + 1)))
    assert abs(curve.until_quarter(schedule).steps[-1] - max_steps / 4) <= 0.5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 40),
        ({"warmup_ratio": 0.05}, 50),
        ({"warmup_steps": 30}, 30),
        ({"warmup_steps": None, "learning_rate": 1e-3}, 40),
    ],
)
def test_twice_the_tokens_warm_up_as_a_training_of_so_many_would(
    settings: dict[str, Any], expected: int
) -> None:
    """The plan of the doubled training itself."""
    size = {"context_length": 8, "batch_size": 2}
    config = Distill(tokens=500 * 16, **size, **settings)
    found = doubled(replace(SCHEDULE, max_steps=500, warmup_steps=1), config)
    planned = training_schedule(Distill(tokens=1000 * 16, **size, **settings), 1)
    assert (found.max_steps, found.warmup_steps) == (planned.steps, planned.warmup_steps) == (1000, expected)


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    measured = Validation(
        lambda: float("nan"), None, num_tokens=1, schedule=SCHEDULE, show=lambda curve: None
    )
    with pytest.raises(VerificationError, match="student's loss on held-out text is not finite"):
        measured.before_training()
