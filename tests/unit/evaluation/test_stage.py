from __future__ import annotations

from pathlib import Path

from compressor.data.sources import source_fingerprint
from compressor.evaluation.evaluate_stage import unseen_split


def test_only_the_held_out_part_of_a_text_that_was_seen_is_measured(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words\n" * 20)
    again = tmp_path / "copy.txt"
    again.write_bytes(text.read_bytes())

    assert unseen_split(str(again), {source_fingerprint(str(text))}) == "held_out"
    assert unseen_split(str(again), {"another"}) == "all"
