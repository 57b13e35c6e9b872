"""Draw the pictures of the README: `python docs/write_pictures.py [PACKAGE]`.

`chat.png` is the chat page of `phi3-onnx serve PACKAGE` (the newest package by default) in headless Chromium, after a
question to the model; `demo.svg` is the demo's output as the README has it, drawn by rich.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import write_demo

FOLDER = Path(__file__).parent / "pictures"
QUESTION = "What is the capital of France, and what is it known for?"
# rich's own template names a font that would be fetched from elsewhere.
_SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>What phi3-onnx demo prints</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def demo_svg(output: str) -> str:
    """Return the picture of the demo's output, with what was judged in green."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=102, file=Path("/dev/null").open("w"))  # noqa: SIM115
    text = Text(output.rstrip())
    text.highlight_regex(r"(?<= )ok(?= )", "bold green")
    text.highlight_regex(r"(?m)^\d\. .*|^Continue.*", "bold")
    console.print(text)
    return console.export_svg(title="phi3-onnx demo", code_format=_SVG, unique_id="demo")


def chat_png(address: str, path: Path) -> None:
    """Ask the question on the chat page at an address, and write the picture of it."""
    from selenium import webdriver
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    with tempfile.TemporaryDirectory() as profile:
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1000,760")
        for flag in (*flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        browser: Any = webdriver.Chrome(options=options, service=service)
        try:
            browser.get(address)
            browser.find_element("id", "question").send_keys(QUESTION, Keys.ENTER)
            status = browser.find_element("id", "status")
            WebDriverWait(browser, 240).until(lambda _: status.text == "Answer complete.")
            browser.save_screenshot(str(path))
        finally:
            browser.quit()


def main(package: Sequence[str]) -> None:
    """Write both."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "demo.svg").write_text(demo_svg(write_demo.in_readme()), encoding="utf-8")
    command = [sys.executable, "-m", "phi3_onnx.cli", "serve", *package, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if found := re.search(r"ready at (http://\S+)", line):
                    chat_png(found[1], FOLDER / "chat.png")
                    break
            else:
                raise SystemExit("the server did not start: phi3-onnx serve says why")
        finally:
            server.terminate()


if __name__ == "__main__":
    main(sys.argv[1:])
