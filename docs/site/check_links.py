"""Every link of a built site leads to a page and a heading of it, and no page asks another host for anything.

    python docs/site/check_links.py build/site

Links to other sites are not followed: that needs a network, and says nothing about these pages.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Tags by which a browser asks for something without being told to.
_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
_LOADED_LINKS = ("stylesheet", "icon", "preload", "preconnect", "modulepreload")


class Page(HTMLParser):
    """What a page offers to link to, links to, and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag says."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        target = found.get(_LOADED.get(tag, ""))
        if tag == "link" and found.get("rel") in _LOADED_LINKS:
            target = found.get("href")
        if target:
            self.loaded.append(target)
        elif tag == "a" and found.get("href"):
            self.links.append(found["href"])


def read_page(file: Path) -> Page:
    """Parse one file."""
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def problems(site: Path) -> list[str]:
    """What is wrong with the links of a built site, a line each."""
    # The page for what is not found is served at any address, so that its links are absolute.
    pages = {file: read_page(file) for file in sorted(site.rglob("*.html")) if file.name != "404.html"}
    found = [] if pages else [f"{site}: no pages"]
    for file, page in pages.items():
        where = file.relative_to(site)
        found += [f"{where}: loads {one}" for one in page.loaded if urlsplit(one).netloc]
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file.resolve()
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                found.append(f"{where}: {link} leads nowhere")
            elif parts.fragment and target.suffix == ".html":
                known = pages.get(site / target.relative_to(site.resolve()))
                if known is not None and unquote(parts.fragment) not in known.anchors:
                    found.append(f"{where}: {link} names no heading")
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    sys.exit(bool(wrong))
