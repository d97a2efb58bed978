"""Definitions of tasks that someone else wrote: whether lm-eval would run code because of them.

They are YAML, and its tag `!function` names what lm-eval imports and calls. The tag can be spelled in several
ways and stand in any encoding that YAML has, or in a file of any name that is included; so the parser that
lm-eval uses is asked, and not the text. Definitions can also name code outside of them: a metric by its path,
a reader of pickled data, and a data set's own script, which `datasets` before version 4 runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from compressor.core.errors import CompressExportError, UnsupportedError, UsageError
from compressor.core.regular_files import read_regular_bytes

DEFINITIONS = (".yaml", ".yml")
_CODE = (".py", ".pyc", ".so")
_PLAIN_TAGS = "tag:yaml.org,2002:"
_CODE_TAGS = f"{_PLAIN_TAGS}python/"
_PICKLED = "pandas"
# Far above any definition: the largest of lm-eval's own takes 20 kB, and none is nested deeper than 8.
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 40
_NO = ("false", "no", "off", "null", "~", "")
_SWITCHES = ("hf_evaluate", "trust_remote_code")


def refuse_code(files: Iterable[Path], *, hint: str) -> None:
    """Refuse files of one's own tasks of which one is code, or a definition by which some would run.

    What a definition includes is read as well, wherever it is.

    Raises:
        UnsupportedError: naming the first.
        UsageError: for a definition that cannot be read.
    """
    seen: set[Path] = set()
    for path in files:
        if path.suffix in _CODE:
            raise _runs_code(path, None, hint)
        if path.suffix in DEFINITIONS:
            _check(path, seen, hint)


def _check(path: Path, seen: set[Path], hint: str) -> None:
    path = path.absolute()
    if path in seen:
        return
    seen.add(path)
    root = _root(path, hint)
    for mapping in _mappings(root):
        for key, value in mapping:
            if code := _code_of(key, value):
                raise _runs_code(path, code, hint)
            if key == "include":
                for name in _texts(value):
                    _check(path.parent / name, seen, hint)


def _root(path: Path, hint: str) -> Any:
    """The root of a definition as the parser has it, once no tag of it names code; None of an empty one."""
    content = read_regular_bytes(
        path, what="the definition of a task", error=UsageError, max_bytes=_MAX_BYTES
    )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(content, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise _unreadable(path, "it is nested too deeply")
            tag = getattr(event, "tag", None)
            if tag not in (None, "!") and (not tag.startswith(_PLAIN_TAGS) or tag.startswith(_CODE_TAGS)):
                raise _runs_code(path, tag, hint)
        return yaml.compose(content, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:
        raise _unreadable(path, error) from error


def _mappings(root: Any) -> Iterator[list[tuple[str, Any]]]:
    """Keys and values of every mapping below a node, each once."""
    below, seen = [root], set()
    while below:
        node = below.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield [(key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
            below += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            below += node.value


def _code_of(key: str, value: Any) -> str | None:
    """What a field names that would be run."""
    texts = _texts(value)
    if key in _SWITCHES and not all(text.lower() in _NO for text in texts):
        return key
    if key == "metric" and any("/" in text or "\\" in text for text in texts):
        return f"metric: {texts[0]}"
    if key == "dataset_path" and any(text == _PICKLED or _has_script(Path(text)) for text in texts):
        return f"dataset_path: {texts[0]}"
    return None


def _has_script(data: Path) -> bool:
    """Whether a data set on this machine is a script, or has one of its own name in its directory."""
    return data.suffix in _CODE or (data / f"{data.absolute().name}.py").is_file()


def _texts(node: Any) -> list[str]:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return [one.value for one in nodes if isinstance(one, yaml.ScalarNode)]


def _runs_code(path: Path, found: str | None, hint: str) -> CompressExportError:
    return UnsupportedError(
        "these tasks would run Python code of their own",
        where=str(path),
        found=None if found is None else ascii(found)[1:81],
        hint=hint,
    )


def _unreadable(path: Path, found: object) -> UsageError:
    return UsageError(
        "the definition of a task cannot be read",
        where=str(path),
        found=found,
        hint="correct the file, or move it out of the directory of the tasks",
    )
