"""Two processes over gloo: the same course as one, sharded for real, and exact after a kill."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from compressor.training.probes import check_probes, read_probes
from tests.conftest import TextMaker
from tests.integration.command import TIMEOUT_S, succeed_here, write_recipe
from tests.tiny_models import make_model

SCRIPT = "tests.integration.train_in_processes"
ROOT = Path(__file__).resolve().parents[2]


def torchrun(module: str, *arguments: str, processes: int, may_fail: bool = False) -> Any:
    """Run a module in so many processes of one thread each."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else ()), "-m", module, *arguments],
        check=False,
        cwd=ROOT,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 or may_fail, done.stderr
    return done


def launch(out: Path, *arguments: object, processes: int) -> int:
    """Train; returns the exit code."""
    words = (str(out), *map(str, arguments))
    code: int = torchrun(SCRIPT, *words, processes=processes, may_fail=bool(arguments[-1])).returncode
    return code


def log_of(out: Path) -> dict[str, Any]:
    log: dict[str, Any] = json.loads((out / "log.json").read_text(encoding="utf-8"))
    return log


def order_of(out: Path) -> list[str]:
    """The sequences of every step that was begun."""
    return (out / "order.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undisturbed runs by one process and by two sharded ones, tied and untied."""
    root = tmp_path_factory.mktemp("runs")
    for tied in ("tied", "untied"):
        launch(root / f"one-{tied}", tied, "fsdp", 8, 0, processes=1)
        launch(root / f"two-{tied}", tied, "fsdp", 2, 0, processes=2)
    return root


@pytest.mark.parametrize("run", ["one-tied", "two-tied", "two-untied"])
def test_probes_of_sharded_weights_are_those_of_the_whole_student(runs: Path, run: str) -> None:
    """Against plain transformers on the gathered weights, in this process."""
    student = make_model(tie_word_embeddings=run.endswith("-tied"), hidden_size=32)
    missing, left_over = student.load_state_dict(load_file(runs / run / "student.safetensors"), strict=False)
    assert (missing, left_over) == (["lm_head.weight"] if run.endswith("-tied") else [], [])
    assert check_probes(student, read_probes(runs / run), where=run) < 1e-5


@pytest.mark.parametrize("tied", ["tied", "untied"])
def test_two_sharded_processes_follow_one(runs: Path, tied: str) -> None:
    one, two = log_of(runs / f"one-{tied}"), log_of(runs / f"two-{tied}")
    assert len(one["loss"]) == 10
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
    for name in ("0", "1"):
        assert one["domain_loss"][name] == pytest.approx(two["domain_loss"][name], rel=1e-5)


def test_two_copies_of_single_windows_follow_one_of_eight(runs: Path, tmp_path: Path) -> None:
    """1 x 8 equals 8 x 1, with unequal numbers of counted tokens."""
    launch(tmp_path / "copies", "tied", "ddp", 1, 0, processes=2)
    assert log_of(tmp_path / "copies")["loss"] == pytest.approx(log_of(runs / "one-tied")["loss"], rel=1e-5)


def test_a_sharded_run_killed_at_any_step_ends_in_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    step = random.SystemRandom().randint(1, 19)
    assert launch(tmp_path / "killed", "tied", "fsdp", 2, step, processes=2) != 0, f"killed after {step}"
    launch(tmp_path / "killed", "tied", "fsdp", 2, 0, processes=2)
    assert log_of(tmp_path / "killed") == log_of(runs / "two-tied"), f"killed after {step}"
    student = "student.safetensors"
    assert (tmp_path / "killed" / student).read_bytes() == (runs / "two-tied" / student).read_bytes()


@pytest.mark.parametrize(
    ("before", "after", "sharding"),
    [(4, 2, "fsdp"), (2, 1, "fsdp"), (1, 3, "fsdp"), (3, 2, "ddp")],
)
def test_killed_and_continued_on_another_number_of_processes(
    runs: Path, tmp_path: Path, before: int, after: int, sharding: str
) -> None:
    """Three processes cannot share a batch of eight equally."""
    out, undisturbed = tmp_path / "out", runs / "one-tied"
    assert launch(out, "tied", sharding, 1, 11, processes=before) != 0
    assert (out / "checkpoints" / "checkpoint-8" / "complete").is_file()
    launch(out, "tied", sharding, 1, 0, processes=after)
    found, expected = log_of(out), log_of(undisturbed)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert found["domain_loss"]["1"] == pytest.approx(expected["domain_loss"]["1"], rel=1e-4)
    # The steps after the checkpoint were taken twice, from the same sequences.
    assert sorted(set(order_of(out))) == sorted(order_of(undisturbed))
    assert len(order_of(out)) > len(order_of(undisturbed)) == 20


def test_the_whole_pipeline_runs_in_two_processes(
    tmp_path: Path, tiny_checkpoint: Path, make_text: TextMaker
) -> None:
    """Training is shared, all else is the main process's; one process finds everything done."""
    config = write_recipe(
        tmp_path / "recipe.yaml",
        *(tiny_checkpoint, make_text()),
        calibration={"seq_len": 64},
        distill={
            "data": str(make_text(seed=1)),
            "tokens": 1024,
            "correction": {"mode": "first", "tokens": 512},
            "generate": {"tokens": 200, "max_new_tokens": 32},
        },
        sparsify={"pattern": "2:4", "method": "ast"},
        export={"formats": ["huggingface"]},
    )
    command = ("run", "--config", str(config), "-o", str(tmp_path / "out"), "--json")
    done = torchrun("compressor.cli.main", *command, processes=2)
    summary = json.loads(done.stdout)
    assert summary["distill"]["schedule"]["processes"] == 2
    assert list(summary["distill"]["domains"]) == ["text", "generated"]
    assert summary["recover"]["masks"] == "moving"
    assert summary["exports"]["huggingface"]["checks"]["sparsity"]["pattern"] == "2:4"
    models = summary["evaluation"]["models"]
    assert list(models)[:2] == ["teacher", "corrected teacher"]
    assert succeed_here(*command)["distill"] == summary["distill"]


def test_held_out_losses_leave_sharded_weights_as_they_were() -> None:
    """Checkpoints are written right after them: they must hold the float32 weights, not gathered ones."""
    torchrun(SCRIPT, processes=2)


def test_losses_on_states_and_a_teacher_corrected_alongside_follow_one_process(
    tmp_path: Path, tiny_checkpoint: Path, tiny_text: Path
) -> None:
    """Sharded projection and teacher; bf16 weights are gathered where one process casts, hence 1e-3."""
    student = tmp_path / "student"
    succeed_here(
        *("prune", tiny_checkpoint, "--shape", "hidden_size=48,intermediate_size=128,num_hidden_layers=2"),
        *("--calib-data", tiny_text, "--calib-size", 4, "--calib-seq-len", 32, "-o", student),
    )
    losses = []
    for processes in (1, 2):
        done = torchrun(
            "compressor.cli.main",
            *("distill", str(student), "--teacher", str(tiny_checkpoint), "--train-data", str(tiny_text)),
            *("--tokens", "2560", "--context-length", "32", "--train-batch-size", "4"),
            *("--hidden-state-loss", "cosine", "--embedding-loss", "cosine", "--layer-pairs", "1:0"),
            *("--teacher-correction", "alongside", "--sharding", "fsdp" if processes > 1 else "auto"),
            *("-o", str(tmp_path / str(processes)), "--json"),
            processes=processes,
        )
        losses.append(json.loads(done.stdout)["details"]["curve"]["loss"])
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
