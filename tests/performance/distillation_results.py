"""The long measurement of distillation on SmolLM2: which loss recovers a pruned student best.

Every loss sees the same windows in the same order and is given at its own best of two learning rates;
a third, 3e-3, was the best of none when it was measured.
Runs follow one another: two at a time with one thread each train half as fast.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.performance.kept import keep, read_kept

MODEL = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = ".assets/c4.txt"
WIDTH = "hidden_size=432,intermediate_size=1024"
DEPTH = "num_hidden_layers=15"
TOKENS = "30k"
LEARNING_RATES = (3e-4, 1e-3)
SEEDS = (0, 1)
CALIBRATION = ("--calib-data", TEXT, "--calib-size", "32", "--calib-seq-len", "512")
TRAINING = ("--train-data", TEXT, "--tokens", TOKENS, "--context-length", "256", "--train-batch-size", "4")
# Of the text that was trained on, `evaluate` reads the held-out part.
QUALITY = {"held-out": TEXT, "other": ".assets/wiki.txt"}
WINDOWS = ("--seq-len", "512", "--size", "15")
LOGITS_ONLY = ("--hidden-state-loss", "off", "--embedding-loss", "off")

Command = Callable[..., dict[str, Any]]
Perplexity = dict[str, float]  # by text of `QUALITY`
Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One loss on one student, with the seeds it is repeated over."""

    student: str
    options: tuple[str, ...]
    seeds: tuple[int, ...] = SEEDS[:1]


VARIANTS = {
    "KL": Variant(student="width", options=LOGITS_ONLY, seeds=SEEDS),
    "CE": Variant(student="width", options=(*LOGITS_ONLY, "--kl-weight", "0"), seeds=SEEDS),
    "KL + CE": Variant(student="width", options=(*LOGITS_ONLY, "--kl-weight", "0.5")),
    "random initialisation, CE": Variant(student="random", options=(*LOGITS_ONLY, "--kl-weight", "0")),
    "half depth, logits": Variant(student="depth", options=LOGITS_ONLY),
    "half depth, logits + intermediate + embedding": Variant(
        student="depth", options=("--hidden-state-loss", "cosine", "--embedding-loss", "cosine")
    ),
}


def run_distillation(command: Command) -> dict[str, Any]:
    """Held-out perplexity of every variant at each learning rate, and of its seeds at the best."""
    with tempfile.TemporaryDirectory() as scratch:
        students = _students(command, Path(scratch))
        kept = read_kept("distillation")
        taken_over: set[str] = set()

        def measure(task: tuple[str, float, int]) -> Perplexity:
            name, learning_rate, seed = task
            key = f"{name}, {learning_rate:g}, seed {seed}, {TOKENS} of {TEXT}"
            if key in kept:
                taken_over.add(key)
            else:
                kept[key] = train(name, learning_rate, seed)
                keep("distillation", kept)
            found: Perplexity = kept[key]
            return found

        def train(name: str, learning_rate: float, seed: int) -> Perplexity:
            out = f"{scratch}/{list(VARIANTS).index(name)}-{learning_rate:g}-{seed}"
            command(
                *("distill", students[VARIANTS[name].student], "--teacher", MODEL, *TRAINING),
                *VARIANTS[name].options,
                *("--learning-rate", str(learning_rate), "--seed", str(seed), "-o", out),
            )
            [found] = _perplexities(command, (out,), f"{out}-quality")
            shutil.rmtree(out)
            return found

        tasks = [(name, rate, SEEDS[0]) for name in VARIANTS for rate in LEARNING_RATES]
        swept = {task: measure(task) for task in tasks}
        best = {
            name: min(LEARNING_RATES, key=lambda rate, name=name: swept[name, rate, SEEDS[0]]["held-out"])
            for name in VARIANTS
        }
        tasks = [(name, best[name], seed) for name, of in VARIANTS.items() for seed in of.seeds[1:]]
        repeated = {task: measure(task) for task in tasks}
        paths = {"teacher": MODEL, **students}
        perplexities = _perplexities(command, tuple(paths.values()), f"{scratch}/quality")
        untrained = dict(zip(paths, perplexities, strict=True))
    return {**_summary(swept | repeated, best, untrained), "runs_of_an_earlier_call": len(taken_over)}


