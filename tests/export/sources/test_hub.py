"""Hub ids, against a stand-in on localhost that speaks as much of the hub's protocol as its library uses."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs.errors import SourceError
from phi3_onnx.export.sources import hub
from phi3_onnx.export.sources.hub import open_hub

COMMIT = "c0ffee" + "0" * 34
# Opens each source in turn, and prints what became of it: a process of its own, since the library reads its
# environment when it is imported.
SCRIPT = """
import json, sys
from phi3_onnx.configs.errors import SourceError
from phi3_onnx.export.sources.open import open_checkpoint
found = []
for source, options in json.loads(sys.argv[1]):
    try:
        checkpoint = open_checkpoint(source, **options)
        checkpoint.read("model.norm.weight")
        found.append([checkpoint.source, checkpoint.revision, checkpoint.model])
    except SourceError as error:
        found.append(str(error))
print(json.dumps(found))
"""


class Hub(ThreadingHTTPServer):
    """Serves folders as `org/<name>`, and remembers what was asked for."""

    def __init__(self, models: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = models
        self.served: list[str] = []
        self.tokens: set[str | None] = set()


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        self.server.tokens.add(self.headers.get("authorization"))
        if path[:2] == ["api", "models"] and len(path) > 5:
            self.describe(path[3], path[4], path[5])
        elif path[:1] == ["org"] and path[2] == "resolve":
            self.send_file(self.server.models[path[1]] / path[4])
        else:
            self.reply(404, b"{}")

    def describe(self, name: str, what: str, revision: str) -> None:
        if name == "gated":
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif name not in self.server.models:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", COMMIT):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            files = sorted(self.server.models[name].iterdir())
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": etag(f)} for f in files]
            model = {"id": f"org/{name}", "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
            self.reply(200, json.dumps(tree if what == "tree" else model).encode())

    def send_file(self, file: Path) -> None:
        if self.command == "GET":
            self.server.served.append(file.name)
        self.reply(200, file.read_bytes(), {"ETag": f'"{etag(file)}"', "X-Repo-Commit": COMMIT})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def stand_in(tiny, tmp_path: Path) -> Iterator[Hub]:
    sharded = Path(shutil.copytree(tiny("sharded"), tmp_path / "sharded"))
    for name in ("modeling_phi3.py", "pytorch_model.bin", "consolidated.safetensors", "README.md"):
        (sharded / name).write_text("not wanted")
    single = Path(shutil.copytree(tiny("plain"), tmp_path / "single"))
    pickled = Path(shutil.copytree(tiny("plain"), tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    bert = Path(shutil.copytree(tiny("plain"), tmp_path / "bert"))
    (bert / "config.json").write_text('{"model_type": "bert"}')
    server = Hub({"Phi-tiny": sharded, "single": single, "pickled": pickled, "bert": bert})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(hub: Hub, home: Path, *sources: tuple[str, dict[str, str]], **environment: str) -> list[Any]:
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(sources)],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_hub_ids(stand_in: Hub, tmp_path: Path) -> None:
    home = tmp_path / "hf"
    found = run(
        stand_in,
        home,
        ("org/Phi-tiny", {"token": "hf_secret"}),
        ("org/single", {"revision": "v1"}),
        ("org/pickled", {}),
        ("org/bert", {}),
        ("org/nothing", {}),
        ("org/gated", {}),
        ("org/single", {"revision": "v2"}),
    )
    assert found[0] == ["org/Phi-tiny", COMMIT, "Phi-tiny"]
    assert found[1] == ["org/single", COMMIT, "single"]
    assert found[2].startswith("org/pickled has no safetensors weights on the hub")
    assert found[3].startswith("org/bert/config.json: model_type 'bert' is not supported")
    assert found[4] == "the hub has no model 'org/nothing', or it is private; check the name, or set HF_TOKEN"
    assert found[5].startswith("org/gated is gated: accept its terms on https://huggingface.co/org/gated")
    assert found[6].startswith("org/single has no revision 'v2'")
    # Neither code nor pickles nor weights in a second format were fetched, nor any of the unsupported model.
    assert not {"modeling_phi3.py", "pytorch_model.bin", "consolidated.safetensors"} & set(stand_in.served)
    assert stand_in.served.count("model.safetensors") == 1
    assert "Bearer hf_secret" in stand_in.tokens

    stand_in.served.clear()
    offline = run(stand_in, home, ("org/Phi-tiny", {}), ("org/other", {}), HF_HUB_OFFLINE="1")
    assert offline[0] == ["org/Phi-tiny", COMMIT, "Phi-tiny"]
    assert "org/other is not on this machine, and the hub is out of reach" in offline[1]
    assert stand_in.served == []


def test_adapters_of_the_hub(stand_in: Hub, tiny, adapter_of, tmp_path: Path) -> None:
    lora = Path(shutil.copytree(adapter_of(tiny("plain"), target_modules=["o_proj"]), tmp_path / "lora"))
    (lora / "adapter_model.bin").write_text("not wanted")
    stand_in.models["lora"] = lora
    source = "org/single"
    found = run(
        stand_in,
        tmp_path / "hf",
        (source, {"adapter": "org/lora"}),
        (source, {"adapter": "org/lora@v1"}),
        (source, {"adapter": "org/lora@v2"}),
        (source, {"adapter": "org/Phi-tiny"}),
        ("org/lora", {}),
    )
    assert found[0] == found[1] == [source, COMMIT, "single-lora"]
    assert found[2].startswith("org/lora has no revision 'v2'")
    assert found[3] == "org/Phi-tiny is not an adapter: it has no adapter_config.json"
    assert found[4].endswith(f"phi3-onnx export {tiny('plain')} --adapter org/lora")
    assert "adapter_model.bin" not in stand_in.served
    assert stand_in.served.count("adapter_model.safetensors") == 1


def test_a_fetch_that_breaks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    with pytest.raises(SourceError, match=r"org/x cannot be fetched: .*No space left on device") as caught:
        open_hub("org/x")
    assert "\n" not in str(caught.value)


def test_a_damaged_index_is_named(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(tiny("sharded"), tmp_path / "x"))
    (folder / hub.INDEX).write_text('{"weight_map": 3}')
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(folder))
    with pytest.raises(SourceError, match=r"model\.safetensors\.index\.json is damaged"):
        open_hub("org/x")
