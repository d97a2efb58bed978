"""A real headless Chromium: what a page shows, what it complains of, and what it asks of a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TIMEOUT_S = 60
# Chromium asks for things of its own (time, accounts); requests of a page carry this annotation.
_PAGE_REQUEST = 101845102
_QUIET = (
    *("--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--force-device-scale-factor=1"),
    *(f"--disable-{name}" for name in ("gpu", "quic", "dev-shm-usage", "default-apps", "extensions", "sync")),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever it asks for, nothing leaves the machine
)


def find_chromium() -> str | None:
    """The first browser on PATH."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One opened page.

    Attributes:
        dom: The document after it was loaded.
        console_errors: Lines that the page left in the console.
        requests: Every address that the page asked the network for, its own left out.
    """

    dom: str
    console_errors: tuple[str, ...]
    requests: tuple[str, ...]


def visit(page: Path, *, width: int = 1280, height: int = 900) -> Visit:
    """Open a file and read it back."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "net.json"
        done = _run("--dump-dom", f"--log-net-log={log}", page=page, size=(width, height), scratch=scratch)
        asked = _addresses(log.read_text(encoding="utf-8", errors="replace"))
    console = tuple(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    own = page.resolve().as_uri()
    return Visit(
        dom=done.stdout,
        console_errors=console,
        requests=tuple(address for address in asked if address != own and not address.startswith("data:")),
    )


def scroll_width(text: str, directory: Path, *, width: int) -> int:
    """How wide a page's content is in a frame of `width` pixels, by a script that measures it there.

    The reports themselves run no script and forbid any; for this the policy that does is taken out.
    """
    script = (
        "<script>parent.postMessage(document.documentElement.scrollWidth + '/' + innerWidth, '*')</script>"
    )
    probe, frame = directory / "probe.html", directory / "frame.html"
    probe.write_text(re.sub(r"<meta http-equiv.*?>", "", text).replace("</body>", script + "</body>"))
    frame.write_text(
        "<script>onmessage = (message) => document.title = message.data</script>"
        f"<iframe src='probe.html' style='width: {width}px; border: 0'></iframe>"
    )
    title = re.search(r"<title>(\d+)/(\d+)</title>", visit(frame).dom)
    assert title is not None, "the page did not report its width"
    assert int(title[2]) == width
    return int(title[1])


def screenshot(page: Path, image: Path, *, width: int, height: int) -> Path:
    """Draw a page into a PNG."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(f"--screenshot={image}", page=page, size=(width, height), scratch=scratch)
    return image


def _run(*options: str, page: Path, size: tuple[int, int], scratch: str) -> subprocess.CompletedProcess[str]:
    browser = find_chromium()
    assert browser is not None, "the caller asks for a browser first"
    window = f"--window-size={size[0]},{size[1]}"
    return subprocess.run(
        [browser, *_QUIET, f"--user-data-dir={scratch}/profile", window, *options, page.resolve().as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=_TIMEOUT_S,
    )


def _addresses(net_log: str) -> list[str]:
    """Addresses that a page asked for, from Chromium's net log, which may lack its end."""
    pattern = rf'"traffic_annotation":{_PAGE_REQUEST},"url":("(?:[^"\\]|\\.)*")'
    return list(dict.fromkeys(json.loads(address) for address in re.findall(pattern, net_log)))
