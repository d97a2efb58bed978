"""Every command that writes, as the scenarios that faults are planted into, and the models they read.

The model is tiny; what is made of it is made by the tool itself, once.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.faults.ground import Ground, Scenario
from tests.faults.program import Words

# The model of this scenario comes from a stand-in for the hub.
DOWNLOAD, REPOSITORY = "download", "someone/tiny"
SHAPE = "hidden_size=48,intermediate_size=128,num_hidden_layers=2"
_WORDS = ("the", "river", "keeps", "every", "old", "stone", "above", "small", "garden", "seven", "letters")
_CALIBRATION = ("--calib-size", 4, "--calib-seq-len", 32)
_SEQUENCES = ("--tokens", 512, "--context-length", 32, "--train-batch-size", 4)
_SMALL_EDGE = {"head_dim": 64, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 1}
# Files of a run with times, memory or this machine in them.
_TIMED = ("*manifest.json", "*README.md", "*.html", "*SHA256SUMS", "*family.json")
_FORMATS = {
    "huggingface": ("huggingface", "bf16"),
    "huggingface-fp8": ("huggingface", "fp8"),
    "tensorrt-llm": ("tensorrt-llm", "bf16"),
    "tensorrt-llm-fp8": ("tensorrt-llm", "fp8"),
    "onnx": ("onnx", "fp32"),
    "onnx-int4": ("onnx", "int4"),
    "onnx-standard": ("onnx-standard", "fp16"),
    "onnx-standard-fp8": ("onnx-standard", "fp8"),
}


class Inputs:
    """Models and texts, made once below an empty directory."""

    def __init__(self, root: Path) -> None:
        from tests import edge_llm_stand_in
        from tests.gguf_files import TinyGguf
        from tests.tiny_models import make_model, save_checkpoint

        self.root = root
        root.mkdir()
        self.text, self.other_text = self._text("text", 0), self._text("other", 1)
        model = make_model(num_key_value_heads=4, num_hidden_layers=3).bfloat16()
        self.teacher = save_checkpoint(root / "teacher", model)
        self.gguf = TinyGguf().write(root / "tiny.gguf")
        self.edge_model = save_checkpoint(root / "edge-model", make_model(**_SMALL_EDGE).bfloat16())
        self.edge_python = edge_llm_stand_in.install(root / "edge-environment")
        self.student, self.fp8, self.logits = root / "student", root / "fp8", root / "logits"

    def make(self, ground: Ground, chosen: Iterable[Scenario]) -> None:
        """What the chosen commands read, by the tool itself.

        Raises:
            AssertionError: when one of them fails.
        """
        commands: list[tuple[Path, Words]] = [
            (self.student, ("prune", self.teacher, "--shape", SHAPE, *self.calibrated())),
            (self.fp8, ("quantize", self.student, "--fp8", *self.calibrated())),
            (self.logits, ("cache-logits", self.teacher, *self.read(), "--top-k", 8)),
        ]
        read = {word for scenario in chosen for word in scenario.words}
        read |= {self.student} if self.fp8 in read else set()
        for out, words in commands:
            if out not in read:
                continue
            done = ground.run((*words, "-o", out))
            assert done.code == 0, done.stderr

    def calibrated(self) -> Words:
        return ("--calib-data", self.text, *_CALIBRATION)

    def read(self) -> Words:
        return ("--train-data", self.other_text, *_SEQUENCES)

    def trained(self) -> Words:
        return (*self.read(), "--save-steps", 2)

    def recipe(self, name: str, **sections: Any) -> Path:
        """A short run; `sections` replace its own."""
        training = {"tokens": 512, "context_length": 32, "batch_size": 4, "save_steps": 4}
        tree: dict[str, Any] = {
            "model": str(self.teacher),
            "dtype": "bfloat16",
            "prune": {"shape": {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2}},
            "calibration": {"data": str(self.text), "size": 4, "seq_len": 32},
            "distill": {"data": str(self.other_text), **training},
            "repair": {"method": "least-squares"},
            "export": {"formats": ["huggingface", "tensorrt-llm"]},
            "evaluate": {"seq_len": 64, "size": 2},
            "bench": {"runtime": "none"},
            **sections,
        }
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    def _text(self, name: str, seed: int) -> Path:
        path, chance = self.root / f"{name}.txt", random.Random(seed)  # noqa: S311 - a text
        sentences = (" ".join(chance.choices(_WORDS, k=chance.randrange(4, 12))) for _ in range(200))
        path.write_text("\n\n".join(f"{sentence}." for sentence in sentences), encoding="utf-8")
        return path


def scenarios(inputs: Inputs, work: Path) -> list[Scenario]:
    """All of them, in the order of a run."""
    return [*_pruning(inputs, work), *_training(inputs, work), *_rest(inputs, work), *_runs(inputs, work)]


def _pruning(inputs: Inputs, work: Path) -> Iterator[Scenario]:
    out, calibrated = ("-o", work / "out"), inputs.calibrated()
    prune = ("prune", inputs.teacher, "--shape")
    yield Scenario(name="prune", words=(*prune, SHAPE, *calibrated, *out))
    depth = ("--depth-importance", "loss", "--depth-curve", "1")
    yield Scenario(name="prune (depth)", words=(*prune, "num_hidden_layers=2", *depth, *calibrated, *out))
    rotation = ("--hidden-removal", "rotation", *calibrated, *out)
    yield Scenario(name="prune (rotation)", words=(*prune, "hidden_size=48", *rotation))
    learned = ("--importance", "learned-masks", "--mask-tokens", 256, "--mask-batch-size", 2)
    words = (*prune, SHAPE, *learned, "--train-data", inputs.other_text, "--context-length", 32)
    yield Scenario(name="prune (learned masks)", words=(*words, "--save-steps", 2, *out))
    words = ("prune", inputs.gguf, "--shape", "intermediate_size=64", *calibrated, *out)
    yield Scenario(name="prune (GGUF)", words=words)
    words = ("prune", REPOSITORY, "--shape", SHAPE, "--importance", "random", *out)
    yield Scenario(name=DOWNLOAD, words=words)
    words = ("reconstruct", inputs.student, "--teacher", inputs.teacher, *calibrated, *out)
    yield Scenario(name="reconstruct", words=words)


def _training(inputs: Inputs, work: Path) -> Iterator[Scenario]:
    out, trained = ("-o", work / "out"), inputs.trained()
    sample = ("--tokens", 400, "--prompts", inputs.text, "--max-new-tokens", 16)
    yield Scenario(name="generate", words=("generate", inputs.teacher, *sample, *out))
    yield Scenario(name="correct", words=("correct-teacher", inputs.teacher, *trained, *out))
    words = ("cache-logits", inputs.teacher, *inputs.read(), "--top-k", 8, *out)
    yield Scenario(name="logits", words=words)
    distill = ("distill", inputs.student, *trained, *out)
    yield Scenario(name="distill", words=(*distill, "--teacher", inputs.teacher))
    stored = ("--teacher-logits", inputs.logits, "--top-k", 8)
    yield Scenario(name="distill (stored logits)", words=(*distill, *stored))
    yield Scenario(name="distill, two processes", words=(*distill, "--teacher", inputs.teacher), processes=2)


def _rest(inputs: Inputs, work: Path) -> Iterator[Scenario]:
    out, calibrated = ("-o", work / "out"), inputs.calibrated()
    sparsify = ("sparsify", inputs.student, *calibrated, *out)
    yield Scenario(name="sparsify (sparsegpt)", words=sparsify)
    ast = ("--sparsity-method", "ast", "--slorb", "trained", *inputs.trained())
    yield Scenario(name="sparsify (ast)", words=(*sparsify, *ast))
    yield Scenario(name="quantize", words=("quantize", inputs.student, "--fp8", *calibrated, *out))
    for name, (form, precision) in _FORMATS.items():
        source = inputs.fp8 if precision == "fp8" else inputs.student
        words = ("export", source, "--format", form, "--precision", precision, *out)
        yield Scenario(name=f"export {name}", words=words)
    edge = ("--format", "tensorrt-edge-llm", "--precision", "fp16", "--edge-llm-python", inputs.edge_python)
    yield Scenario(name="export tensorrt-edge-llm", words=("export", inputs.edge_model, *edge, *out))
    measured = ("--data", inputs.text, "--seq-len", 64, "--size", 2)
    yield Scenario(name="evaluate", words=("evaluate", inputs.teacher, inputs.student, *measured, *out))
    grid = ("--runtime", "torch", "--precision", "bf16", "--isl-osl", "8/2", "--batch-size", 1)
    words = ("bench", inputs.teacher, inputs.student, *grid, *out)
    yield Scenario(name="bench", words=words, measured=("*",))


def _runs(inputs: Inputs, work: Path) -> Iterator[Scenario]:
    out = ("-o", work / "out")
    recipe = inputs.recipe("run", sparsify={"pattern": "2:4", "method": "sparsegpt"}, quantize={"fp8": True})
    run = ("run", "--config", recipe, *out)
    common: dict[str, Any] = {"measured": _TIMED, "is_whole": True}
    yield Scenario(name="run", words=run, **common)
    small = ("run", "--config", inputs.recipe("small", repair={"method": "off"}), *out)
    yield Scenario(name="run --keep", words=(*small, "--keep", "student"), begins_with=small, **common)
    yield Scenario(name="clean", words=("clean", work / "out"), begins_with=small, **common)
    other = (*small, "--seed", 1, "--overwrite")
    yield Scenario(name="run --overwrite", words=other, begins_with=small, **common)
    again = (*small, "--learning-rate", "0.004", "--restart-from", "distill")
    yield Scenario(name="run --restart-from", words=again, begins_with=small, **common)
    plain = {"export": {"formats": ["huggingface"]}, "repair": {"method": "off"}}
    family = inputs.recipe("family", prune={}, target="75%,55%", **plain)
    yield Scenario(name="family", words=("run", "--config", family, *out), **common)
    cuts = inputs.recipe("interleave", interleave={"cuts": 2}, **plain)
    yield Scenario(name="interleave", words=("run", "--config", cuts, *out), **common)
    searched = inputs.recipe(
        "search", prune={}, target="70%", search={"candidates": 2, "tokens": 256}, **plain
    )
    yield Scenario(name="search", words=("run", "--config", searched, *out), **common)
