"""Recorded trainings for the forecast: short distillations of a byte-level model and of SmolLM2.

`python -m tests.performance.results forecast` makes those that docs/results/forecast.json does not hold yet,
takes an interrupted measurement up again, and learns the packaged priors from all held-out curves. Priors
alone, from what is recorded: `python -m tests.performance.forecast_results`. Each run is also forecast at its
quarter by priors of the others.

The byte-level model has half a million parameters and is trained here first, on its students' texts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from compressor.forecast.forecast import forecast_end
from compressor.forecast.learn import RecordedRun, learn_priors
from compressor.forecast.priors import PRIORS_FILE
from compressor.forecast.record import ValidationCurve
from compressor.forecast.schedule import RateSchedule
from compressor.runs.artifact import write_json
from tests.performance.kept import ROOT, keep, read_kept

RESULT = ROOT / "docs" / "results" / "forecast.json"
PRIORS = ROOT / "compressor" / "forecast" / PRIORS_FILE
SMOLLM2 = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf"
WIKI, C4 = ".assets/wiki.txt", ".assets/c4.txt"
TEACHER_STEPS, TEACHER_RATE = 900, 2e-3
BYTES_CONTEXT = 32
Command = Callable[..., dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One distillation.

    Attributes:
        shape: Of the student, to which its teacher is pruned by importance on the `calibration` text.
        kl_weight: Cross-entropy has the rest.
        batch_size: Sequences of `context_length` tokens.
        warmup_ratio: Of all steps; None for the tool's own.
        seed: Of the order of the text; a case with another seed than 0 repeats one, and tells priors nothing.
    """

    model: str
    shape: str
    calibration: str
    text: str
    learning_rate: float
    tokens: int
    kl_weight: float = 1.0
    context_length: int = 64
    batch_size: int = 2
    warmup_ratio: float | None = None
    min_learning_rate_ratio: float = 0.1
    seed: int = 0


def _bytes(
    shape: str, text: str, rate: float, *, steps: int = 192, batch_size: int = 16, **more: float
) -> Case:
    return Case(
        model="byte-level",
        shape=shape,
        calibration=text,
        text=text,
        learning_rate=rate,
        tokens=steps * batch_size * BYTES_CONTEXT,
        context_length=BYTES_CONTEXT,
        batch_size=batch_size,
        **more,
    )


def _large_batch(shape: str, text: str, rate: float, **more: float) -> Case:
    return _bytes(shape, text, rate, steps=160, batch_size=48, **more)


def _smollm2(shape: str, text: str, rate: float) -> Case:
    return Case(model="SmolLM2", shape=shape, calibration=C4, text=text, learning_rate=rate, tokens=20_000)


_NARROW = "hidden_size=288,intermediate_size=768,num_hidden_layers=15"
_SLIM = "hidden_size=360,intermediate_size=512,num_hidden_layers=12"
_NARROW_BYTES, _SHORT = "hidden_size=48", "num_hidden_layers=2"
_THIN_BYTES = f"{_NARROW_BYTES},intermediate_size=96"
_REPEATED = "bytes, narrow"
CASES = {
    _REPEATED: _bytes(_NARROW_BYTES, WIKI, 5e-4),
    "bytes, one layer": _bytes("num_hidden_layers=1", C4, 5e-4),
    "bytes, narrow and thin": _bytes(_THIN_BYTES, WIKI, 3e-4),
    "bytes, narrow, KL + CE": _bytes(_NARROW_BYTES, C4, 7e-4, kl_weight=0.5),
    "bytes, narrow and shallow": _bytes(f"{_NARROW_BYTES},{_SHORT}", WIKI, 1e-3),
    "bytes, narrow and shallow, slow": _bytes(f"{_NARROW_BYTES},{_SHORT}", C4, 3e-4),
    "bytes, narrowest": _bytes("hidden_size=32", WIKI, 7e-4),
    "bytes, narrow, twice": _bytes(_NARROW_BYTES, WIKI, 5e-4, steps=384),
    "bytes, narrow and thin, long": _bytes(_THIN_BYTES, WIKI, 5e-4, steps=768),
    "bytes, narrowest, long": _bytes("hidden_size=32", C4, 7e-4, steps=768),
    "bytes, narrow, large batch": _large_batch(_NARROW_BYTES, C4, 7e-4),
    "bytes, narrowest, large batch": _large_batch("hidden_size=32", WIKI, 1.5e-3, warmup_ratio=0.05),
    "bytes, narrow and thin, large batch": _large_batch(_THIN_BYTES, WIKI, 1e-3),
    "bytes, narrow and shallow, large batch": _large_batch(f"{_NARROW_BYTES},{_SHORT}", C4, 5e-4),
    "bytes, narrowest and shallow, to zero": _large_batch(
        f"hidden_size=32,{_SHORT}", WIKI, 1e-3, min_learning_rate_ratio=0.0
    ),
    "bytes, narrow and thin, KL + CE": _large_batch(_THIN_BYTES, C4, 7e-4, kl_weight=0.5),
    "bytes, narrow, slow, large batch": _large_batch(_NARROW_BYTES, WIKI, 4e-4),
    "SmolLM2, narrow": _smollm2(_NARROW, WIKI, 5e-4),
    "SmolLM2, slim": _smollm2(_SLIM, WIKI, 5e-4),
    **{f"{_REPEATED}, seed {seed}": _bytes(_NARROW_BYTES, WIKI, 5e-4, seed=seed) for seed in (1, 2)},
}


