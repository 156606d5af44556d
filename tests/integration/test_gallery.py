"""The gallery of the package's own weights, driven in a real browser: sliders choose, and nothing is fetched."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_vqgen import TrainedModel
from monai_vqgen.__main__ import main

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
PROGRAMS = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in PROGRAMS, reason="no chromium here (apt-get install chromium chromium-driver)"),
]
CHANGE = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    assert main(["gallery", "--output", str(folder)]) == 0
    return folder / "gallery.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options, profile = webdriver.ChromeOptions(), tmp_path_factory.mktemp("profile")
    options.binary_location = PROGRAMS[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(PROGRAMS[1]))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, page):
    """With the page as it opens."""
    chromium.get(page.as_uri())
    WebDriverWait(chromium, 60).until(lambda found: found.find_element("id", "caption").text)
    return chromium


def shown(browser) -> np.ndarray:
    uri = browser.execute_script("return document.getElementById('slice').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L"))


def test_every_control_shows_the_slice_of_its_values_at_once(browser):
    """What stands on the canvas is what Python draws from the same weights with what the caption says."""
    controls = browser.find_elements("css selector", "form input, form select")
    assert [control.get_attribute("id") for control in controls] == ["position_mm", "age", "sex", "temperature", "seed"]
    pictures, captions = [shown(browser)], [browser.find_element("id", "caption").text]
    for control, place in zip(controls, ("6", "2", "1", "1", "1"), strict=True):
        browser.execute_script(CHANGE, control, place)
        pictures.append(shown(browser))
        captions.append(browser.find_element("id", "caption").text)
    assert len(set(captions)) == len({picture.tobytes() for picture in pictures}) == 6
    assert all(caption.startswith("Synthetic: ") for caption in captions)
    assert captions[-1] == "Synthetic: seed 1, temperature 1.0, top_p 0.85; 91 mm 52 m"
    positions = np.linspace(40, 99.01, 8).round()
    rows = [
        {"position_mm": float(position), "age": age, "sex": sex}
        for position in positions
        for age in (19.0, 36.0, 52.0)
        for sex in "fm"
    ]
    drawn = TrainedModel.from_bundle("generative").sample(48, seed=1, temperature=1.0, conditions=rows)
    number = rows.index({"position_mm": 91.0, "age": 52.0, "sex": "m"})
    expected = (drawn.images[number, 0].numpy() * 255 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(pictures[-1][: len(expected)], expected)
    assert pictures[-1][len(expected) :].max() > 100, "the stamp below"


def test_a_visitor_moves_a_slider_with_the_keyboard_and_reads_its_value(browser):
    slider = browser.find_element("id", "position_mm")
    before = shown(browser)
    slider.send_keys(webdriver.Keys.ARROW_RIGHT)
    values = browser.find_elements("css selector", "output")
    assert values[0].text == "74"
    assert not np.array_equal(shown(browser), before)


def test_the_browser_fetched_the_page_alone_and_had_nothing_to_complain_of(browser, page):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    urls = [each["request"]["url"] for each in sent if each["documentURL"] == page.as_uri()]  # not the browser's own
    assert page.as_uri() in urls
    assert all(url == page.as_uri() or url.startswith("data:image/png;base64,") for url in urls)
    assert browser.get_log("browser") == []
