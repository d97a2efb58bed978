"""Connections that are refused or lost: what the libraries that make them raise.

The hub's client has changed its library, and none of them raises the others' classes.
"""

from __future__ import annotations

import sys

_CLASSES = (("httpx", "TransportError"), ("requests", "RequestException"), ("aiohttp", "ClientError"))


def lost_connections(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Classes to catch, with others; those of libraries that are in use, as no other could have raised."""
    known = [getattr(sys.modules[module], name, None) for module, name in _CLASSES if module in sys.modules]
    return (*others, ConnectionError, TimeoutError, *(found for found in known if found is not None))


def is_lost_connection(error: BaseException) -> bool:
    """Whether a library says so; the system's own errors also come from pipes between processes."""
    return isinstance(error, lost_connections()) and type(error).__module__ != "builtins"
