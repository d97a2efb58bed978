"""A graph's files by themselves: it can be read, and its weights lie beside it."""

from __future__ import annotations

from pathlib import Path

from compressor.core.errors import VerificationError
from exporters.onnx.builder import GRAPH_FILE


def check_graph_files(directory: Path) -> None:
    """Refuse a graph that cannot be read, or whose weights are not beside it.

    Raises:
        VerificationError: naming the file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    file = directory / GRAPH_FILE
    if not file.is_file():
        raise VerificationError("the graph is missing", where=str(file))
    try:
        graph = onnx.load(file, load_external_data=False).graph
    except DecodeError as error:
        raise VerificationError("the graph is corrupt", where=str(file), found=error) from error
    locations = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in sorted(locations):
        if Path(name).name != name or not (directory / name).is_file():
            raise VerificationError("the graph's weights are missing", where=str(directory / name))
