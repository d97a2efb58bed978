"""The long measurements of sparsity on SmolLM2: one-shot methods, and what training recovers."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import assets
from tests.performance.kept import place_of
from tests.performance.processes import in_parallel

Command = Callable[..., dict[str, Any]]
Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]

MODEL = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf"
CALIBRATION = ("--calib-size", "64", "--calib-seq-len", "512")
# A text of its own, so that nothing of it was calibrated or trained on.
QUALITY = ("--data", ".assets/c4.txt", "--seq-len", "1024", "--size", "16")
ONE_SHOT = {
    "magnitude": ("--sparsity-method", "magnitude"),
    "wanda": ("--sparsity-method", "wanda"),
    "ria": ("--sparsity-method", "ria"),
    "sparsegpt": ("--sparsity-method", "sparsegpt"),
    "sparsegpt, mask only": ("--sparsity-method", "sparsegpt", "--no-update-weights"),
}
CALIBRATED = ("wanda", "sparsegpt")
NUM_TEXTS = 2
TRAINING = (
    *("--train-data", ".assets/wiki.txt", "--tokens", "60k", "--context-length", "256"),
    *("--train-batch-size", "2", "--learning-rate", "1e-4"),
)
# How a training goes on after it was interrupted.
SAVED = ("--save-steps", "20")
ZERO_SHOT = (
    "Zero-shot tasks: not measured, since their data sets need a hub; the gap is that of perplexity to the "
    "dense model."
)


def run_sparsity(command: Command) -> dict[str, Any]:
    """Perplexity and reconstruction error of every one-shot method, and the spread over calibration texts."""
    with tempfile.TemporaryDirectory() as scratch:
        texts = {
            number: rotated_text(Path(scratch) / f"{number}.txt", number) for number in range(1, NUM_TEXTS)
        }
        tasks = [(name, name, ".assets/wiki.txt") for name in ONE_SHOT]
        tasks += [(f"{name}, text {n}", name, str(text)) for n, text in texts.items() for name in CALIBRATED]

        def sparsify(task: tuple[str, str, str]) -> dict[str, Any]:
            label, method, text = task
            out = f"{scratch}/{label.replace(', ', '-').replace(' ', '-')}"
            options = (*ONE_SHOT[method], "--calib-data", text, *CALIBRATION, "-o", out)
            return command("sparsify", MODEL, *options, num_threads=1)

        results = in_parallel(sparsify, tasks)
        made = {
            "dense": MODEL,
            **{task[0]: result["path"] for task, result in zip(tasks, results, strict=True)},
        }
        layers = {
            name: {tensor: entry["relative_error"] for tensor, entry in result["details"]["layers"].items()}
            for name, result in zip(ONE_SHOT, results, strict=False)
        }
        report = command("evaluate", *made.values(), *QUALITY, "-o", f"{scratch}/quality")
    perplexities = _named(made, report)
    return {
        "perplexity": {name: perplexities[name] for name in ("dense", *ONE_SHOT)},
        "texts": {
            name: [perplexities[name], *(perplexities[f"{name}, text {n}"] for n in range(1, NUM_TEXTS))]
            for name in CALIBRATED
        },
        "mean_relative_error": {name: statistics.fmean(found.values()) for name, found in layers.items()},
        "relative_error": layers,
        "order_holds": order_holds(perplexities),
        "order_holds_by_layer": {
            relation: statistics.fmean(
                order_holds({name: found[tensor] for name, found in layers.items()})[relation]
                for tensor in layers["magnitude"]
            )
            for relation in order_holds(perplexities)
        },
        "protocol": report["protocol"],
    }


def order_holds(figures: dict[str, float]) -> dict[str, bool]:
    """Whether each relation that is published for larger models holds, of perplexities or of errors."""
    return {
        "sparsegpt < wanda": figures["sparsegpt"] < figures["wanda"],
        "ria < wanda": figures["ria"] < figures["wanda"],
        "wanda < magnitude": figures["wanda"] < figures["magnitude"],
        "sparsegpt < its mask only": figures["sparsegpt"] < figures["sparsegpt, mask only"],
    }


def run_sparse_training(command: Command) -> dict[str, Any]:
    """A repaired 2:4 model, and its training: fixed masks, moving masks, and those with a low-rank branch."""
    calibration = ("--calib-data", ".assets/wiki.txt", *CALIBRATION)
    scratch, made = place_of("sparse-training"), {"dense": MODEL}

    def make(name: str, *words: str) -> dict[str, Any]:
        made[name] = str(scratch / name.replace(" ", "-"))
        result = command(*words, "-o", made[name])
        details = {key: value for key, value in result["details"].items() if key != "layers"}
        return {"num_parameters": result["num_parameters"], **details}

    ast = ("--sparsity-method", "ast", "--teacher", MODEL)
    details: dict[str, Any] = {}
    # One after the other: two trainings of one thread each take twice as long.
    for end, branch in (("", ()), (" + slorb", ("--slorb", "trained"))):
        make(f"sparsegpt{end}", "sparsify", MODEL, *branch, *calibration)
        make(f"repaired{end}", "reconstruct", made[f"sparsegpt{end}"], "--teacher", MODEL, *calibration)
        words = ("sparsify", made[f"repaired{end}"], *ast, *branch, *SAVED)
        details[f"ast{end}"] = make(f"ast{end}", *words, *TRAINING)
    fixed = ("distill", made["repaired"], "--teacher", MODEL, *SAVED)
    details["fixed masks"] = make("fixed masks", *fixed, *TRAINING)
    report = command("evaluate", *made.values(), *QUALITY, "-o", str(scratch / "quality"))
    found = _named(made, report)
    return {
        "perplexity": found,
        "training": details,
        "order_holds": {
            relation: found[relation.split(" < ")[0]] < found[relation.split(" < ")[1]]
            for relation in (
                "repaired < sparsegpt",
                "fixed masks < repaired",
                "ast < repaired",
                "ast + slorb < ast",
            )
        },
        "protocol": report["protocol"],
        "not_measured": ZERO_SHOT,
    }


def sparsity_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the one-shot table."""
    rows = []
    for name, perplexity in data["perplexity"].items():
        texts = data["texts"].get(name)
        spread = f"{min(texts):.1f} to {max(texts):.1f}, {len(texts)} texts" if texts else "-"
        error = data["mean_relative_error"].get(name)
        rows.append((name, f"{perplexity:.1f}", spread, "-" if error is None else f"{error:.4f}"))
    rows += [
        (
            relation,
            "yes" if holds else "no",
            "-",
            f"in {data['order_holds_by_layer'][relation]:.1%} of layers",
        )
        for relation, holds in data["order_holds"].items()
    ]
    return ("method", "perplexity", "spread over calibration texts", "output error"), rows


