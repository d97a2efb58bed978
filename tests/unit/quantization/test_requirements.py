"""An FP8 cache is refused, before any work, where ModelOpt does not write its scales."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor import api
from compressor.core.errors import DependencyError
from compressor.pipeline.consistency import require_consistent
from compressor.quantization import requirements
from compressor.recipe.recipe import Quantize, load_recipe

CACHE = Quantize(fp8=True, fp8_kv_cache=True)


@pytest.mark.parametrize("old", ["0.37.0", "0.37.1.post1", "0.9"])
def test_a_version_that_clamps_the_scales_is_refused_by_plan_and_by_quantize(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "version_of", lambda _name: old)
    fields = {"model": "llama3.1-8b", "target": "4b", "quantize.fp8": True}
    with pytest.raises(DependencyError, match="raises the scales") as caught:
        require_consistent(load_recipe(None, {**fields, "quantize.fp8_kv_cache": True}))
    assert (caught.value.found, "leave out --fp8-kv-cache" in str(caught.value.hint)) == (old, True)
    require_consistent(load_recipe(None, fields))
    with pytest.raises(DependencyError, match="raises the scales"):
        api.quantize("no model is read", tmp_path / "out", settings=CACHE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("new", ["0.38.0", "0.47.0", "1.0", "absent"])
def test_other_versions_are_taken(new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "version_of", lambda _name: new)
    requirements.require_cache_scales(CACHE)
