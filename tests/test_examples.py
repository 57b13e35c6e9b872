"""Every file of `examples/` runs, with the small real model; those for a server run against `phi3-onnx serve`."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.export import export, open_checkpoint
from phi3_onnx.runtime import load
from serving import serving

pytestmark = pytest.mark.real
FOLDER = Path(__file__).parents[1] / "examples"
WEB = "onnxruntime-web@1.30.0"


@pytest.fixture(scope="module")
def package(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small_gguf, "cpu-int4-rtn", tmp_path_factory.mktemp("examples") / "my-phi3")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and says nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is the library's
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[ThreadingHTTPServer]:
    """Return the server of the browser page, whose origin the other one lets in; its folder is set by the test."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def address(package: Path, site: ThreadingHTTPServer) -> Iterator[str]:
    """Run `phi3-onnx serve` on a free port; return its address."""
    origin = f"http://127.0.0.1:{site.server_address[1]}"
    with serving(package, "--share-files", "--cors", origin) as found:
        yield found


def ran(name: str, *arguments: str | Path | int, text: str = "", server: str = "") -> str:
    """Run an example in a process of its own, with the server's address put in; return what it prints."""
    source = (FOLDER / name).read_text(encoding="utf-8").replace("http://127.0.0.1:8080", server)
    done = subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_model_card(package: Path) -> None:
    assert ran("model_card.py", package).strip()


def test_streaming_chat(package: Path) -> None:
    printed = ran("streaming_chat.py", package, text="What is the capital of France?\nAnd of Italy?\n\n")
    assert printed.count("> ") == 3 and "Paris" in printed
    assert len((FOLDER / "streaming_chat.py").read_text(encoding="utf-8").splitlines()) <= 15


def test_structured_output(package: Path) -> None:
    assert " is in " in ran("structured_output.py", package)


def test_batch(package: Path) -> None:
    lines = [json.loads(line) for line in ran("batch.py", package, FOLDER / "prompts.jsonl").splitlines()]
    assert len(lines) == 3 and all(line["answer"] and line["tokens"] for line in lines)


def test_openai_client(address: str) -> None:
    pytest.importorskip("openai")
    assert ran("openai_client.py", server=address).strip()


def test_tools(address: str) -> None:
    pytest.importorskip("openai")
    printed = ran("tools.py", server=address)
    assert re.match(r'called weather \{\s*"city"', printed) and len(printed.splitlines()) >= 2


def test_langchain_client(address: str) -> None:
    pytest.importorskip("langchain_openai", reason="the extra examples is not installed")
    assert len(ran("langchain_client.py", server=address).strip()) > 40


def test_train_lora(tiny: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    printed = ran("train_lora.py", tiny("plain"), FOLDER / "train.jsonl", tmp_path / "my-lora", 12)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert losses[-1] < losses[0]
    checkpoint = open_checkpoint(tiny("plain"), adapter=str(tmp_path / "my-lora"))
    assert checkpoint.adapter is not None and checkpoint.adapter.summary == "LoRA, rank 8, 8 matrices"


def test_llm(address: str, tmp_path: Path) -> None:
    pytest.importorskip("llm", reason="the extra examples is not installed")
    models = (FOLDER / "llm" / "extra-openai-models.yaml").read_text(encoding="utf-8")
    guide = (FOLDER.parent / "docs" / "guides" / "langchain.md").read_text(encoding="utf-8")
    assert f"```yaml\n{models}```" in guide
    (tmp_path / "extra-openai-models.yaml").write_text(
        models.replace("http://127.0.0.1:8080", address), encoding="utf-8"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    for words in (["keys", "set", "phi3", "--value", "none"], ["-m", "my-phi3", "What is the capital of France?"]):
        done = subprocess.run(
            [sys.executable, "-m", "llm", *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert "Paris" in done.stdout


def test_the_notebook(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (find_spec("nbclient") and find_spec("ipykernel")):
        pytest.skip("the extra examples is not installed")
    import nbformat  # pyright: ignore[reportMissingImports]
    from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("PACKAGE", str(package))
    notebook = nbformat.read(FOLDER / "notebook.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "clear the outputs before a commit"
    NotebookClient(notebook, timeout=300).execute()
    printed = ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in notebook.cells]
    assert " on cpu - " in printed[1] and "Paris" in printed[3]


@pytest.mark.registry
def test_the_browser_page(package: Path, address: str, site: ThreadingHTTPServer, tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.support.ui import WebDriverWait

    chromium, driver, npm = shutil.which("chromium"), shutil.which("chromedriver"), shutil.which("npm")
    if not (chromium and driver and npm):
        pytest.skip("chromium, chromedriver and npm are needed")
    shutil.copy(FOLDER / "browser" / "index.html", tmp_path)
    command = [npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(tmp_path), WEB]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{WEB} cannot be fetched")
    site.RequestHandlerClass = partial(Quiet, directory=str(tmp_path))  # pyright: ignore[reportAttributeAccessIssue]
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        browser.get(f"http://127.0.0.1:{site.server_address[1]}/?server={address}")
        wait = WebDriverWait(browser, 240)
        answer = browser.find_element("id", "answer")
        wait.until(lambda _: answer.text != "loading…")
        assert answer.text == "ready"
        browser.find_element("css selector", "button").click()
        wait.until(lambda _: not browser.title.startswith("phi3-onnx"))
        assert browser.title == "done"
        with load(package) as model:
            ours = model.generate("The capital of France is", raw=True, temperature=0, max_tokens=12).text
        # int8 activations may flip a near tie between the kernels of WebAssembly and ours, later rather than sooner.
        assert answer.text.startswith(f"The capital of France is{ours}"[:40])
    finally:
        browser.quit()