def run_forecast(command: Command) -> dict[str, Any]:
    """Every case's curve, what is recorded already taken from there, and the priors of all."""
    recorded = json.loads(RESULT.read_text(encoding="utf-8"))["data"] if RESULT.is_file() else {}
    found = {**_runs_of(recorded), **_runs_of(read_kept("forecast"))}
    with tempfile.TemporaryDirectory() as scratch:
        models = {"SmolLM2": SMOLLM2}
        for number, (name, case) in enumerate(CASES.items()):
            if name in found:
                continue
            if case.model not in models:
                models[case.model] = str(_write_byte_level(Path(scratch) / "teacher"))
            found[name] = _distill(command, case, models[case.model], f"{scratch}/{number}")
            keep("forecast", {"runs": found})
    data = {"runs": {name: found[name] for name in CASES}}
    write_priors(data)
    return data


def write_priors(data: Mapping[str, Any]) -> None:
    """Learn the packaged priors from a result."""
    write_json(PRIORS, learn_priors(list(recorded_runs(data).values())).to_json())


def _runs_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The runs of a measurement whose cases are still those of this file."""
    runs = data.get("runs", {}).items()
    return {name: run for name, run in runs if name in CASES and run["case"] == asdict(CASES[name])}


def _distill(command: Command, case: Case, model: str, out: str) -> dict[str, Any]:
    """Prune and distill; returns the case, its schedule and its curve."""
    calibration = ("--calib-data", case.calibration, "--calib-size", "8", "--calib-seq-len", "256")
    command("prune", model, "--shape", case.shape, *calibration, "-o", f"{out}-student")
    warmup = () if case.warmup_ratio is None else ("--warmup-ratio", str(case.warmup_ratio))
    found = command(
        *("distill", f"{out}-student", "--teacher", model, "--train-data", case.text),
        *("--tokens", str(case.tokens), "--context-length", str(case.context_length)),
        *("--train-batch-size", str(case.batch_size), "--micro-batch-size", str(case.batch_size)),
        *("--learning-rate", str(case.learning_rate), "--kl-weight", str(case.kl_weight)),
        *("--min-learning-rate-ratio", str(case.min_learning_rate_ratio), *warmup, "--seed", str(case.seed)),
        *("--hidden-state-loss", "off", "--embedding-loss", "off", "--save-steps", "100000"),
        *("--report-to", "none", "-o", f"{out}-distilled"),
    )
    return recorded(case, found["details"])


def recorded(case: Case, details: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a distillation."""
    schedule = {name: details["schedule"][name] for name in RateSchedule.__dataclass_fields__}
    return {"case": asdict(case), "schedule": schedule, "curve": details["forecast"]["validation"]}