def _summary(
    found: dict[tuple[str, float, int], Perplexity], best: dict[str, float], untrained: dict[str, Perplexity]
) -> dict[str, Any]:
    variants = {
        name: {
            "learning_rate": best[name],
            "perplexity": {str(seed): found[name, best[name], seed] for seed in variant.seeds},
            "sweep": {f"{rate:g}": found[name, rate, SEEDS[0]] for rate in LEARNING_RATES},
        }
        for name, variant in VARIANTS.items()
    }
    return {
        "tokens": TOKENS,
        "untrained": untrained,
        "variants": variants,
        "order_holds": {text: _order(variants, text) for text in QUALITY},
    }


def _order(variants: dict[str, Any], text: str) -> dict[str, bool]:
    """Which published relations hold on one text."""
    of = {
        name: [by_text[text] for by_text in entry["perplexity"].values()] for name, entry in variants.items()
    }
    return {
        "KL < CE, seed by seed": all(kl < ce for kl, ce in zip(of["KL"], of["CE"], strict=True)),
        "every KL < every CE": max(of["KL"]) < min(of["CE"]),
        "KL < KL + CE": of["KL"][0] < of["KL + CE"][0],
        "KL and CE < half of random initialisation": max(*of["KL"], *of["CE"])
        < of["random initialisation, CE"][0] / 2,
        "half depth: with intermediate and embedding < logits only": of[
            "half depth, logits + intermediate + embedding"
        ][0]
        < of["half depth, logits"][0],
    }


def distillation_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the table."""
    rows = [
        (
            name if name == "teacher" else f"{name} student, untrained",
            "-",
            *(f"{perplexity[text]:,.1f}" for text in QUALITY),
            "-",
        )
        for name, perplexity in data["untrained"].items()
    ]
    for name, entry in data["variants"].items():
        of_seeds = entry["perplexity"].values()
        perplexities = (" / ".join(f"{seed[text]:.1f}" for seed in of_seeds) for text in QUALITY)
        sweep = ", ".join(f"{rate}: {value['held-out']:.1f}" for rate, value in entry["sweep"].items())
        rows.append((name, f"{entry['learning_rate']:g}", *perplexities, sweep))
    holds = data["order_holds"]
    rows += [
        (relation, "-", *("yes" if holds[text][relation] else "no" for text in QUALITY), "-")
        for relation in holds["held-out"]
    ]
    header = (
        "student and loss",
        "learning rate",
        "perplexity, held-out",
        "other text",
        "every rate, held-out",
    )
    return header, rows


def _students(command: Command, scratch: Path) -> dict[str, str]:
    """The pruned students, and one of the width student's shape with random weights."""
    made = {}
    for name, shape in (("width", WIDTH), ("depth", DEPTH)):
        made[name] = str(scratch / name)
        command("prune", MODEL, "--shape", shape, *CALIBRATION, "-o", made[name])
    made["random"] = str(scratch / "random")
    _write_random(Path(made["width"]), Path(made["random"]))
    return made


def _write_random(like: Path, out_dir: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(like), dtype=torch.bfloat16)
    model.save_pretrained(out_dir)
    AutoTokenizer.from_pretrained(like).save_pretrained(out_dir)


def _perplexities(command: Command, models: tuple[str, ...], out: str) -> list[Perplexity]:
    """Of every model on every text; on the first one, at least one model must have been trained on it."""
    reports = {
        text: command("evaluate", *models, "--data", source, *WINDOWS, "-o", f"{out}-{text}")
        for text, source in QUALITY.items()
    }
    assert reports["held-out"]["protocol"]["split"] == "held_out"
    measured = {text: list(report["models"].values()) for text, report in reports.items()}
    return [
        {text: values[number]["perplexity"] for text, values in measured.items()}
        for number in range(len(models))
    ]
