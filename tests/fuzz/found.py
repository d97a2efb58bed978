"""Faults that came to light with hostile input, by its kind; each was corrected and has a test of its own.

Some were met by the campaign, and some by reading what it was to attack.
"""

from __future__ import annotations

FOUND: dict[str, tuple[str, ...]] = {
    "config": ("generation settings that transformers does not take ended in an error of its own",),
    "safetensors": (),
    "gguf": (
        "a number of a wider field that is infinite or nothing in 32 bits was taken",
        "a token of a million letters was cut at each of its places",
    ),
    "tokenizer": (
        "rules that follow one another could make gigabytes of a letter",
        "a declaration that lists no tokens ended in an unexpected error",
    ),
    "recipe": (),
    "bench": (),
    "run": (
        "`clean` deleted files outside of a run whose records named them",
        "records that contradict each other, with sums made to fit, ended in an unexpected error",
        "names of machines, versions and losses could be Markdown on the model card",
    ),
    "text": (
        "a JSON document of any size reserved a gigabyte",
        "a saved data set with an edited record ended in an unexpected error",
        "a Parquet file with text that is not UTF-8 ended in an unexpected error",
    ),
    "template": (),
    "task": (
        "a call of code passed that was escaped, cut in two, written in UTF-16 or in an included file",
        "templates of tasks were filled in without a sandbox",
        "a metric could name code by its path, or a data set be pickled",
        "another file beside a definition could define the same task",
    ),
}
