"""The additions that docs/extending.md shows: read from the page, added, and used from the command line."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.distance import jensenshannon
from torch.nn import functional
from transformers import AutoModelForCausalLM

from compressor.choices.losses import LOSSES
from compressor.pruning.plan import read_plan
from tests.integration.command import command_here, succeed_here, write_recipe
from tests.tiny_models import make_model, save_checkpoint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
EXAMPLE = re.compile(r"^<!-- (module|row): ([^\n]+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDED = {"arcee", "npz", "growing-cache", "down-norm", "jensen-shannon", "column-relative"}


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every module of the page under its name, and every row in its table."""
    names = set()
    for kind, place, code in EXAMPLE.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "module":
            module = ModuleType(place)
            monkeypatch.setitem(sys.modules, place, module)
            exec(compile(code, f"{PAGE.name}: {place}", "exec"), vars(module))  # noqa: S102 - our own page
        else:
            table = importlib.import_module(place.split()[0])
            row = eval(compile(code, f"{PAGE.name}: {place}", "eval"), vars(table))  # noqa: S307 - as above
            name = getattr(row, "name", None) or row.model_type
            monkeypatch.setitem(getattr(table, place.split()[1]), name, row)
            names.add(name)
    return names


def test_every_example_of_the_page_is_added(added: set[str]) -> None:
    assert added == ADDED
    assert PAGE.read_text(encoding="utf-8").count("```python") == len(ADDED) + 5


def logits(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, local_files_only=True)
    return model(ids, use_cache=False).logits.detach()


def test_the_family_is_pruned_distilled_and_verified(tmp_path: Path, tiny_text: Path) -> None:
    teacher = save_checkpoint(tmp_path / "arcee", make_model("arcee"))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        *(teacher, tiny_text),
        distill={"tokens": 512},
        export={"formats": ["huggingface", "npz"]},
    )
    summary = succeed_here("run", "--config", recipe, "-o", tmp_path / "out")
    assert summary["exports"]["npz"]["checks"]["num_equal_arrays"] > 10
    succeed_here("verify", tmp_path / "out")
    assert command_here("plan", teacher, "--target", "60%", "--formats", "tensorrt-llm").returncode == 3


def test_the_family_is_cut_as_if_neurons_were_set_to_zero(tmp_path: Path) -> None:
    teacher = save_checkpoint(tmp_path / "arcee", make_model("arcee"))
    words = ("--shape", "intermediate_size=128", "--importance", "down-norm", "--dtype", "float32")
    succeed_here("prune", teacher, *words, "-o", tmp_path / "pruned")
    tensors = load_file(teacher / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float64, local_files_only=True)
    plan = read_plan(tmp_path / "pruned" / "prune_plan.json")
    for index, layer in enumerate(model.model.layers):
        # The importance of the page, computed another way.
        size = (tensors[f"model.layers.{index}.mlp.down_proj.weight"].double() ** 2).sum(0)
        kept = sorted(size.argsort(descending=True)[:128].tolist())
        assert list(plan.kept["intermediate"][index]) == kept
        gone = [neuron for neuron in range(192) if neuron not in kept]
        layer.mlp.down_proj.weight.data[:, gone] = 0
    ids = torch.randint(0, 300, (2, 30))
    expected = model(ids, use_cache=False).logits.detach()
    torch.testing.assert_close(logits(tmp_path / "pruned", ids), expected, rtol=1e-5, atol=1e-5)


