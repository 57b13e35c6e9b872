"""The chat page in a real browser: headless Chromium, driven by chromedriver (Debian: chromium, chromium-driver)."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import RunningServer, StartServer

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with chromedriver is installed")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1100,800",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, server: RunningServer) -> Any:
    browser.get(server.url)
    wait(browser, lambda: "fake on cpu" in browser.find_element(By.ID, "model").text)
    wait(browser, lambda: browser.execute_script("return document.getElementById('pick').options.length"))
    return browser


def wait(browser: Any, condition: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda _: condition())


def say(browser: Any, text: str) -> None:
    browser.find_element(By.ID, "question").send_keys(text, Keys.ENTER)


def places(browser: Any, selector: str, side: str) -> float:
    script = "return document.querySelector(arguments[0]).getBoundingClientRect()[arguments[1]]"
    return browser.execute_script(script, selector, side)


def answers(browser: Any) -> list[str]:
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, ".assistant .text")]


def status(browser: Any) -> str:
    return browser.find_element(By.ID, "status").text


def test_answers_and_keeps_the_conversation(page: Any, server: RunningServer) -> None:
    say(page, "say **Bold** and `code`, <b>no markup</b>")
    wait(page, lambda: status(page) == "Answer complete.")
    assert answers(page) == ["Bold and code, <b>no markup</b>"]
    body = page.find_element(By.CSS_SELECTOR, ".assistant .text")
    assert [element.text for element in body.find_elements(By.CSS_SELECTOR, "strong, code, b")] == ["Bold", "code"]
    assert "tokens/s" in page.find_element(By.CSS_SELECTOR, ".assistant .foot").text
    say(page, "say second")
    wait(page, lambda: answers(page)[1:] == ["second"])
    assert page.switch_to.active_element.get_attribute("id") == "question"
    if folder := os.environ.get("PHI3_ONNX_SCREENSHOTS"):  # for a person to look at
        page.save_screenshot(str(Path(folder) / "chat.png"))


def test_shift_enter_makes_a_line_and_code_is_a_block(page: Any) -> None:
    question = page.find_element(By.ID, "question")
    new_line = (Keys.SHIFT, Keys.ENTER, Keys.NULL)
    question.send_keys("say Look:", *new_line, "```python", *new_line, "x = '**y**'", *new_line, "```", Keys.ENTER)
    wait(page, lambda: status(page) == "Answer complete.")
    assert page.find_element(By.CSS_SELECTOR, ".assistant pre code").text == "x = '**y**'"


def test_escape_stops_an_answer(page: Any, server: RunningServer) -> None:
    say(page, "for-ever")
    wait(page, lambda: answers(page) and answers(page)[0].startswith("on and"))
    assert page.find_element(By.ID, "send").text == "Stop"
    assert page.find_element(By.ID, "log").get_attribute("aria-busy") == "true"
    page.find_element(By.ID, "question").send_keys(Keys.ESCAPE)
    wait(page, lambda: status(page) == "Stopped." and server.engine.jobs == 0)
    assert page.find_element(By.ID, "send").text == "Send"
    assert page.find_element(By.ID, "log").get_attribute("aria-busy") == "false"


def test_a_new_chat_ends_the_old_one(page: Any, server: RunningServer) -> None:
    say(page, "for-ever")
    wait(page, lambda: answers(page))
    page.find_element(By.ID, "new").click()
    wait(page, lambda: server.engine.jobs == 0)
    assert answers(page) == [] and page.find_element(By.ID, "welcome").is_displayed()
    say(page, "say fresh")
    wait(page, lambda: answers(page) == ["fresh"])


def test_an_error_is_said_and_the_question_kept(page: Any) -> None:
    say(page, "fail")
    alert = wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "[role=alert]"))[0]
    assert "the fake engine was asked to fail" in alert.text
    assert page.find_element(By.ID, "question").get_attribute("value") == "fail"


def test_settings_are_used(page: Any) -> None:
    page.find_element(By.CSS_SELECTOR, "summary").click()
    page.find_element(By.ID, "longest").send_keys("4")
    say(page, "say abcdefgh")
    wait(page, lambda: "cut at its longest" in page.find_element(By.CSS_SELECTOR, "#log").text)
    assert answers(page) == ["abcd"]
    page.execute_script("sessionStorage.clear()")


def ask(browser: Any, text: str) -> None:
    """Send a message of several lines."""
    browser.execute_script("arguments[0].value = arguments[1]", browser.find_element(By.ID, "question"), text)
    browser.find_element(By.ID, "send").click()
    wait(browser, lambda: status(browser) == "Answer complete.")


MARKDOWN = r"""say ## A *title*
Text with **bold**, _slanted_, ~~gone~~, `a*b*c`, [a link](https://example.org/x) and snake_case_name.

- one
  - inner
- two

3. three
4. four

| a | b |
|---|:-:|
| 1 | `x` |

> quoted

It costs $5 and $10, and $\\frac{a_1}{2} \\le x^2$ holds, \\(\\unknown{x}\\) too.

$$\\sum_{i=0}^n i$$

```html
<b>not bold</b> **nor this**
```"""


def test_markdown_comes_out_right(page: Any) -> None:
    ask(page, MARKDOWN.replace("\\\\", "\\"))
    html = page.find_element(By.CSS_SELECTOR, ".assistant .text").get_attribute("innerHTML")
    for piece in (
        "<h3>A <em>title</em></h3>",
        "<strong>bold</strong>, <em>slanted</em>, <s>gone</s>, <code>a*b*c</code>",
        'href="https://example.org/x" target="_blank" rel="noopener noreferrer nofollow">a link</a> and snake_case_nam',
        "<ul><li>one<ul><li>inner</li></ul></li><li>two</li></ul>",
        '<ol start="3"><li>three</li><li>four</li></ol>',
        "<thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><code>x</code></td></tr></tbody>",
        "<blockquote><p>quoted</p></blockquote>",
        "It costs $5 and $10, and <math",
        "<mfrac><mrow><msub><mi>a</mi><mn>1</mn></msub></mrow><mrow><mn>2</mn></mrow></mfrac>",
        "<mo>≤</mo><msup><mi>x</mi><mn>2</mn></msup>",
        r"<code>\(\unknown{x}\)</code> too.",
        '<math display="block"',
        "&lt;b&gt;not bold&lt;/b&gt; **nor this**",
    ):
        assert piece in html, piece


@pytest.mark.parametrize(
    "text",
    [
        '<img src=x onerror="window.hurt=1">',
        "<script>window.hurt=1</script>",
        "[x](javascript:window.hurt=1)",
        "[<img src=x onerror='window.hurt=1'>](https://example.org/\"onmouseover=\"window.hurt=1)",
        "| <svg onload=window.hurt=1> | b |\n|---|---|\n| <iframe srcdoc='<script>parent.hurt=1</script>'> | x |",
        '```"><script>window.hurt=1</script>\n</code></pre><script>window.hurt=1</script>\n```',
        "$</math><script>window.hurt=1</script>$ $\\text{<img src=x onerror=window.hurt=1>}$",
    ],
)
def test_hostile_answers_are_text(page: Any, text: str) -> None:
    ask(page, f"say {text}")
    body = page.find_element(By.CSS_SELECTOR, ".assistant .text")
    assert not body.find_elements(By.CSS_SELECTOR, "script, img, iframe, svg, a[href^='javascript'], [onmouseover]")
    assert page.execute_script("return window.hurt") is None


@pytest.mark.parametrize(
    "text", ["*" * 3000, "[" * 3000, "`" * 3000, "> " * 1000 + "x", "- " * 1000 + "x", "$" + "{" * 2000 + "$"]
)
def test_deep_and_long_marks_leave_the_page_alive(page: Any, text: str) -> None:
    ask(page, f"say {text}")
    assert len(page.find_elements(By.CSS_SELECTOR, ".assistant .foot")) == 1


def test_edit_and_regenerate(page: Any) -> None:
    say(page, "say first")
    wait(page, lambda: status(page) == "Answer complete.")
    say(page, "say second")
    wait(page, lambda: answers(page) == ["first", "second"])
    wait(page, lambda: page.find_element(By.ID, "send").text == "Send")
    page.find_elements(By.XPATH, "//button[text()='Regenerate']")[1].click()
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, ".assistant .foot")) == 2)
    assert answers(page) == ["first", "second"]
    page.find_elements(By.XPATH, "//button[text()='Edit']")[0].click()
    box = page.switch_to.active_element
    assert box.get_attribute("value") == "say first"
    box.send_keys(" again", Keys.ENTER)
    wait(page, lambda: answers(page) == ["first again"])


def test_conversations_are_kept_and_exported(page: Any, tmp_path: Path) -> None:
    page.execute_script("localStorage.clear()")
    page.refresh()
    wait(page, lambda: "fake on cpu" in page.find_element(By.ID, "model").text)
    ask(page, "say kept")
    page.find_element(By.ID, "new").click()
    ask(page, "say another")
    page.refresh()
    listed = wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#chats .open"))
    assert [entry.text for entry in listed] == ["say another", "say kept"]
    assert not page.find_element(By.ID, "meter").is_displayed()  # nothing was run yet
    listed[1].click()
    assert answers(page) == ["kept"]
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    page.find_element(By.ID, "export-json").click()
    page.find_element(By.ID, "export-md").click()
    wait(page, lambda: (tmp_path / "chat.json").is_file() and (tmp_path / "chat.md").is_file())
    expected = [{"role": "user", "content": "say kept"}, {"role": "assistant", "content": "kept"}]
    assert json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))["messages"] == expected
    page.find_element(By.CSS_SELECTOR, "#chats li:nth-child(2) button:last-child").click()
    assert len(page.find_elements(By.CSS_SELECTOR, "#chats li")) == 1
    assert page.find_element(By.ID, "welcome").is_displayed()


def test_sampling_goes_along_and_the_meter_shows_the_context(page: Any) -> None:
    page.execute_script(
        "window.sent = []; const real = fetch; window.fetch = (path, more) => { if (more?.body) sent.push(more.body);"
        "return real(path, more); }; document.getElementById('settings').open = true"
    )
    for name, value in (("top_p", "0.9"), ("seed", "7")):
        page.find_element(By.ID, name).send_keys(value)
    ask(page, "say hi")
    body = json.loads(page.execute_script("return sent[0]"))
    assert body["top_p"] == 0.9 and body["seed"] == 7 and "min_p" not in body and "model" not in body
    assert re.fullmatch(r"\d+ of 4,096 tokens", page.find_element(By.ID, "of").text)
    page.execute_script("sessionStorage.clear()")


def test_several_models_can_be_picked(page: Any) -> None:
    page.execute_script(
        "window.sent = []; const real = fetch; window.fetch = (path, more) => { if (more?.body) sent.push(more.body);"
        "return real(path, more); }; showModels([{id: 'a', context_length: 100}, {id: 'b', context_length: 200}])"
    )
    pick = page.find_element(By.ID, "pick")
    assert pick.is_displayed() and not page.find_element(By.ID, "model").is_displayed()
    pick.send_keys("b")
    ask(page, "say hi")
    assert json.loads(page.execute_script("return sent[0]"))["model"] == "b"
    assert page.find_element(By.ID, "of").text.endswith(" of 200 tokens")


def test_who_reads_further_up_stays_there_when_the_answer_ends(page: Any) -> None:
    ask(page, "say " + "a line\n\n" * 60)
    say(page, "for-ever")
    wait(page, lambda: len(answers(page)) == 2 and answers(page)[1].startswith("on and"))
    page.execute_script("arguments[0].scrollTop = 10", main(page))
    page.find_element(By.ID, "question").send_keys(Keys.ESCAPE)
    wait(page, lambda: status(page) == "Stopped.")
    assert len(page.find_elements(By.CSS_SELECTOR, ".assistant .foot")) == 2
    assert page.execute_script("return arguments[0].scrollTop", main(page)) == 10


def main(browser: Any) -> Any:
    return browser.find_element(By.ID, "scroll")


def test_on_a_phone_the_panel_is_opened(browser: Any, server: RunningServer) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.get(server.url)
        wait(browser, lambda: "fake on cpu" in browser.find_element(By.ID, "model").text)
        ask(browser, "say " + "a_very_long_word" * 20 + "\n\n| a | b |\n|---|---|\n| " + "wide" * 60 + " | x |")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        ask(browser, "say ```python\n" + "print(1)  # a line of code that is wider than the page\n" * 9 + "```")
        assert browser.find_element(By.ID, "meter").is_displayed()
        assert places(browser, ".assistant:last-of-type .foot", "bottom") <= places(browser, "footer", "top")
        first = browser.execute_script(
            "const range = document.createRange(); range.selectNodeContents(document.querySelector('.block code'));"
            "const copy = document.querySelector('.block button').getBoundingClientRect();"
            "return range.getClientRects()[0].top - copy.bottom"
        )
        assert first >= 0
        menu = browser.find_element(By.ID, "menu")
        assert menu.get_attribute("aria-expanded") == "false"
        assert not browser.find_element(By.ID, "panel").is_displayed()
        menu.click()
        assert browser.execute_script(
            "const e = document.getElementById('panel'); return e.scrollWidth <= e.clientWidth"
        )
        assert menu.get_attribute("aria-expanded") == "true"
        assert browser.switch_to.active_element.get_attribute("id") == "new"
        browser.find_element(By.ID, "new").click()
        assert not browser.find_element(By.ID, "panel").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_asks_for_the_key_where_there_is_one(browser: Any, start_server: StartServer) -> None:
    browser.get(start_server(api_key="open sesame").url)
    say(browser, "say hi")
    wait(browser, lambda: "API key is missing" in browser.find_element(By.ID, "log").text)
    assert browser.switch_to.active_element.get_attribute("id") == "key"
    browser.switch_to.active_element.send_keys("open sesame", Keys.TAB)
    say(browser, "")  # the question is still there
    wait(browser, lambda: answers(browser) == ["hi"])


def test_every_control_has_a_name_and_nothing_comes_from_elsewhere(page: Any, server: RunningServer) -> None:
    page.find_element(By.CSS_SELECTOR, "summary").click()
    page.execute_script("showModels([{id: 'a', context_length: 10}, {id: 'b', context_length: 10}]); setUsed(1)")
    for element in page.find_elements(By.CSS_SELECTOR, "button, input, textarea, select, meter"):
        assert element.accessible_name, element.get_attribute("outerHTML")
    assert page.find_element(By.ID, "log").aria_role == "log"
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith((server.url, "data:")) for name in loaded)
    severe = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    # Of the tests before: the engine's failure and the missing key, each a request that was refused.
    assert not [message for message in severe if " 500 " not in message and " 401 " not in message]


def test_follows_the_colour_scheme_of_the_system(page: Any) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        wait(page, lambda wanted=scheme: page.execute_script("return document.documentElement.dataset.theme") == wanted)
        seen[scheme] = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        if folder := os.environ.get("PHI3_ONNX_SCREENSHOTS"):
            page.save_screenshot(str(Path(folder) / f"{scheme}.png"))
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert seen["light"] != seen["dark"]


def test_the_page_is_one_file_that_may_load_nothing_else(server: RunningServer) -> None:
    with server.http() as http:
        reply = http.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert (
        "http://" not in re.sub(r"http://www\.w3\.org/(2000/svg|1998/Math/MathML)", "", reply.text)
        and "https://" not in reply.text
    )


def test_the_page_of_the_endpoints_shows_and_tries_them(browser: Any, server: RunningServer) -> None:
    browser.get(f"{server.url}/docs")
    entries = wait(browser, lambda: browser.find_elements(By.TAG_NAME, "details"))
    named = {entry.find_element(By.TAG_NAME, "code").text: entry for entry in entries}
    assert {"POST /v1/chat/completions", "POST /api/chat", "POST /v1/messages", "GET /v1/models"} <= set(named)
    entry = named["POST /v1/completions"]
    entry.find_element(By.TAG_NAME, "summary").click()
    assert "Draw from tokens with this probability in all." in entry.text
    body = entry.find_element(By.TAG_NAME, "textarea")
    body.clear()
    body.send_keys('{"prompt": "x"}')
    entry.find_element(By.TAG_NAME, "button").click()
    wait(browser, lambda: '"text":"yz"' in entry.find_elements(By.TAG_NAME, "pre")[-1].text.replace(": ", ":"))
