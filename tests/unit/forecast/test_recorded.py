"""Recorded runs: each is forecast by the others at its quarter, and all make the packaged priors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from compressor.forecast.forecast import forecast_end
from compressor.forecast.learn import RecordedRun, learn_priors
from compressor.forecast.priors import packaged_priors
from compressor.forecast.record import ValidationCurve
from tests.performance import forecast_results, kept
from tests.performance.forecast_results import RESULT, LeftOut, leave_one_out, left_out, recorded_runs


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))["data"]
    return found


@pytest.fixture(scope="module")
def forecasts(data: dict[str, Any]) -> dict[str, LeftOut]:
    return {one.name: one for one in leave_one_out(recorded_runs(data))}


def test_recorded_runs_are_forecast_by_the_others(forecasts: dict[str, LeftOut]) -> None:
    """What docs/results says: nearly nine of ten 90 % intervals, most wider than the quarter asked for."""
    found = list(forecasts.values())
    assert sum(one.contained for one in found) >= 0.85 * len(found)
    assert max(one.width for one in found) < 0.7
    assert median(one.width for one in found) < 0.36
    assert median(abs(one.error) for one in found) < 0.1


def test_later_forecasts_contain_the_end_as_often_as_the_documentation_says(data: dict[str, Any]) -> None:
    """Of all lines that a training shows from its quarter on: four of five up to two thirds, then more."""
    runs = recorded_runs(data)
    soon, late = list[bool](), list[bool]()
    for name, run in runs.items():
        priors = learn_priors([other for key, other in runs.items() if key != name])
        steps, schedule = run.curve.steps, run.schedule
        for step in (step for step in steps[:-1] if step > schedule.quarter_step):
            inside = forecast_end(run.curve.until(step), schedule, priors).contains(run.curve.loss[-1])
            (soon if step < schedule.max_steps * 2 / 3 else late).append(inside)
    assert 0.76 < sum(soon) / len(soon) < 0.84
    assert sum(late) / len(late) > 0.93


def test_a_run_has_no_part_in_its_own_forecast(data: dict[str, Any], forecasts: dict[str, LeftOut]) -> None:
    """Whatever came after a run's quarter, its forecast is the same."""
    runs = recorded_runs(data)
    name = next(iter(runs))
    curve, schedule = runs[name].curve, runs[name].schedule
    count = sum(step <= schedule.max_steps / 4 for step in curve.steps)
    loss = (*curve.loss[:count], *(value + 3 for value in curve.loss[count:]))
    changed = RecordedRun(
        curve=ValidationCurve.model_validate({**curve.to_json(), "loss": loss}), schedule=schedule
    )
    others = [run for other, run in runs.items() if other != name]
    after, before = left_out(name, changed, others), forecasts[name]
    assert (after.loss, after.low, after.high) == pytest.approx(
        (before.loss, before.low, before.high), rel=1e-9
    )


def test_the_packaged_priors_are_learnt_from_the_recorded_runs(data: dict[str, Any]) -> None:
    learnt = learn_priors(list(recorded_runs(data).values()))
    packaged = packaged_priors()
    assert packaged.num_runs == len(recorded_runs(data))
    assert learnt.mean == pytest.approx(packaged.mean, rel=1e-6)
    assert np.array(learnt.covariance) == pytest.approx(np.array(packaged.covariance), rel=1e-6, abs=1e-9)
    assert learnt.log_noise.to_json() == pytest.approx(packaged.log_noise.to_json(), rel=1e-6)


def test_a_measurement_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]
) -> None:
    """What is recorded, and what was found before the interruption, is not made again; the rest is.

    The command is a stand-in that returns a recorded curve.
    """
    names = ["SmolLM2, narrow", "SmolLM2, slim", "third"]
    third = replace(forecast_results.CASES[names[0]], learning_rate=1e-5)
    monkeypatch.setattr(
        forecast_results,
        "CASES",
        {**{name: forecast_results.CASES[name] for name in names[:2]}, "third": third},
    )
    recorded = tmp_path / "recorded.json"
    changed = {**data["runs"][names[1]], "case": {**data["runs"][names[1]]["case"], "tokens": 1}}
    runs = {names[0]: data["runs"][names[0]], names[1]: changed}
    recorded.write_text(json.dumps({"data": {"runs": runs}}))
    monkeypatch.setattr(forecast_results, "RESULT", recorded)
    monkeypatch.setattr(kept, "BUILD", tmp_path / "build")
    monkeypatch.setattr(forecast_results, "PRIORS", tmp_path / "priors.json")
    schedule, curve = (data["runs"][names[1]][key] for key in ("schedule", "curve"))
    made: list[str] = []

    def command(name: str, *arguments: str) -> dict[str, Any]:
        made.append(name)
        if len(made) == stop_at:
            raise KeyboardInterrupt
        return {"details": {"schedule": schedule, "forecast": {"validation": curve}}}

    stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        forecast_results.run_forecast(command)
    assert made == ["prune", "distill"] * 2
    made.clear()
    stop_at = 0
    found = forecast_results.run_forecast(command)["runs"]
    assert made == ["prune", "distill"]
    assert list(found) == names
    assert found["third"]["case"]["learning_rate"] == 1e-5
    assert found[names[1]]["case"]["tokens"] == forecast_results.CASES[names[1]].tokens
    assert json.loads((tmp_path / "priors.json").read_text())["num_runs"] == 3
