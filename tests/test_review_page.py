"""review.html in a real browser: decide, filter, reload, save, load, and apply what was saved.

Without Debian's chromium and chromium-driver these tests are skipped: they cannot be run then.
"""

import time

import numpy as np
import pandas as pd
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tests.review_runs import CLASSES, make_judged
from utils.review import page
from utils.review.decisions import read_decisions
from utils.review.listing import keys, make_listing, write_listing
from utils.review.mend import mend


class Page:
    """The page of a run in the browser."""

    def __init__(self, browser, judged, count=2000, stop_below=0.1):
        self.browser, self.judged, self.path = browser, judged, judged.run / "review.html"
        self.listing = make_listing(judged, count)
        page.write(judged, self.listing, self.path, stop_below)
        write_listing(judged, self.listing)
        self.open()
        browser.execute_script("localStorage.clear()")  # of a test with the same list
        self.open()

    def open(self):
        self.browser.get(self.path.resolve().as_uri())
        assert self.browser.get_log("browser") == []

    def press(self, letters):
        for letter in letters:
            self.browser.find_element(By.TAG_NAME, "body").send_keys(letter)

    def find(self, css):
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def text(self, css):
        return self.find(css).text

    def texts(self, css):
        return [found.text for found in self.browser.find_elements(By.CSS_SELECTOR, css)]

    def choose(self, name, text):
        Select(self.find(f"#{name}")).select_by_visible_text(text)

    def save(self):
        """Click on save; returns the file."""
        path = self.browser.downloads / "decisions.csv"
        path.unlink(missing_ok=True)
        self.find("#save").click()
        end = time.monotonic() + 20
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.05)
        return path

    def load(self, path):
        self.find("#file").send_keys(str(path))
        end = time.monotonic() + 20
        while not self.find("#message").is_displayed() and time.monotonic() < end:
            time.sleep(0.05)
        return self.text("#message")


def words(judged, rows, column):
    return [judged.classes[judged.table[column][row]] for row in rows]


def suggested(judged, row):
    table = judged.table
    predicted = table["predicted"][row]
    return table["second"][row] if predicted == table["given"][row] else predicted


def test_decisions_by_keys_survive_a_reload_and_are_applied(browser, tmp_path):
    judged = make_judged(tmp_path / "run", 60, num_test=10)
    review = Page(browser, judged, 40)
    assert len(review.texts(".card")) == 40 and "suspect 1 of 40" in review.text("#rank")
    review.press("ksdu")
    review.press("sz")  # undone
    assert "suspect 5 of 40" in review.text("#rank")
    review.press("a")
    other = next(name for name in CLASSES if name not in words(judged, [4], "given"))
    review.find("#search").send_keys(other[:2], Keys.ENTER)
    assert "5 of 40 decided" in review.text("#progress")
    assert "Of the last 4 suspects 3 (75 %) were wrong" in review.text("#hits")
    badges = review.texts(".badge")
    review.open()
    assert review.texts(".badge") == badges and "suspect 6 of 40" in review.text("#rank")
    review.press("z")  # also after the reload
    assert "suspect 5 of 40" in review.text("#rank") and len(review.texts(".badge")) == 4
    review.press("a")
    review.find("#search").send_keys(other, Keys.ENTER)
    saved = review.save()
    table = pd.read_csv(saved, keep_default_na=False)
    assert table.columns.tolist() == ["path", "given", "decision", "label", "time"]
    assert table.path.tolist() == judged.names[:5]
    assert table.given.tolist() == words(judged, range(5), "given")
    assert table.decision.tolist() == ["keep", "relabel", "drop", "unsure", "relabel"]
    expected = ["", judged.classes[suggested(judged, 1)], "", "", other]
    assert table.label.tolist() == expected and pd.to_datetime(table.time).is_monotonic_increasing
    _, report = mend(judged, read_decisions(judged, [saved]))
    mended = pd.read_csv(judged.run / "labels_fixed.csv", index_col="path").label
    assert mended[judged.names[4]] == other and judged.names[2] not in mended
    assert report["reviewed"]["wrong"] == 3 and len(mended) == 59


