from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bench.design.arms import Arm
from bench.report.arm_record import record_of
from bench.report.results import Absent

NO_PEAK = Absent(absent="by hand")


@pytest.mark.parametrize(
    ("sizes", "weights", "engine"),
    [
        ({"inner/model-2.safetensors": 5, "model-1.safetensors": 7, "tokenizer.json": 100}, 12, None),
        ({"genai_config.json": 1, "model.onnx": 2, "model.onnx.data": 9}, 11, None),
        ({"config.json": 1, "rank0.engine": 3, "rank1.engine": 4}, None, 7),
        ({"config.json": 400, "random_weights.json": 10}, None, None),
    ],
)
def test_every_file_is_digested_and_counted_under_its_own_name(
    tmp_path: Path, sizes: dict[str, int], weights: int | None, engine: int | None
) -> None:
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    record = record_of(
        Arm(id="a", model="a", precision="fp32", path=tmp_path, runtime="r", num_parameters=1), NO_PEAK
    )
    assert {name: file.size_bytes for name, file in record.files.items()} == sizes
    assert list(record.files) == list(sizes)
    assert all(record.files[name].sha256 == hashlib.sha256(b"x" * sizes[name]).hexdigest() for name in sizes)
    found = [None if isinstance(n, Absent) else n for n in (record.weight_bytes, record.engine_bytes)]
    assert (*found, record.file_bytes) == (weights, engine, sum(sizes.values()))
