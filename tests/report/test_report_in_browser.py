"""A report in a real browser: it loads without a network, and its figures answer.

Needs Chromium (`apt-get install chromium`) and its driver (`pip install playwright`).
"""

import shutil

import pytest

from hf_whittle.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow
DARK, LIGHT = "dark", "light"


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="needs a driver: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """A function that opens a file without a network; requests and complaints fail the test at its end."""
    contexts, requests, said = [], [], []

    def open_page(path, scheme=LIGHT, width=1200):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("[...document.querySelectorAll('.js-plotly-plot')].every(each => each._fullLayout)")
        requests.remove(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == [] and [url for url in requests if not url.startswith(("data:", "blob:"))] == []


@pytest.fixture
def report(copy_of, tmp_path):
    return write_report([copy_of("demo")], tmp_path / "report.html")


def luminance(color):
    """Relative luminance of `rgb(r, g, b)`, as WCAG defines it."""
    parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def style(page, selector, name):
    return page.eval_on_selector(selector, f"each => getComputedStyle(each).{name}")


def points(page):
    return page.locator("#search-1 .scatterlayer .points path")


def test_page_draws_every_figure_without_a_network(open_page, report):
    page = open_page(report)
    assert page.locator(".js-plotly-plot").count() == page.locator("figure").count() == 7
    assert points(page).count() == 218  # without those outside of the bin
    buttons = page.locator("#search-1 .modebar-btn").evaluate_all("all => all.map(each => each.dataset.title)")
    assert buttons == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"]


@pytest.mark.parametrize("width", [1200, 375])
def test_hover_over_a_candidate_shows_its_subnet_inside_of_the_figure(open_page, report, width):
    page = open_page(report, width=width)
    best = page.locator("#search-1 .scatterlayer .trace:has(path)").nth(2).locator(".points path").last
    best.scroll_into_view_if_needed()
    best.hover(force=True)
    label = page.locator("#search-1 .hoverlayer .hovertext")
    label.wait_for()
    said = label.text_content()
    assert "heads: " in said and "neurons: " in said and "parameters" in said and "evaluated on 4,096 tokens" in said
    inner, outer = label.bounding_box(), page.locator("#search-1").bounding_box()
    assert outer["x"] <= inner["x"] and inner["x"] + inner["width"] <= outer["x"] + outer["width"]


def test_legend_hides_and_shows_candidates(open_page, report):
    page = open_page(report)
    names = page.locator("#search-1 .legend .legendtext").all_text_contents()
    before = points(page).count()

    def click(name):
        page.locator("#search-1 .legend .legendtoggle").nth(names.index(name)).click()
        page.wait_for_timeout(700)  # a click waits for a second one

    click("mutation")
    without = points(page).count()
    assert before - without == 4 + 16 + 104
    click("mutation")
    click("outside of the bin")
    assert points(page).count() == before + 50


def test_light_and_dark_differ_and_can_be_read(open_page, report):
    pages = {scheme: open_page(report, scheme) for scheme in (LIGHT, DARK)}
    grounds = {scheme: style(page, "body", "backgroundColor") for scheme, page in pages.items()}
    assert luminance(grounds[LIGHT]) > 0.8 and luminance(grounds[DARK]) < 0.05
    for page in pages.values():
        surface = style(page, "figure", "backgroundColor")
        assert contrast(style(page, "body", "color"), style(page, "body", "backgroundColor")) > 7
        assert contrast(style(page, "figcaption", "color"), surface) > 4.5
        assert contrast(style(page, "nav a", "color"), style(page, "body", "backgroundColor")) > 4.5
        texts = page.locator(".js-plotly-plot .main-svg text")
        fills = set(texts.evaluate_all("all => all.map(each => getComputedStyle(each).fill)"))
        assert all(contrast(fill, surface) > 7 for fill in fills)
        lines = page.locator("#curves-tokens .scatterlayer path.js-line, #search-1 .scatterlayer path.js-line")
        strokes = set(lines.evaluate_all("all => all.map(each => getComputedStyle(each).stroke)"))
        assert strokes and all(contrast(stroke, surface) > 3 for stroke in strokes)


@pytest.mark.parametrize("width", [375, 768])
def test_narrow_screens_do_not_scroll_sideways(open_page, copy_of, tmp_path, width):
    folders = [copy_of("demo"), copy_of("demo-stock", "a-name-of-a-run-that-is-much-too-long-for-a-small-screen")]
    page = open_page(write_report(folders, tmp_path / "both.html"), width=width)
    page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for box in [each.bounding_box() for each in page.locator("figure, .js-plotly-plot .main-svg").all()]:
        assert box is None or box["x"] + box["width"] <= width
    plot = page.locator("#curves-tokens .nsewdrag").bounding_box()
    assert plot["height"] > 100 and plot["width"] > 150


def test_names_that_are_scripts_do_nothing(open_page, copy_of, tmp_path):
    name = "<img src=x onerror=document.title='broken'><script>document.title='broken'<script>"
    page = open_page(write_report([copy_of("demo", name), copy_of("demo-stock")], tmp_path / "report.html"))
    assert page.title() == f"{name}, demo-stock" and page.locator("h1").text_content() == page.title()
    assert page.locator("img").count() == 0
    assert name in page.locator("#curves-tokens .legend").text_content()
