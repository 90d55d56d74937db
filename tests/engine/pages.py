"""Whether a page is well-formed, whole and harmless."""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser

from ptkit.engine import page

VOID = {"meta", "path"}


class Checker(HTMLParser):
    """Collects text and attributes; fails where elements aren't closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        assert not [key for key in found if key.startswith("on")]
        self.links += [
            v or "" for k, v in found.items() if k in ("href", "src", "srcset", "action")
        ]
        self.ids |= {found["id"] or ""} if "id" in found else set()
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def checked(html: str) -> Checker:
    """Well-formed, and nothing in it loads or runs anything."""
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert not checker.tags & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert all(link.startswith("#") and link[1:] in checker.ids for link in checker.links)
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in page.POLICY
    assert escape(page.POLICY) in html
    return checker
