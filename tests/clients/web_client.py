"""A page that runs a package in headless Chromium, by WASM: `python web_client.py PAGE NODE_MODULES TASK RESULT`.

The page and the model come from a server on localhost, which also takes what the page sends back.
"""

import shutil
import subprocess
import sys
import tempfile
import threading
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


def main(page: str, modules: Path, task: Path, result: Path) -> int:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        print(f"no browser: none of {', '.join(BROWSERS)} is installed")
        return 1
    sent: dict[str, bytes] = {}
    done = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, modules, task, sent, done))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile:
        address = f"http://127.0.0.1:{server.server_address[1]}/{page}"
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        process = subprocess.Popen([*command, f"--user-data-dir={profile}", address])
        try:
            finished = done.wait(SECONDS)
        finally:
            process.terminate()
            process.wait()
    server.shutdown()
    if not finished or "/error" in sent:
        print(sent.get("/error", b"the page sent nothing").decode())
        return 1
    (result / "logits.f32").write_bytes(sent["/logits"])
    (result / "result.json").write_bytes(sent["/result"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *(Path(argument).resolve() for argument in sys.argv[2:5])))
