"""Charts of a run's training: the held-out loss with its forecast, and the loss that was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.core.svg import Point
from compressor.core.svg_curve import Curve, curve_chart
from compressor.forecast.record import Forecast, TrainingForecast
from compressor.pipeline.summary import DistillRecord

_HELD_OUT = "held-out loss [nats per token]"
_STEP = "optimizer step"


def charts_of_training(distill: DistillRecord) -> list[tuple[str, str]]:
    """Title and drawing of every chart that the training's records allow."""
    charts = []
    if distill.forecast and distill.forecast.validation and len(distill.forecast.validation.steps) > 1:
        forecast = ", and its forecast at a quarter" if distill.forecast.at_quarter else ""
        charts.append((f"Held-out loss{forecast}", _held_out(distill.forecast)))
    if distill.curve and len(distill.curve.steps) > 1:
        points = _points(distill.curve.steps, distill.curve.loss, "training loss")
        curve = Curve(name="loss on the training text", points=points, has_marks=False)
        title = f"Training loss: {distill.loss}"
        charts.append((title, curve_chart([curve], x_title=_STEP, y_title="loss per token")))
    return charts


def _held_out(found: TrainingForecast) -> str:
    curve = found.validation
    assert curve is not None
    curves = [Curve(name="measured", points=_points(curve.steps, curve.loss, "measured"))]
    if found.at_quarter is not None:
        curves.append(_forecast(found.at_quarter, curve.until(found.at_quarter.made_at).loss[-1]))
    if curve.teacher_loss is not None:
        ends = (curve.steps[0], curve.steps[-1])
        points = _points(ends, (curve.teacher_loss, curve.teacher_loss), "teacher")
        curves.append(Curve(name="the teacher", points=points, has_marks=False))
    return curve_chart(curves, x_title=_STEP, y_title=_HELD_OUT)


def _forecast(forecast: Forecast, begins: float) -> Curve:
    start = Point(x=forecast.made_at, y=begins, label="made here")
    points = [
        Point(x=one.step, y=one.loss, label=f"forecast {one.loss:.3f} ({one.low:.3f} to {one.high:.3f})")
        for one in forecast.path
    ]
    return Curve(
        name=f"forecast after step {forecast.made_at}, {forecast.share:.0%} interval",
        points=[start, *points],
        is_dashed=True,
        has_marks=False,
        band=[(begins, begins), *((one.low, one.high) for one in forecast.path)],
    )


def _points(steps: Sequence[int], losses: Sequence[float], what: str) -> list[Point]:
    return [
        Point(x=step, y=loss, label=f"{what}: {loss:.4f} at step {step}")
        for step, loss in zip(steps, losses, strict=True)
    ]
