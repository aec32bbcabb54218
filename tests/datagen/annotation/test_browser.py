"""The page in a browser, with the keyboard alone: rank, reload in the middle, edit, flag, and a second tab."""

from __future__ import annotations

import shutil

import pytest

from datagen.annotation.journal import Journal
from tests.datagen.annotation.pages import serving, write_answers
from tests.threads import in_another_thread

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs a browser and its driver: apt-get install chromium chromium-driver"
)

# Take the event from a tab with which it looks again when it comes back to the front.
NEVER_LOOK_AGAIN = "document.addEventListener('visibilitychange', (e) => e.stopImmediatePropagation(), true)"


@pytest.fixture
def address(tmp_path):
    """Serve the answers in another thread."""
    write_answers(tmp_path)
    with in_another_thread(lambda: serving(tmp_path)) as url:
        yield url


@pytest.fixture
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    # In a container Chromium's sandbox and shared memory do not exist.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=390,800"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(10)
    yield driver
    driver.quit()


def press(browser, *keys):
    """Press keys in whatever has the focus, then wait until the page is idle."""
    for key in keys:
        browser.switch_to.active_element.send_keys(key)
        browser.execute_async_script(
            "const end = arguments[0];"
            "(function look() { document.body.hasAttribute('aria-busy') ? setTimeout(look, 20) : end(); })();"
        )


def open_page(browser, address):
    browser.get(address)
    press(browser, "")


def text(browser, selector):
    return [found.text for found in browser.find_elements("css selector", selector)]


def test_rank_with_the_keyboard_alone_and_reload_in_the_middle(browser, address, tmp_path):
    enter, escape = "\ue007", "\ue00c"
    open_page(browser, address)
    press(browser, "Ada", enter)
    assert text(browser, "#count") == ["0 of 3"]
    shown = text(browser, "#answers .text")
    assert browser.find_element("css selector", "#answers .text").value_of_css_property("direction") == "rtl"

    press(browser, "2", "1")
    open_page(browser, address)  # in the middle: two of three ranks are given
    assert text(browser, "#answers .text") == shown
    assert text(browser, "[aria-pressed=true]") == ["2", "1"]
    press(browser, enter)
    assert text(browser, "#message") == ["Give every answer a rank first."]
    press(browser, "2", enter)

    assert text(browser, "#count") == ["1 of 3"]
    press(browser, "e", " !", escape, "1", "2", "3", "k", "k", "j", enter)
    assert text(browser, "#count") == ["2 of 3"]
    press(browser, "f", "bad", enter)
    assert "All questions are done" in text(browser, "#done")[0]

    with open(tmp_path / "out.jsonl.judgements.jsonl", "rb") as file:
        assert len(file.readlines()) == 3
    shutil.copy(tmp_path / "out.jsonl.judgements.jsonl", tmp_path / "copy.jsonl")
    with Journal(tmp_path / "copy.jsonl") as journal:
        first, second, third = journal.last.values()
    assert [first.ranks[k] for k in first.shown] == [2, 1, 2]
    assert [second.ranks[k] for k in second.shown] == [1, 2, 3]
    assert list(second.edits) == [second.shown[0]]
    assert second.edits[second.shown[0]].endswith(" !")
    assert (third.kind, third.note) == ("flag", "bad")
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe, severe


def test_a_second_tab_is_told_what_the_first_one_saved(browser, address):
    open_page(browser, address)
    press(browser, "Ada", "\ue007")
    first = browser.current_window_handle
    browser.execute_script(NEVER_LOOK_AGAIN)
    browser.switch_to.new_window("tab")
    open_page(browser, address)
    press(browser, "1", "2", "3")
    second = browser.current_window_handle
    browser.execute_script(NEVER_LOOK_AGAIN)
    browser.switch_to.window(first)
    press(browser, "s")
    browser.switch_to.window(second)
    assert text(browser, "#saved") == [""]
    press(browser, "\ue007")
    assert "judged in another tab" in text(browser, "#message")[0]
    assert text(browser, "#saved") == ["✓ skipped"]
    assert text(browser, "#count") == ["1 of 3"]
