"""Changes of valid files: always bytes, never the file that was given alone, and equal for equal choices."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import ones

from tests.fuzz.gguf_layout import mutated_gguf
from tests.fuzz.kinds.recipes import mutated_yaml
from tests.fuzz.kinds.texts import mutated_lines, mutated_task
from tests.fuzz.mutations import Draw, mutated_bytes, mutated_json, mutated_safetensors, mutated_text
from tests.gguf_files import TinyGguf

TREE = {
    "a": [1, 2.5, math.nan, math.inf, -math.inf, True, None, "text", {"b": []}],
    "c": {"d": {"e": ["x", "x"]}, "f": 10**30},
}
JSON = json.dumps(TREE).encode()
CHANGES: dict[str, tuple[Callable[[Draw, bytes], bytes], bytes]] = {
    "bytes": (mutated_bytes, b"abc" * 40),
    "no bytes": (mutated_bytes, b""),
    "json": (mutated_json, JSON),
    "no json": (mutated_json, b""),
    "text": (mutated_text, b"one\ntwo\n\nthree"),
    "yaml": (mutated_yaml, b"a: 1\nb: [x, {c: 2.5}]\n"),
    "lines": (mutated_lines, b'{"text": "a"}\n{"text": "b"}\n'),
    "task": (mutated_task, b"task: a\nmetric_list: [{metric: acc}]\n"),
    "safetensors": (mutated_safetensors, save({"a": ones(3, 5), "b": ones(7)})),
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_choice_gives_bytes(name: str) -> None:
    change, content = CHANGES[name]
    found = set()

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        changed = change(data.draw, content)
        assert isinstance(changed, bytes)
        found.add(changed)

    attempt()
    assert len(found) > 20


def test_a_gguf_file_is_changed_where_its_values_are(tmp_path: Path) -> None:
    content = TinyGguf(hidden_size=32, intermediate_size=64, head_dim=8).write(tmp_path / "a").read_bytes()
    same_data = 0

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        nonlocal same_data
        changed = mutated_gguf(data.draw, content)
        assert isinstance(changed, bytes)
        same_data += changed[-4096:] == content[-4096:]

    attempt()
    assert same_data > 20
