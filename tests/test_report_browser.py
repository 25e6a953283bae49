"""report.html in Chromium: it opens, draws, sorts, filters and tells, asks nothing of any network, and stays text."""

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("bokeh") is None, reason="needs bokeh: requirements.txt"),
    pytest.mark.skipif(importlib.util.find_spec("selenium") is None, reason="needs selenium: requirements-dev.txt"),
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH"),
]
OPTIONS = (
    *("headless", "no-sandbox", "disable-gpu", "no-first-run", "window-size=1280,900"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)
# what stands in open shadow roots, where the library draws
DEEP = """
const found = [];
const walk = (root) => {
  found.push(...root.querySelectorAll(arguments[0]));
  for (const each of root.querySelectorAll("*")) if (each.shadowRoot) walk(each.shadowRoot);
};
walk(arguments[1] || document);
return found;
"""
QUICK = ("plots=false", "report=true", "device.num_threads=1", "epochs=2")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for option in (*OPTIONS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Shown:
    """A page in the browser."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        self.look(1280, "light")
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # of the page before
        driver.get(path.resolve().as_uri())
        self.wait(lambda: self.drawn() >= 1)

    def wait(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < until, self.errors()
            time.sleep(0.05)

    def js(self, code: str, *args: object) -> Any:
        return self.driver.execute_script(code, *args)

    def drawn(self) -> int:
        return int(self.js("return document.documentElement.dataset.drawn || 0"))

    def look(self, width: int, scheme: str) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """The addresses that the page asked for, but its own and those that hold their bytes."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [each["params"]["request"]["url"] for each in entries if each["method"] == "Network.requestWillBeSent"]
        first = next(i for i, url in enumerate(asked) if url.startswith("file:"))  # before it the browser's own pages
        return [url for url in asked[first + 1 :] if not url.startswith(("data:", "chrome:"))]

    def column(self, name: str, section: str) -> list[str]:
        """The cells of a column, of the rows that are seen."""
        code = """
        const table = document.querySelector(`#${arguments[1]} table`);
        const i = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[0]);
        return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[i].textContent);
        """
        found: list[str] = self.js(code, name, section)
        return found

    def sort(self, name: str, section: str) -> None:
        code = """
        const buttons = [...document.querySelectorAll(`#${arguments[1]} th button`)];
        buttons.find((button) => button.textContent === arguments[0]).click();
        """
        self.js(code, name, section)

    def zoomed(self, chart: str) -> tuple[list[float], list[float]]:
        """The ends of the horizontal axis before and after a box was drawn in the middle of a chart."""
        from selenium.webdriver import ActionChains

        place = self.driver.find_element("css selector", f"[data-chart='{chart}']")
        number = list(self.js("return [...document.querySelectorAll('[data-chart]')]")).index(place)
        ends = "const {start, end} = Bokeh.documents[arguments[0]].roots()[0].x_range; return [start, end]"
        before = self.js(ends, number)
        drag = ActionChains(self.driver, duration=50).move_to_element_with_offset(place, -60, -40).click_and_hold()
        drag.move_by_offset(60, 40).move_by_offset(60, 40).release().perform()
        self.wait(lambda: self.js(ends, number) != before)
        return before, self.js(ends, number)

    def told_over(self, chart: str) -> str:
        """What a tooltip says when the pointer goes over a chart."""
        from selenium.webdriver import ActionChains

        place = self.driver.find_element("css selector", f"[data-chart='{chart}']")
        self.js("arguments[0].scrollIntoView({block: 'center'})", place)
        width, height = place.size["width"], place.size["height"]
        for down in (0.0, -0.2, 0.2, -0.3, 0.3, -0.1, 0.1):
            for part in range(-9, 10):
                where = (round(part / 20 * width), round(down * height))
                ActionChains(self.driver, duration=0).move_to_element_with_offset(place, *where).perform()
                tips = [tip.text for tip in self.js(DEEP, ".bk-tooltip-content") if tip.is_displayed()]
                if text := " ".join(filter(None, tips)):
                    return text
        return ""


def test_a_run_opens_draws_and_tells(cli: Cli, tiny_mnist: Path, chromium: Any) -> None:
    words = ("data=mnist", f"paths.data={tiny_mnist}", "model=lenet", "batch_size=50", "name=a")
    assert cli(*words, *QUICK, "optimizer.lr=0.02").code == 0
    page = Shown(chromium, Path("outputs/a/report.html"))
    places = page.js("return [...document.querySelectorAll('[data-chart]')].map((place) => place.dataset.chart)")
    assert {"loss", "accuracy", "calibration", "rate"} <= set(places)
    for place in chromium.find_elements("css selector", "[data-chart]"):
        assert page.js(DEEP, "canvas", place)
    assert page.js("return [...document.images].every((image) => image.naturalWidth > 0 && image.naturalHeight > 0)")
    button = max(chromium.find_elements("css selector", ".cell"), key=lambda each: int(each.text))
    button.click()
    cell = button.get_attribute("data-cell")
    behind = page.js("return [...document.querySelectorAll('#behind img')].map((image) => image.naturalWidth)")
    cells = page.js("return JSON.parse(document.getElementById('data').textContent).cells")
    assert len(behind) == len(cells[cell])
    assert set(behind) == {28}
    assert "val" in page.told_over("loss")
    before, after = page.zoomed("loss")
    assert before[0] < after[0] < after[1] < before[1]
    page.driver.find_element("css selector", "#settings .filter").send_keys("batch_size")
    assert page.column("setting", "settings") == ["batch_size"]
    assert page.column("value", "settings") == ["50"]
    assert page.errors() == []
    assert page.requests() == []


def test_it_follows_light_and_dark_and_fits_a_phone(cli: Cli, chromium: Any) -> None:
    assert cli(*QUICK, "name=a").code == 0
    page = Shown(chromium, Path("outputs/a/report.html"))
    paper = "return getComputedStyle(document.querySelector('section')).backgroundColor"
    light = page.js(paper)
    page.look(390, "dark")
    page.wait(lambda: page.drawn() >= 2)  # the charts in other colours
    assert page.js(paper) != light
    assert page.told_over("loss")
    [tip, *_] = page.js(DEEP, ".bk-Tooltip")
    assert page.js("return getComputedStyle(arguments[0]).backgroundColor", tip) == page.js(paper)
    assert page.js("return document.documentElement.scrollWidth") <= 390
    assert page.errors() == []


def test_a_sweep_sorts_filters_and_tells(cli: Cli, chromium: Any) -> None:
    words = ("-m", "name=s", "optimizer.lr=0.1,0.01,0.03", "batch_size=5,10", "seed=0,1", "data.num_examples=60")
    assert cli(*words, *QUICK).code == 0
    page = Shown(chromium, Path("outputs/s/report.html"))
    rates = page.column("optimizer.lr", "jobs")
    page.sort("optimizer.lr", "jobs")
    down = page.column("optimizer.lr", "jobs")
    assert down == sorted(rates, key=float, reverse=True)
    page.sort("optimizer.lr", "jobs")
    assert page.column("optimizer.lr", "jobs") == down[::-1] == sorted(rates, key=float)
    page.driver.find_element("css selector", "#jobs .filter").send_keys("0.03 done")
    assert page.column("optimizer.lr", "jobs") == ["0.03"] * 4
    assert "job" in page.told_over("parallel")
    assert page.errors() == []
    assert page.requests() == []


def test_names_stay_text_also_where_the_library_shows_them(cli: Cli, tmp_path: Path, chromium: Any) -> None:
    bad = "$$x$$\\(y\\)</script><script>window.hit=1</script><img src=x onerror=window.hit=2>"
    lines = [f'{i},"{bad if i % 2 else "flat"}",{3 * i + i % 2}' for i in range(60)]
    (tmp_path / "h.csv").write_text("area,kind,<b>price</b>\n" + "\n".join(lines), encoding="utf-8")
    words = ("data=table", "data.path=h.csv", "data.target='<b>price</b>'", "model=linreg", "name=a")
    assert cli(*words, *QUICK).code == 0
    page = Shown(chromium, Path("outputs/a/report.html"))
    assert "coefficient" in page.told_over("coefficients")
    assert page.told_over("predicted").startswith("example")
    assert page.js("return window.hit") is None
    assert page.js(DEEP, "img, b, script[src]") == []
    assert page.errors() == []
    assert page.requests() == []
