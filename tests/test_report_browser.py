"""The pages in a real browser: offline, from a file, at the widths of a desk and of a phone.

Needs Debian's ``chromium`` and the Python package ``playwright``; skipped where either is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptkit.engine.compare import compare_runs
from ptkit.engine.compare_page import write_page
from ptkit.engine.report import write_report

from .engine.finished import make_run, predictions

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the Python package playwright is not installed"
)
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason="chromium is not installed: apt-get install chromium"
)
TALLEST = 8000  # pixels; Chromium without a GPU does not draw much taller pictures
LONG = "无空格的长文字" * 60 + "a" * 400


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    rows = {"none": None, "one": predictions(1), "many": predictions(10_000)}
    rows["long"] = [
        row | {"prompt": LONG, "after": LONG, "before": LONG, "origin": LONG}
        for row in predictions(20)
    ]
    found = {}
    for name, predicted in rows.items():
        run = make_run(folder / name, predicted, steps=3000 if name == "many" else 40)
        write_report(run)
        found[name] = run / "report.html"
    write_page(compare_runs([folder / name for name in rows]), folder / "compare.html")
    return {**found, "compare": folder / "compare.html"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("name", ["none", "one", "many", "long", "compare"])
def test_a_page_offline(
    browser: Any, pages: dict[str, Path], tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    address = pages[name].as_uri()
    page.goto(address)
    assert requests == [address]
    assert complaints == []
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth") <= width
    # nothing is cut off either: every element with text lies inside the page, or scrolls by itself
    outside = page.evaluate(
        """width => [...document.querySelectorAll('main *')].filter(element =>
            !element.closest('pre, svg') && element.getBoundingClientRect().right > width + 1
        ).map(element => element.outerHTML.slice(0, 100))""",
        width,
    )
    assert outside == []
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (_brightness(ink) > _brightness(paper)) == (scheme == "dark")
    picture = tmp_path / f"{name}-{width}-{scheme}.png"
    height = min(TALLEST, page.evaluate(f"{root}.scrollHeight"))
    page.set_viewport_size({"width": width, "height": height})
    page.screenshot(path=picture)
    assert picture.stat().st_size > 10_000
    context.close()


def _brightness(colour: str) -> int:
    """Of "rgb(1, 2, 3)", the sum of its parts."""
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def test_links_lead_to_their_sections(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages["many"].as_uri())
    page.click("nav a[href='#samples']")
    assert abs(page.evaluate("document.getElementById('samples').getBoundingClientRect().top")) < 5
    page.close()
