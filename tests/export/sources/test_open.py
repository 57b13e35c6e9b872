from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs.errors import SourceError
from phi3_onnx.export.sources import hub
from phi3_onnx.export.sources.open import open_checkpoint


def test_a_folder(tiny) -> None:
    folder = tiny("plain")
    assert open_checkpoint(folder).model == "tiny-plain"
    assert open_checkpoint(str(folder)).source == str(folder)


def test_the_folder_we_are_in(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny("plain"))
    assert open_checkpoint(".").model == "tiny-plain"


def test_a_folder_in_the_home(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny("plain").parent))
    monkeypatch.setenv("USERPROFILE", str(tiny("plain").parent))
    assert open_checkpoint("~/tiny-plain").model == "tiny-plain"


def test_a_snapshot_of_the_hubs_cache_is_named_after_its_model(tiny, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--microsoft--Phi-3-mini-4k-instruct" / "snapshots" / "0a1b2c"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny("plain"), target_is_directory=True)
    assert open_checkpoint(snapshot).model == "Phi-3-mini-4k-instruct"


@pytest.mark.parametrize("name", ["microsoft/Phi-3-mini-4k-instruct", "a/b", "HuggingFaceTB/SmolLM2-135M_x.y"])
def test_a_hub_id_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(hub, "open_hub", lambda *args, **options: asked.append((args, options)))
    open_checkpoint(name, revision="main", token="t")
    assert asked == [((name,), {"revision": "main", "token": "t"})]


def test_offline_a_hub_id_is_one_clear_line() -> None:
    with pytest.raises(SourceError, match=r"Phi-3-mini-4k-instruct is not on this machine.*HF_HUB_OFFLINE=1") as caught:
        open_checkpoint("microsoft/Phi-3-mini-4k-instruct")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing-here", "is neither a folder, a .gguf file, nor a hub id"),
        ("/no/such/folder", "is neither a folder, a .gguf file, nor a hub id"),
        ("a/b/c", "is neither a folder, a .gguf file, nor a hub id"),
        ("https://huggingface.co/microsoft/Phi-3-mini-4k-instruct", "is neither a folder"),
        ("", "is neither a folder"),
        ("x" * 5000, "is neither a folder"),
        ("~no-such-user/x", "is neither a folder"),
        ("models/missing.gguf", r"models/missing\.gguf does not exist"),
        ("missing.GGUF", r"missing\.GGUF does not exist"),
    ],
)
def test_what_is_nothing(source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message):
        open_checkpoint(source)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(SourceError, match=r"expected a folder with config\.json, or a \.gguf file"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_a_local_path_has_no_revision(tiny) -> None:
    with pytest.raises(SourceError, match="is a local path, which has no revisions"):
        open_checkpoint(tiny("plain"), revision="main")