def sparse_training_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the training table."""
    rows = []
    for name, perplexity in data["perplexity"].items():
        training = data["training"].get(name, {})
        adapter = training.get("adapter_parameters")
        rows.append(
            (
                name,
                f"{perplexity:.1f}",
                f"{training['tokens']:,}" if training else "-",
                f"{training['moved_share']:.2%}" if training else "-",
                f"{training['num_parameters']:,}" + (f" + {adapter:,}" if adapter else "")
                if training
                else "-",
            )
        )
    rows += [
        (relation, "yes" if holds else "no", "-", "-", "-") for relation, holds in data["order_holds"].items()
    ]
    return ("model", "perplexity", "tokens", "mask moved", "parameters (dense count + branch)"), rows


def rotated_text(path: Path, number: int) -> Path:
    """The calibration text from another place on, so that its windows are others, and whole articles."""
    lines = assets.fetch(assets.DEFAULT_DIRECTORY).texts["wiki"].read_text(encoding="utf-8").splitlines()
    start = len(lines) * number // NUM_TEXTS
    path.write_text("\n".join([*lines[start:], *lines[:start]]) + "\n", encoding="utf-8")
    return path


def _named(made: dict[str, str], report: dict[str, Any]) -> dict[str, float]:
    """Perplexities by our names; the report's are in the same order."""
    found = [entry["perplexity"] for entry in report["models"].values()]
    return dict(zip(made, found, strict=True))
