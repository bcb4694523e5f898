"""The report and the comparison in a real browser: silent, alone, within its frame, and usable by
everyone.
"""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from report.project import changed, predict_and_evaluate
from topwork.compare.comparison import compare_runs
from topwork.compare.page import render_comparison
from topwork.params.document import load_params
from topwork.project.report import REPORT
from topwork.report.run import Run, WorkingFiles
from topwork.stages import report
from topwork.weights.format import read_weights, write_weights

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the package `playwright` isn't installed (extra: dev)"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright",
    reason="the package `axe-playwright-python` isn't installed (extra: dev)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(
        (
            found
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (found := shutil.which(name))
        ),
        None,
    )
    if path is None:
        pytest.skip("no chromium on the path; Debian: apt-get install chromium")
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module", params=["report", "comparison"])
def page_file(
    request: pytest.FixtureRequest, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("browsed")
    if request.param == "report":
        project = Path(shutil.copytree(finished, folder / "project"))
        report.run(load_params(project / "params.yaml"), project)
        return project / REPORT
    return write_comparison(finished, folder)


def write_comparison(finished: Path, folder: Path) -> Path:
    """Three runs with everything that the page can show, one of a name that has no place to
    break.
    """
    runs = [finished, changed(finished, folder / "second"), changed(finished, folder / "third")]
    predict_and_evaluate(runs[1], load_params(runs[1] / "params.yaml"), seed=3)
    path = runs[2] / "out/finetune/weights.safetensors"
    weights = read_weights(path)
    moved = {
        name: tensor + 0.1 if tensor.is_floating_point() else tensor
        for name, tensor in weights.state_dict.items()
    }
    write_weights(path, replace(weights, state_dict=moved))
    names = ("main", "workspace", "nightly/" + "learning_rate_of_the_head_lowered_" * 2)
    opened = [
        Run(WorkingFiles(run), load_params(run / "params.yaml"), name)
        for run, name in zip(runs, names, strict=True)
    ]
    page = folder / "comparison.html"
    page.write_text(
        render_comparison(
            compare_runs(opened, [json.loads((run / "params.yaml").read_text()) for run in runs])
        )
    )
    return page


def open_page(
    browser: Any, path: Path, width: int, scheme: str
) -> tuple[Any, list[str], list[str]]:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    context.set_default_timeout(240_000)  # a busy machine is no fault of the page
    page = context.new_page()
    messages: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: asked.append(request.url[:80]))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true })")
    return page, messages, asked


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_page_is_silent_alone_and_within_its_frame(
    browser: Any, page_file: Path, width: int, scheme: str
) -> None:
    page, messages, asked = open_page(browser, page_file, width, scheme)
    assert messages == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()[:80]]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    spilling = page.evaluate(
        """[...document.querySelectorAll('body *')]
             .filter(item => !item.closest('.scroll, pre, svg, .skip, .unseen')
               && item.getBoundingClientRect().right > window.innerWidth + 0.5)
             .map(item => item.outerHTML.slice(0, 100))"""
    )
    assert spilling == []
    page.context.close()


def test_pictures_are_there(browser: Any, page_file: Path) -> None:
    page, _, _ = open_page(browser, page_file, 1280, "light")
    sizes = page.evaluate(
        """Promise.all([...document.querySelectorAll('svg.photo image')].map(async item => {
             const picture = new Image();
             picture.src = item.getAttribute('href'); await picture.decode();
             return [picture.naturalWidth, picture.naturalHeight] }))"""
    )
    assert len(sizes) >= 4
    assert all(width >= 200 and height >= 150 for width, height in sizes)
    shots = page.locator(".shot")
    assert shots.count() == 4
    for index in range(3):  # each panel of one picture, on the screen: many colours, not one
        box = page.locator(".shot").first.locator("svg.photo").nth(index)
        seen = Image.open(io.BytesIO(box.screenshot())).convert("RGB")
        assert len(seen.getcolors(maxcolors=1 << 24) or []) > 1000
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, page_file: Path, scheme: str) -> None:
    page, _, _ = open_page(browser, page_file, 1280, scheme)
    found = axe.Axe().run(page).response["violations"]
    faults = [(fault["id"], fault["impact"], fault["nodes"][0]["html"][:120]) for fault in found]
    assert [fault for fault in faults if fault[1] in ("serious", "critical")] == []
    assert faults == []
    page.context.close()


def test_keyboard_reaches_content_and_wide_tables(browser: Any, page_file: Path) -> None:
    page, _, _ = open_page(browser, page_file, 400, "light")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    scrolling = page.evaluate(
        """[...document.querySelectorAll('.scroll, pre')]
             .filter(item => item.scrollWidth > item.clientWidth && item.tabIndex !== 0).length"""
    )
    assert scrolling == 0
    page.context.close()


def test_print_hides_navigation_and_cuts_nothing(
    browser: Any, page_file: Path, tmp_path: Path
) -> None:
    page, _, _ = open_page(browser, page_file, 1280, "dark")
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
    page.context.close()