def test_the_format_refuses_an_altered_array(tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    words = ("--format", "npz", "--dtype", "float32")
    assert succeed_here("export", tiny_checkpoint, *words, "-o", made)["details"]["checks"]
    with np.load(made / "weights.npz") as found:
        arrays = dict(found)
    original = load_file(tiny_checkpoint / "model.safetensors")
    assert set(arrays) == set(original)
    assert all(np.array_equal(arrays[name], original[name].float().numpy()) for name in original)
    arrays["model.norm.weight"] = arrays["model.norm.weight"] + 1
    np.savez(made / "weights.npz", **arrays)
    assert command_here("verify", made, "--source", tiny_checkpoint).returncode == 8


def test_the_runtime_is_measured(tiny_checkpoint: Path, tmp_path: Path) -> None:
    student = save_checkpoint(tmp_path / "student", make_model(num_hidden_layers=2))
    words = ("--runtime", "growing-cache", "--isl-osl", "5/4", "--batch-size", "2", "--max-pairs", "5")
    out = tmp_path / "speed"
    command_here("bench", tiny_checkpoint, student, *words, "--precision", "fp32", "-o", out)
    results = json.loads((out / "results.json").read_text())
    assert {arm["runtime"] for arm in results["arms"]} == {"growing-cache"}
    assert "growing-cache" in (out / "report.md").read_text()
    done = command_here(
        "bench", tiny_checkpoint, student, *words, "--precision", "fp16", "-o", tmp_path / "x"
    )
    assert done.returncode in (2, 3)
    assert "fp16" in done.stderr


def test_the_runtime_chooses_the_tokens_that_transformers_does(tiny_checkpoint: Path) -> None:
    from bench.runtimes.growing_cache import GrowingCache  # type: ignore[import-not-found]

    session = GrowingCache().load(tiny_checkpoint, precision="fp32")
    chosen: list[torch.Tensor] = []
    forward = session._model.forward

    def recording(ids: torch.Tensor, **more: object) -> object:
        chosen.append(ids)
        return forward(ids, **more)

    session._model.forward = recording
    prompts = np.arange(10, dtype=np.int32).reshape(2, 5)
    timeline = session.generate(prompts, osl=6)
    assert (timeline.num_input_tokens, timeline.num_output_tokens) == ((5, 5), (6, 6))
    assert list(timeline.token_times_s) == sorted(timeline.token_times_s)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32, local_files_only=True)
    ids = torch.from_numpy(prompts.astype("int64"))
    for step in range(5):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(chosen[step + 1], ids[:, -1:])


def test_the_loss_is_the_divergence_of_scipy(tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path) -> None:
    student, teacher = torch.randn(7, 31), torch.randn(7, 31)
    found = LOSSES["jensen-shannon"].load()(student, teacher, temperature=2.0)
    q, p = (functional.softmax(one.double() / 2, dim=-1).numpy() for one in (student, teacher))
    expected = torch.tensor(jensenshannon(q, p, axis=1) ** 2 * 4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    pruned = save_checkpoint(tmp_path / "student", make_model(num_hidden_layers=2))
    words = ("--loss", "jensen-shannon", "--train-data", tiny_text, "--tokens", "512")
    words = (*words, "--context-length", "32", "--train-batch-size", "4", "--hidden-state-loss", "off")
    succeed_here("distill", pruned, "--teacher", tiny_checkpoint, *words, "-o", tmp_path / "distilled")


def test_the_sparsity_method_keeps_the_largest_scores(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    from compressor.calibration.sequential import Gram
    from compressor.choices.sparsity import SPARSITY_METHODS
    from compressor.sparsity.method import OneShotSettings

    weight, inputs = torch.randn(6, 8), torch.randn(50, 8)
    gram = Gram(total=torch.zeros(8, 8))
    gram.add(inputs)
    mask = SPARSITY_METHODS["column-relative"].load()(weight, gram, OneShotSettings()).keep_mask
    for row in range(6):
        for start in (0, 4):
            scores = {
                column: abs(weight[row, column].item())
                * inputs[:, column].norm().item()
                / weight[:, column].norm().item()
                for column in range(start, start + 4)
            }
            best = sorted(scores, key=lambda column: -scores[column])[:2]
            assert {column for column in range(start, start + 4) if mask[row, column]} == set(best)
    words = ("--sparsity-method", "column-relative", "--calib-data", tiny_text)
    words = (*words, "--calib-size", "4", "--calib-seq-len", "32")
    succeed_here("sparsify", tiny_checkpoint, *words, "-o", tmp_path / "sparse")
