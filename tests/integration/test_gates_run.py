"""Gates at the end of real runs of a tiny model, and by the command on a finished run."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import CompressExportError
from tests.integration.command import command_here, succeed_here, write_recipe
from tests.performance.gate_results import copied_run, require_no_network, without_network, zero_norm
from tests.tiny_models import edit_tensors, make_model, save_checkpoint


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run whose gates pass: its directory and its summary."""
    directory = tmp_path_factory.mktemp("gates")
    recipe = write_recipe(
        directory / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        distill={"learning_rate": 2e-3},
        export={"formats": ["onnx"]},
        gates={"perplexity_ratio": 1000, "size": 10**9, "formats": {"onnx": 0.99}},
    )
    return directory / "out", succeed_here("run", "--config", recipe, "-o", directory / "out")


def test_the_verdicts_are_in_the_summary_and_on_the_card(finished: Any) -> None:
    out, summary = finished
    rows = {row["gate"]: row for row in summary["gates"]["rows"]}
    assert {name: row["verdict"] for name, row in rows.items()} == dict.fromkeys(
        ("perplexity_ratio", "formats", "size"), "PASS"
    )
    models = summary["evaluation"]["models"]
    ratio = models["distilled"]["perplexity"] / models["teacher"]["perplexity"]
    assert rows["perplexity_ratio"]["value"] == pytest.approx(ratio, rel=1e-6)
    student = [path for path in (out / "student").rglob("*") if path.is_file()]
    counted = sum(path.stat().st_size for path in student if path.name != "artifact.json")
    assert rows["size"]["value"] == counted
    assert "## Gates: PASS" in (out / "README.md").read_text()
    succeed_here("verify", out)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--perplexity-ratio", "0.001"), 6, "perplexity-ratio of student at most"),
        (("--kl", "1e-9"), 6, "kl of student at most 1e-09 nats"),
        (("--top1", "1"), 6, "top1 of student at least 1"),
        (("--perplexity", "1.01"), 6, "perplexity of student at most 1.01"),
        (("--size", "10B"), 7, "INFEASIBLE"),
        (("--perplexity-ratio", "0.001", "--fail-on", "never"), 0, ""),
        (("--speedup", "1.1x"), 2, "needs the benchmark"),
        (
            ("--speedup", "1.1x"),
            2,
            "where: gates.speedup (--speedup)\n  try: leave this gate out",
        ),
        (("--kl", "much"), 2, "--kl cannot have this value"),
    ],
)
def test_a_finished_run_is_judged_by_other_gates(
    finished: Any, options: tuple[str, ...], code: int, words: str
) -> None:
    done = command_here("gate", finished[0], *options)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_a_run_that_fails_its_gates_is_complete_and_says_so(
    finished: Any, tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    out, _ = finished
    done = command_here("run", "--config", out / "recipe.yaml", "-o", out, "--gate-kl", "1e-9", "--json")
    assert done.returncode == 6
    assert json.loads(done.stdout)["gates"]["rows"][1]["verdict"] == "REGRESSION"
    assert "| kl | student | at most 1e-09 nats |" in (out / "README.md").read_text()
    succeed_here("verify", out)
    succeed_here("run", "--config", out / "recipe.yaml", "-o", out, "--gate-kl", "100")


def test_a_student_of_constant_output_fails_every_gate(tiny_text: Path, tmp_path: Path) -> None:
    """The teacher answers; its student, whose final norm is zero, gives the same logits to everything."""
    teacher = save_checkpoint(tmp_path / "teacher", make_model())
    broken = save_checkpoint(tmp_path / "broken", make_model())
    edit_tensors(broken, lambda tensors: tensors["model.norm.weight"].zero_())
    summary = succeed_here(
        "evaluate",
        teacher,
        broken,
        "--data",
        tiny_text,
        "--seq-len",
        64,
        "--size",
        4,
        "-o",
        tmp_path / "quality",
    )
    models = summary["models"]
    assert models["teacher"]["information"] > 0.5
    assert models["broken"]["information"] == pytest.approx(0, abs=1e-5)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        *(broken, tiny_text),
        distill={"tokens": 0},
        prune={"shape": {"num_hidden_layers": 2}, "importance": "random"},
        repair={"method": "off"},
        evaluate={"data": str(tiny_text)},
        export={"formats": ["huggingface"]},
        gates={"perplexity_ratio": 1000, "kl": 100, "top1": 0.0, "perplexity": 1e9, "size": 10**9},
    )
    done = command_here("run", "--config", recipe, "-o", tmp_path / "out", "--json")
    assert done.returncode == 6
    rows = json.loads(done.stdout)["gates"]["rows"]
    assert {row["gate"]: row["verdict"] for row in rows} == dict.fromkeys(
        ("perplexity_ratio", "perplexity", "kl", "top1", "size"), "ANOMALOUS"
    )


def test_a_good_teachers_constant_student_fails_what_it_passed_before(finished: Any, tmp_path: Path) -> None:
    """The student of a run that passed, with a final norm of zeros; what follows is made again of it."""
    out, summary = finished
    assert {row["verdict"] for row in summary["gates"]["rows"]} == {"PASS"}
    parts = ("student", "exports", "stages/evaluate")
    broken = copied_run(out, tmp_path / "broken", but=parts)
    zero_norm(broken / "stages" / "distill")
    gates = ("--gate-kl", "100", "--gate-top1", "0")
    done = command_here("run", "--config", broken / "recipe.yaml", "-o", broken, *gates, "--json")
    assert done.returncode == 6
    rows = json.loads(done.stdout)["gates"]["rows"]
    assert {row["gate"]: row["verdict"] for row in rows} == dict.fromkeys(
        ("perplexity_ratio", "kl", "top1", "formats", "size"), "ANOMALOUS"
    )


def test_a_program_that_runs_without_a_network_reaches_nobody() -> None:
    """Not even a server of this machine, which answers a program that runs as usual."""
    try:
        require_no_network()
    except CompressExportError as error:
        pytest.skip(str(error))
    with socket.create_server(("127.0.0.1", 0)) as server:
        asks = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
        assert subprocess.run([sys.executable, "-c", asks], check=False).returncode == 0
        assert without_network("-c", asks).returncode != 0


def test_a_run_without_gates_has_none(finished: Any, tmp_path: Path) -> None:
    assert command_here("gate", tmp_path).returncode == 2