def test_enter_takes_the_class_that_has_the_focus(browser, tmp_path):
    judged = make_judged(tmp_path / "run", 12)
    review = Page(browser, judged)
    review.press("a")
    button = browser.find_elements("css selector", "#found button")[1]  # beside the chosen one
    name = button.find_element("css selector", "span").text
    browser.execute_script("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    (row,) = pd.read_csv(review.save(), keep_default_na=False).to_dict("records")
    assert (row["label"] or row["given"]) == name


def test_decisions_of_a_class_that_is_no_utf_8_are_loaded_back(browser, tmp_path):
    judged = make_judged(tmp_path / "run", 12, classes=["caf\udce9", "dog", "owl"])
    review = Page(browser, judged)
    review.press("k" * 12)
    saved = review.save()
    browser.execute_script("localStorage.clear()")
    review.open()
    assert review.load(saved).startswith("12 decisions loaded.")


def test_filters_and_the_table_of_classes_lead_to_their_samples(browser, tmp_path):
    judged = make_judged(tmp_path / "run", 150)
    review = Page(browser, judged)
    assert "1 to 50 of 150" in review.texts(".position")
    pair = words(judged, [0], "given")[0], judged.classes[suggested(judged, 0)]
    rows = [
        row
        for row in range(150)
        if (words(judged, [row], "given")[0], judged.classes[suggested(judged, row)]) == pair
    ]
    review.find("#confusion summary").click()
    title = f"given {pair[0]}, suggested {pair[1]}"
    review.find(f"#confusion button[title='{title}']").click()
    assert f"1 to {len(rows)} of {len(rows)}" in review.texts(".position")
    assert review.texts(".card .from") == [pair[0]] * len(rows)
    review.press("k")
    review.choose("state", "undecided")
    assert len(review.texts(".card")) == len(rows) - 1
    review.choose("state", "drop")
    assert review.texts(".card") == [] and not review.find("#panel").is_displayed()
    review.press("ksd")  # nothing is shown, so nothing is decided
    assert "1 of 150 decided" in review.text("#progress")
    review.find("#clear").click()
    assert len(review.texts(".card")) == 50
    review.press([Keys.PAGE_DOWN])
    assert "51 to 100 of 150" in review.texts(".position")
    assert "suspect 51 of 150" in review.text("#rank")
    review.press([Keys.ARROW_LEFT])
    assert "1 to 50 of 150" in review.texts(".position")


def test_buttons_do_what_keys_do(browser, tmp_path):
    judged = make_judged(tmp_path / "run")
    review = Page(browser, judged)
    for action in ("keep", "suggestion", "drop", "unsure", "undo", "next", "previous"):
        review.find(f"[data-action={action}]").click()
    kept = review.texts(".badge")
    assert kept == ["keep", f"\u2192 {judged.classes[suggested(judged, 1)]}", "drop"]
    assert "suspect 4 of 12" in review.text("#rank")
    review.browser.find_elements(By.CSS_SELECTOR, ".card")[0].click()
    pressed = "[data-action][aria-pressed=true]"
    assert review.find(pressed).get_attribute("data-action") == "keep"
    review.press("a")
    given = words(judged, [0], "given")[0]
    review.find("#search").send_keys(given, Keys.ENTER)  # as it was
    assert review.texts(".badge")[0] == "keep"


def test_the_sample_is_a_list_of_its_own_that_estimates_what_is_left(browser, tmp_path):
    judged = make_judged(tmp_path / "run", 300, num_test=0)
    review = Page(browser, judged, 100)
    review.press("d")
    review.find("[data-list=sample]").click()
    assert "50 samples drawn at random from the 200" in review.text("#about")
    assert "0 of 50 decided" in review.text("#progress")
    assert "random sample, 1 of 50" in review.text("#rank")
    review.press("dkkkk")
    assert "Of the last 1 suspects" in review.text("#hits")
    saved = review.save()
    table = pd.read_csv(saved)
    assert table.path.tolist()[1:] == [keys(judged)[row] for row in review.listing.sample[:5]]
    _, report = mend(judged, read_decisions(judged, [saved]))
    assert report["reviewed"]["decided"] == 1 and report["unsuspected"]["decided"] == 5
    assert report["unsuspected"]["left"] == pytest.approx(0.2 * 195)


def test_it_advises_to_stop_once_few_are_wrong(browser, tmp_path):
    review = Page(browser, make_judged(tmp_path / "run", 80), stop_below=0.3)
    review.press("d" * 15 + "k" * 34)
    assert not review.find("#advice").is_displayed()
    review.press("u")  # which is neither
    assert "Of the last 49 suspects 15 (31 %) were wrong" in review.text("#hits")
    assert not review.find("#advice").is_displayed()
    review.press("k")  # 15 of 50: just not below
    assert not review.find("#advice").is_displayed()
    review.press("k")
    assert "Of the last 50 suspects 14 had a wrong label" in review.text("#advice")


def test_decisions_are_loaded_again_also_from_a_spreadsheet(browser, tmp_path):
    judged = make_judged(tmp_path / "run")
    review = Page(browser, judged)
    given, other = words(judged, [0, 1], "given"), "owl"
    rows = [
        f'"{judged.names[0]}";{given[0]};drop;;',
        f"{judged.names[1]};{given[1]};relabel;{other};01.02.2026",
        "elsewhere.png;cat;keep;;",
        ";;;;",
    ]
    file = tmp_path / "d.csv"
    file.write_bytes("\r\n".join(["\ufeffpath;given;decision;label;time", *rows, ""]).encode())
    assert "2 decisions loaded. 1 are of samples that are not listed" in review.load(file)
    assert review.texts(".badge")[0] == "drop" and len(review.texts(".badge")) == 2
    file.write_text("path,given,decision,label\n" + f"{judged.names[2]},x,maybe,\n")
    assert 'row 2 has the decision "maybe"' in review.load(file)
    review.open()
    assert "2 of 12 decided" in review.text("#progress")


HOSTILE = ["</script><script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "=a,b\n;c"]


def test_hostile_names_are_text_and_come_back(browser, tmp_path):
    names = [f"{name}/{number}.png" for number in range(3) for name in HOSTILE]
    judged = make_judged(tmp_path / "run", 9, classes=HOSTILE, names=names)
    review = Page(browser, judged)
    assert judged.names[0] in review.text("#name")
    assert len(browser.find_elements(By.CSS_SELECTOR, "img[src=x], [onerror]")) == 0
    review.press("s" * 9)
    saved = review.save()
    assert "'=a" in saved.read_text() and ',"=a' not in saved.read_text()
    decisions = read_decisions(judged, [saved])
    assert {row: label for row, (_, label, _) in decisions.items()} == {
        row: suggested(judged, row) for row in range(9)
    }
    assert browser.get_log("browser") == []


def test_numbers_are_typed(browser, tmp_path):
    judged = make_judged(tmp_path / "run", kind="numbers")
    review = Page(browser, judged)
    assert not browser.find_elements(By.CSS_SELECTOR, "#given, #confusion")
    review.press("sa")
    review.find("#search").send_keys("old", Keys.ENTER)  # which is none
    review.find("#search").send_keys("41.25", Keys.ENTER)
    review.press("k")
    decisions = read_decisions(judged, [review.save()])
    given = judged.table["given"]
    assert {row: (word, label) for row, (word, label, _) in decisions.items()} == {
        0: ("relabel", given[0] + 1),
        1: ("relabel", 41.25),
        2: ("keep", None),
    }
    file = tmp_path / "d.csv"
    row = f"{judged.names[3]};{given[3]};relabel;6,75;".replace(".5", ",5")
    file.write_text(f"path;given;decision;label;time\n{row}\n")
    assert "1 decisions loaded." in review.load(file)
    assert review.texts(".badge")[3] == "\u2192 6.75"


def test_texts_are_read_in_the_page(browser, tmp_path):
    judged = make_judged(tmp_path / "run", kind="text")
    review = Page(browser, judged)
    assert review.text("#name") == judged.names[0] and not review.find("#picture").is_displayed()
    review.press("k")
    assert pd.read_csv(review.save()).path.tolist() == [keys(judged)[0]]


@pytest.mark.parametrize("width", [400, 1300])
def test_nothing_is_wider_than_the_window(browser, tmp_path, width):
    long = ["a class with quite a long name " * 3, "Donaudampfschifffahrtsgesellschaft" * 3, "c"]
    judged = make_judged(tmp_path / "run", 30, classes=long)
    metrics = {"width": width, "height": 860, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        review = Page(browser, judged)
        review.press("ss")
        review.find("#confusion summary").click()
        script = "const {scrollWidth, clientWidth} = document.documentElement;"
        assert browser.execute_script(f"{script} return scrollWidth <= clientWidth")
        assert review.find("[data-action=drop]").is_displayed()
        browser.find_elements(By.CSS_SELECTOR, ".card")[-1].click()
        top = "return document.getElementById('panel').getBoundingClientRect().top"
        assert -1 < browser.execute_script(top) < 100  # in sight of whoever has chosen a card
        assert "suspect 30 of 30" in review.text("#rank")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_two_thousand_suspects_open_in_two_seconds(browser, tmp_path):
    from PIL import Image

    judged = make_judged(tmp_path / "run", 2100)
    pixels = np.random.default_rng(0).integers(0, 256, (160, 120, 3), np.uint8)
    judged.picture = lambda row: Image.fromarray(np.roll(pixels, row, 0))
    review = Page(browser, judged)
    assert 10e6 < review.path.stat().st_size < 25e6  # noise, of which a thumbnail is largest
    browser.get("about:blank")
    start = time.monotonic()
    review.open()
    loaded = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
    assert 0 < browser.execute_script(loaded) < 2000 and time.monotonic() - start < 10
    review.press("k")
    assert "1 of 2,000 decided" in review.text("#progress")
