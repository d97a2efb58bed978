from __future__ import annotations

from pathlib import Path

import pytest

from bench.design.grid import Cell, by_memory, grid_of, wants_largest_batch
from bench.design.shape_only import shape_of
from compressor.choices.grids import PRESETS, PUBLISHED_ISL_OSL, Preset
from compressor.cli.bench import run
from compressor.core.errors import UsageError
from compressor.models.presets import PRESETS as PUBLISHED_SHAPES
from compressor.recipe.option import choices_of
from compressor.recipe.recipe import Bench, load_recipe
from tests.gpu.bench_study import PUBLISHED, bench_words


def test_grid_is_every_length_at_every_batch_size_once() -> None:
    config = Bench(isl_osl=((128, 64), (16, 8), (128, 64)), batch_sizes=(1, 4))
    assert grid_of(config) == (Cell(128, 64, 1), Cell(128, 64, 4), Cell(16, 8, 1), Cell(16, 8, 4))


def test_the_largest_cell_is_the_one_with_most_cached_tokens_then_longest_prefill() -> None:
    cells = (Cell(10, 90, 1), Cell(90, 10, 1), Cell(10, 10, 4), Cell(50, 50, 2))
    assert by_memory(cells) == [Cell(50, 50, 2), Cell(90, 10, 1), Cell(10, 90, 1), Cell(10, 10, 4)]


def test_a_batch_size_per_model_makes_a_cell_of_two_parts() -> None:
    cell = Cell(128, 64, 32, 64)
    assert (cell.baseline, cell.candidate) == (Cell(128, 64, 32), Cell(128, 64, 64))
    assert str(cell) == "128/64 x 32:64"
    alike = Cell(128, 64, 8)
    assert (alike.baseline, alike.candidate) == (alike, alike)


def test_the_blogs_preset_measures_its_batches_and_equal_ones() -> None:
    cells = grid_of(Bench(preset="minitron-blog"))
    assert [str(cell) for cell in cells[:3]] == ["128/128 x 32", "128/128 x 64", "128/128 x 32:64"]
    assert len(cells) == 3 * len(PUBLISHED_ISL_OSL)


def test_every_preset_of_the_recipe_and_of_the_command_exists() -> None:
    assert set(choices_of(Bench.model_fields["preset"])) == set(PRESETS)
    assert wants_largest_batch(Bench(preset="published"))
    assert not wants_largest_batch(Bench(preset="quick"))
    with pytest.raises(ValueError, match="preset quick sets largest_batch"):
        Bench(preset="quick", largest_batch=True)
    assert wants_largest_batch(Bench(largest_batch=True))


def test_a_preset_is_an_entry_of_the_table_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Preset(help="One cell.", isl_osl=((4, 2),), batch_sizes=(3,), source="a test")
    monkeypatch.setitem(PRESETS, "toy", toy)
    assert choices_of(Bench.model_fields["preset"])["toy"] == "One cell."
    assert grid_of(Bench(preset="toy")) == (Cell(4, 2, 3),)
    with pytest.raises(ValueError, match="'other' is none of quick, published, minitron-blog, toy"):
        Bench(preset="other")


def test_the_gpu_studys_command_line_is_the_published_grid(tmp_path: Path) -> None:
    words = bench_words(PUBLISHED, tmp_path)
    given = run.make_context("run", words[1:]).params
    options = {"bench.isl_osl": given["bench__isl_osl"], "bench.batch_sizes": given["bench__batch_sizes"]}
    bench = load_recipe(None, {"model": "m", **options}).bench
    assert bench.isl_osl == PUBLISHED_ISL_OSL
    assert (bench.batch_sizes, bench.batch_pairs, bench.largest_batch) == ((32, 64), ((32, 64),), True)
    assert [shape_of(model) for model in given["models"]] == [
        PUBLISHED_SHAPES[name].dims for name in ("llama3.1-8b", "4b-width", "4b-depth")
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("1,8", {"batch_sizes": (1, 8), "batch_pairs": (), "largest_batch": False}),
        ("32:64, max", {"batch_sizes": (), "batch_pairs": ((32, 64),), "largest_batch": True}),
    ],
)
def test_batches_are_read_from_the_command_line(given: str, expected: dict[str, object]) -> None:
    overrides = {"model": "m", "bench.batch_sizes": given, "bench.batch_pairs": ((9, 9),)}
    assert load_recipe(None, overrides).bench == Bench().model_copy(update=expected)


@pytest.mark.parametrize("given", ["0", "1:2:3", "a", "8:", "-1", ""])
def test_batches_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(UsageError, match="is not a batch size"):
        load_recipe(None, {"model": "m", "bench.batch_sizes": given})
