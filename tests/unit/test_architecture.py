"""Rules of the source that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.models.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("compressor", "exporters", "bench")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
# The table itself, and the published models, whose type is one of the facts.
# The third names pre-tokenizers, which llama.cpp calls after the models that had them first; the fourth is
# what TensorRT-LLM's own classes read, by their names, and checks what is written by the first.
FAMILY_FILES = (
    "compressor/models/families.py",
    "compressor/models/presets.py",
    "compressor/models/gguf/pretokenizers.py",
    "exporters/tensorrt_llm/fields.py",
)
FAMILY_WORDS = re.compile(
    "|".join((*FAMILIES, "qwen", "gemma", "phi", "gpt_?neox", "opt(?=ForCausalLM)")), re.IGNORECASE
)
MACHINE_PATHS = re.compile(r"/(?:home|root|Users|work|tmp|mnt)/\w|\.\./shared")
HEAVY = ("torch", "transformers", "numpy", "scipy", "onnx", "onnxruntime", "modelopt", "datasets")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def docstrings_of(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def strings_of(tree: ast.AST) -> Iterator[ast.Constant]:
    """String constants that are not docstrings."""
    skipped = {id(docstring) for docstring in docstrings_of(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node


def branches_on_family(tree: ast.AST) -> Iterator[int]:
    """Lines that compare with, look up, or search for a family's name."""
    for node in ast.walk(tree):
        operands: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("startswith", "endswith", "find", "index", "count"):
                operands = list(node.args)
        elif isinstance(node, ast.match_case):
            operands = [part.value for part in ast.walk(node.pattern) if isinstance(part, ast.MatchValue)]
        elif isinstance(node, ast.Dict):
            operands = [key for key in node.keys if key is not None]
        for operand in operands:
            if any(FAMILY_WORDS.search(str(string.value)) for string in strings_of(operand)):
                yield node.lineno if hasattr(node, "lineno") else operand.lineno


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if relative(path) not in FAMILY_FILES], ids=relative
)
def test_only_the_table_knows_families(path: Path) -> None:
    lines = list(branches_on_family(ast.parse(path.read_text(encoding="utf-8"))))
    assert not lines, f"{relative(path)} branches on a family's name at {lines}: ask models/families.py"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('x = "llama" in name', True),
        ('x = config["model_type"] == "mistral"', True),
        ('x = name.startswith("Llama")', True),
        ('x = {"qwen2": 1}[name]', True),
        ('match name:\n    case "nemotron":\n        pass', True),
        ('"""Like llama == llama."""', False),
        ('x = f"Llama writes {name}"', False),
        ("x = name == 'other'", False),
    ],
)
def test_the_search_for_families_finds_them(code: str, found: bool) -> None:
    assert bool(list(branches_on_family(ast.parse(code)))) is found


def test_no_file_for_leftovers() -> None:
    everything = [*SOURCES, *(ROOT / "tests").rglob("*.py")]

    assert not [relative(path) for path in everything if path.stem in ("utils", "helpers", "common", "misc")]


def test_no_paths_of_a_machine() -> None:
    found = [
        f"{relative(path)}: {string.value!r}"
        for path in SOURCES
        for string in strings_of(ast.parse(path.read_text(encoding="utf-8")))
        if MACHINE_PATHS.search(str(string.value))
    ]
    assert not found


def test_no_model_is_ever_unpickled() -> None:
    pattern = re.compile(r"import pickle|pickle\.loads?\(|torch\.load\((?!.*weights_only=True)")

    assert not [relative(path) for path in SOURCES if pattern.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]

    assert len(text.splitlines()) <= 500
    assert not [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60]


def imported_by(code: str) -> set[str]:
    """Heavy packages in `sys.modules` after `code` ran in a fresh process."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()} & set(HEAVY)


@pytest.mark.parametrize("arguments", ["--help", "--version", "run --help", "plan --help", "bench --help"])
def test_help_imports_nothing_heavy(arguments: str) -> None:
    code = f"sys.argv[1:] = {arguments.split()!r}; from compressor.cli.main import main; main()"

    assert imported_by(code) == set()


@pytest.mark.parametrize("target", ["4b", "6b,4b"])
def test_planning_a_published_model_imports_nothing_heavy(target: str) -> None:
    arguments = ["plan", "llama3.1-8b", "--target", target, "--json"]
    code = f"sys.argv[1:] = {arguments!r}; from compressor.cli.main import main; main()"

    assert imported_by(code) == set()