def recorded_runs(data: Mapping[str, Any]) -> dict[str, RecordedRun]:
    """The runs of a result, those that repeat one with another seed left out."""
    return {
        name: RecordedRun(
            curve=ValidationCurve.model_validate(run["curve"]), schedule=RateSchedule(**run["schedule"])
        )
        for name, run in data["runs"].items()
        if run["case"]["seed"] == 0
    }


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run's forecast at its quarter, by priors of all other runs; losses in nats per token."""

    name: str
    at: float
    loss: float
    low: float
    high: float
    end: float

    @property
    def contained(self) -> bool:
        return self.low <= self.end <= self.high

    @property
    def error(self) -> float:
        """Of the median, as a share of the fall that was still to come."""
        return (self.end - self.loss) / (self.at - self.end)

    @property
    def width(self) -> float:
        """Of the interval, as a share of the fall that was still to come."""
        return (self.high - self.low) / (self.at - self.end)


def leave_one_out(runs: Mapping[str, RecordedRun]) -> list[LeftOut]:
    """Every run's forecast by the others."""
    return [
        left_out(name, run, [other for key, other in runs.items() if key != name])
        for name, run in runs.items()
    ]


def left_out(name: str, run: RecordedRun, others: Sequence[RecordedRun]) -> LeftOut:
    """One run's forecast by others."""
    end = forecast_end(run.early, run.schedule, learn_priors(others))
    at, reached = run.early.loss[-1], run.curve.loss[-1]
    return LeftOut(name=name, at=at, loss=end.loss, low=end.low, high=end.high, end=reached)


def forecast_rows(data: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]], str, str]:
    """Header and rows of the table, and the lines below it."""
    runs = recorded_runs(data)
    found = leave_one_out(runs)
    rows = [
        (
            one.name,
            f"{runs[one.name].curve.num_tokens:,}",
            f"{runs[one.name].curve.loss[0]:.3f}",
            f"{one.at:.3f}",
            f"{one.loss:.3f} ({one.low:.3f} to {one.high:.3f})",
            f"{one.end:.3f}",
            f"{one.error:+.0%}",
            f"{one.width:.0%}",
            "yes" if one.contained else "no",
        )
        for one in found
    ]
    header = (
        *("run", "held-out tokens", "begins", "at 1/4", "forecast for the end", "end", "missed by", "width"),
        "contained",
    )
    return header, rows, "", _summary(data, found)


def _summary(data: dict[str, Any], found: Sequence[LeftOut]) -> str:
    """All intervals in a sentence, and how far seeds alone let ends lie apart."""
    repeated = data["runs"][_REPEATED]["case"] | {"seed": None}
    same = [run["curve"] for run in data["runs"].values() if run["case"] | {"seed": None} == repeated]
    ends = sorted(curve["loss"][-1] for curve in same)
    widths, errors = [one.width for one in found], [abs(one.error) for one in found]
    inside, fine = sum(one.contained for one in found), sum(width <= 0.25 for width in widths)
    return (
        f"{inside} of {len(found)} intervals contain the end. Their median width is {median(widths):.0%}; "
        f"no wider than 25 % {'is' if fine == 1 else 'are'} {fine}. The median forecast misses by "
        f"{median(errors):.0%}. "
        f"`{_REPEATED}` with {len(ends)} seeds ends at {', '.join(f'{end:.3f}' for end in ends)}."
    )


def _write_byte_level(path: Path) -> Path:
    """The teacher of byte-level students, trained on both texts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from compressor.models.config.portable import make_portable
    from tests.tiny_models import VOCAB_SIZE, make_tokenizer

    tokenizer = make_tokenizer()
    text = "".join(Path(ROOT / name).read_text(encoding="utf-8")[:250_000] for name in (WIKI, C4))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEACHER_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TEACHER_STEPS)
    for _ in range(TEACHER_STEPS):
        starts = torch.randint(len(ids) - 64, (8,))
        batch = torch.stack([ids[start : start + 64] for start in starts.tolist()])
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    make_portable(path)
    return path


def main() -> None:
    """Learn the packaged priors from the recorded runs, without making any."""
    write_priors(json.loads(RESULT.read_text(encoding="utf-8"))["data"])


if __name__ == "__main__":
    main()
