"""Changes to valid files: by their structure, so that they come past the first check, and byte by byte.

Hypothesis draws every change, and so finds a smaller one that still fails.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

# Stands in every hostile text: where it turns up as code, as an element or as a path, something went wrong.
MARK = "fz7q"
Draw = Callable[[st.SearchStrategy[Any]], Any]

_EDGES = (
    0,
    1,
    2,
    3,
    7,
    8,
    255,
    256,
    65_535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53 + 1,
    2**63 - 1,
    2**63,
    10**30,
)
NUMBERS: tuple[Any, ...] = (
    *_EDGES,
    *(-number for number in (1, 2, 128, 2**31, 2**63)),
    *(0.5, -0.0, 1e-300, 1e300, 5e-324, float("nan"), float("inf"), -float("inf")),
)
TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "\u202e" + MARK,
    "../../" + MARK,
    "/" + MARK,
    "~/" + MARK,
    "a" * 300,
    "\n\r\n" + MARK,
    "\x1b[2J" + MARK,
    f"<script>{MARK}()</script>",
    f"<img src=x onerror={MARK}()>",
    f'"><svg onload="{MARK}()',
    f"' {MARK}='1",
    f"--><b>{MARK}</b><!--",
    f"[{MARK}](javascript:{MARK}())",
    f"![x](http://{MARK}.invalid/x.png)",
    f"| {MARK} |\n|---|\n",
    f"```\n{MARK}",
    f"{{{{ {MARK} }}}}",
    f"{{% for x in range(10**9) %}}{MARK}{{% endfor %}}",
    f"{{{{ cycler.__init__.__globals__.os.system('touch {MARK}') }}}}",
    f"__import__('os').system('touch {MARK}')",
    f"!!python/object/apply:os.system ['touch {MARK}']",
    "$(touch " + MARK + ")",
    "=cmd|' /C calc'!A0" + MARK,
    "%n%s%x" + MARK,
    "(a+)+$",
    "1e999",
    "NaN",
    "model.safetensors",
    "../outside/precious.txt",
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [[1]], {"a": None}, ["x"] * 50),
    *NUMBERS,
    *TEXTS,
)
_CONTENT_BYTES = 1 << 17  # larger files are changed at their beginning and end
_MAX_PATHS = 600


def mutated_bytes(draw: Draw, content: bytes) -> bytes:
    """One to four changes of bytes: flipped, overwritten, left out, doubled, put in, or cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        end = len(changed)
        first = draw(st.integers(0, end))
        if end > _CONTENT_BYTES:
            first = draw(st.sampled_from((first, first % 4096, end - first % 4096)))
        length = draw(st.integers(1, 16))
        how = draw(st.sampled_from(("flip", "write", "number", "drop", "double", "cut", "insert")))
        if how == "flip" and first < end:
            changed[first] ^= 1 << draw(st.integers(0, 7))
        elif how == "write":
            changed[first : first + length] = draw(st.binary(min_size=length, max_size=length))
        elif how == "number":
            number = draw(st.sampled_from(_EDGES)) & (2**64 - 1)
            width = draw(st.sampled_from((1, 2, 4, 8)))
            changed[first : first + width] = struct.pack("<Q", number)[:width]
        elif how == "drop":
            del changed[first : first + length]
        elif how == "double":
            changed[first:first] = changed[first : first + length * 8]
        elif how == "cut":
            del changed[first:]
        else:
            changed[first:first] = draw(st.binary(min_size=1, max_size=24))
    return bytes(changed)


def mutated_tree(draw: Draw, tree: Any) -> Any:
    """One change of a JSON or YAML value, or a few."""
    changed = copy.deepcopy(tree)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3, 4)))):
        places = list(_places(changed))
        if not places:
            return _value(draw)
        node, key = draw(st.sampled_from(places))
        _change_(draw, changed, node, key)
    return changed


def _change_(draw: Draw, tree: Any, node: Any, key: Any) -> None:
    how = draw(st.sampled_from(("value", "value", "near", "drop", "stranger", "wrap", "everywhere", "long")))
    if how == "value":
        node[key] = _value(draw)
    elif how == "near":
        node[key] = _near(draw, node[key])
    elif how == "drop":
        del node[key]
    elif how == "stranger" and isinstance(node, dict):
        node[draw(st.sampled_from(TEXTS))] = _value(draw)
    elif how == "wrap":
        node[key] = draw(st.sampled_from(([node[key]], {"a": node[key]}, [node[key]] * 2)))
    elif how == "everywhere" and isinstance(node[key], str):
        _replace_(tree, node[key], draw(st.sampled_from(TEXTS)))
    elif how == "long" and isinstance(node[key], list):
        node[key] = node[key] * draw(st.sampled_from((2, 100, 2000)))
        del node[key][20_000:]


