"""A page that runs a package in headless Chromium, by WASM: `python web_client.py PAGE NODE_MODULES TASK RESULT`.

The page and the model come from a server on localhost, which also takes what the page sends back.
"""

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 1200


class Handler(SimpleHTTPRequestHandler):
    """Serves three folders under one origin, with the headers that give the page threads."""

    protocol_version = "HTTP/1.1"

    def __init__(self, modules: Path, task: Path, sent: dict[str, bytes], done: threading.Event, *args: Any) -> None:
        self.modules, self.task, self.sent, self.done = modules, task, sent, done
        super().__init__(*args)

    def translate_path(self, path: str) -> str:
        first, _, rest = path.partition("?")[0].lstrip("/").partition("/")
        folders = {"modules": self.modules, "task": self.task}
        return str(folders[first] / rest if first in folders else HERE / first)

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def do_POST(self) -> None:
        self.sent[self.path] = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
        if self.path in ("/result", "/error"):
            self.done.set()


def visit(
    page: str, modules: Path, task: Path, *, flags: Sequence[str] = ("--disable-gpu",), seconds: int = SECONDS
) -> dict[str, bytes]:
    """Return what a page posts in headless Chromium, by path, until it posts `/result` or `/error`.

    Args:
        page: its file name here, with a query perhaps.
        modules: the `node_modules` folder, which the page finds under `/modules`.
        task: the folder that it finds under `/task`.
        flags: more arguments for the browser.
        seconds: how long to wait.

    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return {"/error": f"no browser: none of {', '.join(BROWSERS)} is installed".encode()}
    sent: dict[str, bytes] = {}
    done = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, modules, task, sent, done))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile:
        address = f"http://127.0.0.1:{server.server_address[1]}/{page}"
        command = [browser, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *flags]
        process = subprocess.Popen([*command, f"--user-data-dir={profile}", address], stderr=subprocess.DEVNULL)
        try:
            finished = done.wait(seconds)
        finally:
            process.terminate()
            process.wait()
    server.shutdown()
    if not finished:
        sent["/error"] = b"the page sent nothing"
    return sent


def main(page: str, modules: Path, task: Path, result: Path) -> int:
    sent = visit(page, modules, task)
    if "/error" in sent:
        print(sent["/error"].decode())
        return 1
    (result / "logits.f32").write_bytes(sent["/logits"])
    (result / "result.json").write_bytes(sent["/result"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *(Path(argument).resolve() for argument in sys.argv[2:5])))
