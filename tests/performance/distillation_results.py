"""The long measurement of distillation on SmolLM2: which loss recovers a pruned student best.

Every loss sees the same windows in the same order and is given at its own best of three learning rates.
Runs follow one another: two at a time with one thread each train half as fast. What an interrupted
measurement found is kept in `KEPT` until it is complete.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.artifact import write_json

KEPT = Path(__file__).resolve().parents[2] / "build" / "distillation.json"
MODEL = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = ".assets/wiki.txt"
WIDTH = "hidden_size=432,intermediate_size=1024"
DEPTH = "num_hidden_layers=15"
TOKENS = "40k"
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1)
CALIBRATION = ("--calib-data", TEXT, "--calib-size", "32", "--calib-seq-len", "512")
TRAINING = ("--train-data", TEXT, "--tokens", TOKENS, "--context-length", "256", "--train-batch-size", "4")
# The held-out tail of the same text.
QUALITY = ("--perplexity", TEXT, "--window", "1024", "--size", "16")
LOGITS_ONLY = ("--intermediate", "off", "--embedding-loss", "off")

Command = Callable[..., dict[str, Any]]
Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One loss on one student, with the seeds it is repeated over."""

    student: str
    options: tuple[str, ...]
    seeds: tuple[int, ...] = SEEDS[:1]


VARIANTS = {
    "KL": Variant(student="width", options=LOGITS_ONLY, seeds=SEEDS),
    "CE": Variant(student="width", options=(*LOGITS_ONLY, "--distill-kl-weight", "0"), seeds=SEEDS),
    "KL + CE": Variant(student="width", options=(*LOGITS_ONLY, "--distill-kl-weight", "0.5")),
    "random initialisation, CE": Variant(
        student="random", options=(*LOGITS_ONLY, "--distill-kl-weight", "0")
    ),
    "half depth, logits": Variant(student="depth", options=LOGITS_ONLY),
    "half depth, logits + intermediate + embedding": Variant(
        student="depth", options=("--intermediate", "cosine", "--embedding-loss", "cosine")
    ),
}


def run_distillation(command: Command) -> dict[str, Any]:
    """Held-out perplexity of every variant at each learning rate, and of its seeds at the best."""
    with tempfile.TemporaryDirectory() as scratch:
        students = _students(command, Path(scratch))
        KEPT.parent.mkdir(exist_ok=True)
        kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
        num_kept = len(kept)

        def measure(task: tuple[str, float, int]) -> float:
            name, learning_rate, seed = task
            key = f"{name}, {learning_rate:g}, seed {seed}, {TOKENS}"
            if key not in kept:
                kept[key] = train(name, learning_rate, seed)
                write_json(KEPT, kept)
            found: float = kept[key]
            return found

        def train(name: str, learning_rate: float, seed: int) -> float:
            out = f"{scratch}/{list(VARIANTS).index(name)}-{learning_rate:g}-{seed}"
            command(
                *("distill", students[VARIANTS[name].student], "--teacher", MODEL, *TRAINING),
                *VARIANTS[name].options,
                *("--learning-rate", str(learning_rate), "--seed", str(seed), "-o", out),
            )
            perplexity = _perplexity(command, out, f"{out}-quality")
            shutil.rmtree(out)
            return perplexity

        tasks = [(name, rate, SEEDS[0]) for name in VARIANTS for rate in LEARNING_RATES]
        swept = {task: measure(task) for task in tasks}
        best = {
            name: min(LEARNING_RATES, key=lambda rate, name=name: swept[name, rate, SEEDS[0]])
            for name in VARIANTS
        }
        tasks = [(name, best[name], seed) for name, of in VARIANTS.items() for seed in of.seeds[1:]]
        repeated = {task: measure(task) for task in tasks}
        untrained = {
            name: _perplexity(command, path, f"{scratch}/quality-{name}")
            for name, path in {"teacher": MODEL, **students}.items()
        }
    KEPT.unlink()
    return {**_summary(swept | repeated, best, untrained), "runs_of_an_earlier_call": num_kept}


def _summary(
    found: dict[tuple[str, float, int], float], best: dict[str, float], untrained: dict[str, float]
) -> dict[str, Any]:
    variants = {
        name: {
            "learning_rate": best[name],
            "perplexity": {str(seed): found[name, best[name], seed] for seed in variant.seeds},
            "sweep": {f"{rate:g}": found[name, rate, SEEDS[0]] for rate in LEARNING_RATES},
        }
        for name, variant in VARIANTS.items()
    }
    worst_kl = max(variants["KL"]["perplexity"].values())
    best_ce = min(variants["CE"]["perplexity"].values())
    first = {name: entry["perplexity"][str(SEEDS[0])] for name, entry in variants.items()}
    plain, deep = "half depth, logits", "half depth, logits + intermediate + embedding"
    return {
        "tokens": TOKENS,
        "untrained": untrained,
        "variants": variants,
        "order_holds": {
            "KL < CE, every seed": worst_kl < best_ce,
            "KL < KL + CE": first["KL"] < first["KL + CE"],
            "CE < half of random initialisation": best_ce < first["random initialisation, CE"] / 2,
            "half depth: with intermediate and embedding < logits only": first[deep] < first[plain],
        },
    }


def distillation_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the table."""
    rows = [
        (f"{name}, untrained", "-", f"{perplexity:,.1f}", "-")
        for name, perplexity in data["untrained"].items()
    ]
    for name, entry in data["variants"].items():
        perplexities = " / ".join(f"{value:.2f}" for value in entry["perplexity"].values())
        sweep = ", ".join(f"{rate}: {value:.2f}" for rate, value in entry["sweep"].items())
        rows.append((name, f"{entry['learning_rate']:g}", perplexities, sweep))
    rows += [
        (relation, "-", "yes" if holds else "no", "-") for relation, holds in data["order_holds"].items()
    ]
    return ("student and loss", "learning rate", "held-out perplexity, by seed", "every rate"), rows


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


def _perplexity(command: Command, model: str, out: str) -> float:
    models = command("evaluate", model, *QUALITY, "-o", out)["models"]
    perplexity: float = next(iter(models.values()))["perplexity"]
    return perplexity