def _value(draw: Draw) -> Any:
    """Any value; a copy, since it may be changed where it is put."""
    return copy.deepcopy(draw(st.sampled_from(VALUES)))


def _near(draw: Draw, value: Any) -> Any:
    """Something of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(st.sampled_from((value + 1, value - 1, -value, value * 2, value * 1000, value // 2)))
    if isinstance(value, float):
        return draw(st.sampled_from((value * 2, -value, value * 1e30, value / 1e30, value - 1)))
    if isinstance(value, str):
        cut = draw(st.integers(0, len(value)))
        return value[:cut] + draw(st.sampled_from(TEXTS)) + value[cut:]
    if isinstance(value, list):
        return list(reversed(value))
    return value


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every key of every object, and every index of every list; of a large tree, spread over all of it."""
    found: list[tuple[Any, Any]] = []
    below = [node]
    while below and len(found) < 20 * _MAX_PATHS:
        current = below.pop()
        if isinstance(current, dict | list):
            keys = list(current if isinstance(current, dict) else range(len(current)))
            keys = keys if len(keys) <= 40 else [*keys[:20], *keys[-20:]]
            found += [(current, key) for key in keys]
            below += [current[key] for key in keys]
    yield from found[:: max(1, len(found) // _MAX_PATHS)]


def _replace_(node: Any, before: str, after: str) -> None:
    """Give every value and key that is this text another one, as a renamed model has it."""
    below = [node]
    while below:
        current = below.pop()
        if isinstance(current, list):
            current[:] = [after if one == before else one for one in current]
            below += current
        elif isinstance(current, dict):
            items = [(after if key == before else key, value) for key, value in current.items()]
            current.clear()
            current.update((key, after if value == before else value) for key, value in items)
            below += current.values()


def mutated_json(draw: Draw, content: bytes) -> bytes:
    """A JSON file changed as a value, as text with a key twice or too deep, or as bytes."""
    how = draw(st.sampled_from(("tree", "tree", "tree", "tree", "twice", "deep", "bytes", "other")))
    if how == "bytes":
        return mutated_bytes(draw, content)
    if how == "other":
        return json_bytes(_value(draw))
    if how == "deep":
        return b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    tree = mutated_tree(draw, json.loads(content or b"{}"))
    encoded = json_bytes(tree)
    if how == "twice" and isinstance(tree, dict) and tree:
        key = draw(st.sampled_from(list(tree)))
        again = json_bytes({key: _value(draw)})
        return encoded[:-1] + b"," + again[1:]
    return encoded


def json_bytes(tree: Any) -> bytes:
    """JSON, lone surrogates as escapes; numbers that JSON does not have as Python writes them."""
    return json.dumps(tree).encode()


def mutated_text(draw: Draw, content: bytes, snippets: tuple[str, ...] = TEXTS) -> bytes:
    """A text with lines and pieces put in, left out or exchanged, or changed as bytes."""
    if draw(st.integers(0, 4)) == 0:
        return mutated_bytes(draw, content)
    lines = content.split(b"\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        snippet = draw(st.sampled_from(snippets)).encode("utf-8", "surrogatepass")
        how = draw(st.sampled_from(("line", "inside", "replace", "drop", "double")))
        if how == "line":
            lines.insert(at, snippet)
        elif how == "inside":
            cut = draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:cut] + snippet + lines[at][cut:]
        elif how == "replace":
            lines[at] = snippet
        elif how == "drop" and len(lines) > 1:
            del lines[at]
        else:
            lines.insert(at, lines[at])
    return b"\n".join(lines)


def mutated_safetensors(draw: Draw, content: bytes) -> bytes:
    """A safetensors file with another header before the same data, or another length in front of it."""
    if draw(st.integers(0, 4)) == 0:
        return mutated_bytes(draw, content)
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    changed = mutated_json(draw, header)
    stated = draw(st.sampled_from((len(changed),) * 6 + (0, 1, 2**31, 2**63, len(changed) + 8)))
    data = draw(st.sampled_from((data,) * 5 + (data[:-8], data + b"\0" * 8)))
    return struct.pack("<Q", stated) + changed + data
