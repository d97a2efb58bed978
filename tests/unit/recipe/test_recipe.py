from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from compressor.core.errors import UsageError
from compressor.models.source import plan_dims
from compressor.planning.plan import make_plan
from compressor.recipe.recipe import Distill, Recipe, dump_recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return written(tmp_path, "model: llama3.1-8b\ntarget: 4b\ndistill:\n  tokens: 1000\n")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_override_the_file(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, {"distill.tokens": 5, "calibration.size": 7, "seed": 3})

    assert (recipe.target, recipe.distill.tokens, recipe.calibration.size, recipe.seed) == ("4b", 5, 7, 3)


def test_flags_alone_suffice() -> None:
    recipe = load_recipe(None, {"model": "smollm2-135m", "quantize.fp8": True})

    expected = ("huggingface", "huggingface-fp8", "tensorrt-llm-fp8", "onnx", "onnx-int4")
    assert recipe.export_formats() == expected


def test_a_dump_holds_every_field_and_is_read_again(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, {"prune.shape": {"hidden_size": 432}, "export.formats": ["onnx"]})
    dumped = dump_recipe(recipe)

    assert load_recipe(written(tmp_path, dumped), {}) == recipe
    assert set(yaml.safe_load(dumped)["distill"]) == set(Distill.model_fields)


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("model: m\ntargot: 4b\n", "targot", "target"),
        ("model: m\ndistill:\n  token: 5\n", "distill.token", "tokens"),
        ("model: m\ncalib: {}\n", "calib", "calibration"),
        (
            "model: m\ndistill: {domains: [{name: a, data: b, weights: 2}]}",
            "distill.domains.0.weights",
            "weight",
        ),
    ],
)
def test_unknown_key_is_answered_with_the_nearest(tmp_path: Path, text: str, key: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"unknown recipe key '{key}'") as caught:
        load_recipe(written(tmp_path, text), {})
    assert nearest in str(caught.value.hint)
    assert nearest in str(caught.value.expected)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("target: 4b\n", "model"),
        ("model: m\nseed: -1\n", "seed"),
        ("model: m\ndistill: {tokens: -5}\n", "distill.tokens"),
        ("model: m\nbench: {isl_osl: [[1]]}\n", "bench.isl_osl"),
        ("model: m\ndevice: tpu\n", "device"),
    ],
)
def test_bad_value_names_its_field(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"recipe value '{field}")):
        load_recipe(written(tmp_path, text), {})


@pytest.mark.parametrize("text", ["quantize: fp8", "quantize:", "quantize: [fp8]"])
def test_a_section_without_its_keys_is_told_how_it_is_written(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="'quantize' is a section") as caught:
        load_recipe(written(tmp_path, f"model: m\n{text}\n"), {})
    assert "fp8, fp8_kv_cache" in str(caught.value.expected)
    assert "indented" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("fp8: true", "quantize.fp8"),
        ("shape: {hidden_size: 8}", "prune.shape"),
        ("tokens: 1b", "distill.tokens"),
    ],
)
def test_a_key_of_a_section_at_the_top_is_answered_with_its_place(
    tmp_path: Path, text: str, meant: str
) -> None:
    with pytest.raises(UsageError, match="unknown recipe key") as caught:
        load_recipe(written(tmp_path, f"model: m\n{text}\n"), {})
    assert meant in str(caught.value.hint)


def test_a_list_is_not_told_to_be_quoted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'model' is not usable") as caught:
        load_recipe(written(tmp_path, "model: [m]\n"), {})
    assert "quotes" not in str(caught.value.hint)


@pytest.mark.parametrize("section", ["distill: 5\n", "distill:\n", "distill: [1]\n"])
def test_override_in_a_section_that_is_none(tmp_path: Path, section: str) -> None:
    with pytest.raises(UsageError, match="'distill'"):
        load_recipe(written(tmp_path, f"model: m\n{section}"), {"distill.tokens": 5})


@pytest.mark.parametrize("text", ["", "- model\n", "model: [unclosed\n", "4b"])
def test_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"not a mapping|not valid YAML"):
        load_recipe(written(tmp_path, text), {})


def test_recipes_are_frozen() -> None:
    recipe = Recipe(model="m")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(path, {}).target is not None


@pytest.mark.parametrize(
    ("name", "shape", "tokens", "batch_size", "learning_rates", "warmup"),
    [
        ("llama3.1-minitron-4b-width", "4b-width", 94e9, 1152, (1e-4, 1e-5), 40),
        ("llama3.1-minitron-4b-depth", "4b-depth", 94e9, 1152, (1e-4, 1e-5), 40),
        ("mn-minitron-8b", "mn-minitron-8b", 380e9, 768, (1e-4, 4.5e-7), 60),
    ],
)
def test_published_recipes_hold_the_published_settings(
    name: str, shape: str, tokens: float, batch_size: int, learning_rates: tuple[float, float], warmup: int
) -> None:
    """arXiv 2408.11796."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", {})
    distill = recipe.distill
    plan = make_plan(recipe, plan_dims(recipe.model))

    assert plan.published_shape == shape
    assert (distill.tokens, distill.batch_size, distill.context_length) == (tokens, batch_size, 8192)
    floor = distill.learning_rate * distill.min_learning_rate_ratio
    assert (distill.learning_rate, floor) == pytest.approx(learning_rates)
    assert (distill.warmup_steps, distill.loss, distill.hidden_state_loss) == (warmup, "forward-kl", "off")
    assert distill.correction.learning_rate == pytest.approx(distill.learning_rate / 5)
    assert (distill.correction.mode, distill.correction.warmup_steps) == ("first", 120)


@pytest.mark.parametrize(
    ("text", "count"),
    [("4b", 4e9), ("4.5B", 4.5e9), ("100k", 1e5), ("7M", 7e6), ("4_500_000_000", 4.5e9), (" 12 ", 12)],
)
def test_counts(text: str, count: float) -> None:
    assert load_recipe(None, {"model": "m", "distill.tokens": text}).distill.tokens == count


@pytest.mark.parametrize("text", ["60%", "x", "", "1.2.3", "_1"])
def test_bad_counts(text: str) -> None:
    with pytest.raises(UsageError, match=r"distill\.tokens") as caught:
        load_recipe(None, {"model": "m", "distill.tokens": text})
    assert "is not a count such as 4b" in str(caught.value.expected)


def test_choices_that_contradict_each_other_are_told_without_the_rest_of_their_section() -> None:
    both = {"model": "smollm2-135m", "distill.warmup_steps": 3, "distill.warmup_ratio": 0.1}
    with pytest.raises(UsageError, match="'distill' do not go together") as caught:
        load_recipe(None, both)
    assert "warmup_steps and warmup_ratio" in str(caught.value.found)
    assert "context_length" not in str(caught.value.found)
