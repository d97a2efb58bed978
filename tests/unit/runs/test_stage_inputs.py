"""What makes finished work that of the same inputs: options, sources, texts, and what was read."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import UsageError, VerificationError
from compressor.data.sources import source_fingerprint
from compressor.runs.inputs import comparable, differences, refuse_difference
from tests.unit.runs.bed import Bed, Config, begin


def test_an_artifact_names_every_text_on_the_way_to_it(bed: Bed, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("read by this stage")
    bed.source = replace(bed.source, texts=("read before",))
    bed.context.teacher = replace(bed.source, texts=("read by the teacher",))
    bed.context.others = {"stored": replace(bed.source, texts=("read by another",))}

    artifact = bed.execute(Config(text=str(text))).artifact

    read = {"read before", "read by the teacher", "read by another", source_fingerprint(str(text))}
    assert artifact.texts == tuple(sorted(read))


@pytest.mark.parametrize("finished", [True, False])
def test_changed_option_is_refused_with_what_changed(bed: Bed, finished: bool) -> None:
    begin(bed, finished)

    with pytest.raises(UsageError, match=r"config\.width: 1 -> 2") as caught:
        bed.execute(Config(width=2))
    assert "compress-export widen" in str(caught.value.hint)
    assert "--overwrite" in str(caught.value.hint)
    assert len(bed.runs) == 1


def test_changed_source_seed_or_data_is_refused(bed: Bed, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one\n")
    config = Config(text=str(text))
    bed.execute(config)

    bed.source = replace(bed.source, fingerprint="f1")
    bed.context.seed = 5
    text.write_text("two\n")
    with pytest.raises(UsageError) as caught:
        bed.execute(config)
    for name in ("source: f0 -> f1", "seed: 0 -> 5", f"data.{text}: sha256:"):
        assert name in str(caught.value.found)


def test_differences_name_leaves() -> None:
    before = {"a": {"b": 1, "c": 2}, "d": [1]}
    now = {"a": {"b": 1, "c": 3}, "e": None, "d": [1]}

    assert differences(before, now) == ["a.c: 2 -> 3"]


def flip(file: Path) -> None:
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1, *file.read_bytes()[1:]]))


@pytest.mark.parametrize("role", ["source", "teacher", "other"])
def test_what_a_stage_reads_is_compared_first_and_once(bed: Bed, tmp_path: Path, role: str) -> None:
    read = bed.execute().artifact
    bed.out_dir = tmp_path / "next"
    bed.source = read if role == "source" else bed.source
    bed.context.teacher = read if role == "teacher" else None
    bed.context.others = {"more": read} if role == "other" else {}
    bed.context.checked.clear()  # another process
    flip(read.path / "weights")

    with pytest.raises(VerificationError, match="has changed") as caught:
        bed.execute()
    assert caught.value.where == str(read.path / "weights")
    assert bed.runs == ["new"]
    assert not bed.partial.exists()
    flip(read.path / "weights")
    bed.execute()
    flip(read.path / "weights")
    bed.out_dir = tmp_path / "third"
    bed.execute()  # compared by this process already


TWO = b'{"text": "one"}\n{"text": "two"}\n'
TWO_ELSEWHERE = gzip.compress(b'{"text":  "one"}\n\n{"text": "two"}\n', mtime=0)
OTHER = b'{"text": "one"}\n{"text": "three"}\n'


@pytest.mark.parametrize(
    ("name", "before", "moved_to", "moved", "other"),
    [
        ("text.txt", b"one\n", "copy.txt", b"one\n", b"two\n"),
        ("text.jsonl", TWO, "moved.jsonl.gz", TWO_ELSEWHERE, gzip.compress(OTHER, mtime=0)),
    ],
)
def test_a_text_under_another_path_is_the_same_text(
    bed: Bed, tmp_path: Path, name: str, before: bytes, moved_to: str, moved: bytes, other: bytes
) -> None:
    """Rows also under another name, with other white space and in another compression."""
    (tmp_path / name).write_bytes(before)
    (tmp_path / moved_to).write_bytes(moved)
    bed.execute(Config(text=str(tmp_path / name)))

    assert bed.execute(Config(text=str(tmp_path / moved_to))).skipped
    (tmp_path / moved_to).write_bytes(other)
    with pytest.raises(UsageError, match="of a different run"):
        bed.execute(Config(text=str(tmp_path / moved_to)))


def test_the_beginning_of_another_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds the distill stage, not that of reconstruct"):
        refuse_difference(
            "reconstruct",
            tmp_path / "stage.json",
            {"stage": "distill", "config": {"tokens": 1}},
            {"stage": "reconstruct", "config": {}},
            redo="--overwrite",
        )


@pytest.mark.parametrize("field", ["data", "prompts"])
def test_a_text_that_is_not_read_decides_nothing(field: str) -> None:
    """Scores that are random or of weights read no calibration text, and domains replace the one text."""
    configs: list[dict[str, Any]] = [
        {"section": {field: text}, "size": 3} for text in ("/a.txt", "/b.txt", "an/id")
    ]
    unread = [comparable({"config": config, "data": {}}) for config in configs]
    assert unread[0] == unread[1] == unread[2]
    other = {**configs[0], "size": 4}
    assert comparable({"config": other, "data": {}}) != unread[0]
    read = [
        comparable({"config": config, "data": {config["section"][field]: f"sha256:{number}"}})
        for number, config in enumerate(configs)
    ]
    assert read[0] != read[1] != read[2]


def test_prompts_count_where_they_are_read() -> None:
    """A stage that trains on sampled text knows it by the fingerprint of the stage that sampled."""

    def inputs(prompts: str, sampled: str) -> dict[str, Any]:
        return {"config": {"generate": {"prompts": prompts}}, "data": {}, "others": {"generated": sampled}}

    assert comparable(inputs("/a.txt", "1")) == comparable(inputs("/moved/a.txt", "1"))
    assert comparable(inputs("/a.txt", "1")) != comparable(inputs("/a.txt", "2"))
    read = {"config": {"prompts": "/a.txt"}, "data": {"/a.txt": "sha256:1"}}
    moved = {"config": {"prompts": "/b.txt"}, "data": {"/b.txt": "sha256:1"}}
    other = {"config": {"prompts": "/a.txt"}, "data": {"/a.txt": "sha256:2"}}
    assert comparable(read) == comparable(moved) != comparable(other)
