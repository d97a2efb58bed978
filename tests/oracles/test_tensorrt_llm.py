"""Golden files against the ModelOpt installed here, where it still has its TensorRT-LLM exporter."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

from tests.golden_students import golden_config
from tests.oracles.record_tensorrt_llm import (
    DECODERS,
    DTYPES,
    GOLDEN,
    TP_SIZES,
    golden_model,
    modelopts,
)

MODELOPT = Version(version("nvidia-modelopt"))
KNOWN = {name: decoder for name, decoder in DECODERS.items() if decoder == "llama" or MODELOPT.minor >= 47}
# The exporter leaves rope out under transformers 5; and says which version and rank wrote the file.
OF_THE_WRITER = ("producer", "rotary_base", "rotary_scaling", "rotary_pct", "rank")

pytestmark = pytest.mark.skipif(Version("0.49") <= MODELOPT, reason="this ModelOpt has no such exporter")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model_type", KNOWN)
def test_modelopt_still_writes_the_golden_files(model_type: str, precision: str) -> None:
    golden = json.loads((GOLDEN / f"{model_type}-{precision}.json").read_text(encoding="utf-8"))
    dtype = getattr(torch, DTYPES[precision])
    for tp_size in TP_SIZES:
        model = golden_model(golden_config(model_type, DTYPES[precision]))
        config, ranks = modelopts(model, DECODERS[model_type], dtype, tp_size)
        expected = golden["by_tp_size"][str(tp_size)]
        assert ranks == expected["ranks"]
        for name, value in expected["config"].items():
            if name not in OF_THE_WRITER and MODELOPT.minor >= 47:
                assert config[name] == value, name
