"""`pull` and `push`, against a stand-in on localhost."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from hub import Files, Hub
from phi3_onnx.configs import Target, find_target, read_manifest, targets, with_quantization
from phi3_onnx.configs.manifest import MANIFEST_NAME
from phi3_onnx.export import export
from phi3_onnx.export.package.published import find_published, published_folder

Factory = Callable[..., Path]
MICROSOFT = "microsoft/Phi-3-mini-4k-instruct-onnx"


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs the command line in a process of its own: the library reads its environment when imported."""

    def call(*arguments: str | Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "phi3_onnx.cli", *map(str, arguments)],
            env={
                **os.environ,
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


Run = Callable[..., subprocess.CompletedProcess[str]]


def foreign(package: Path) -> Files:
    """Return a package's files without what only we write."""
    return {p.name: p.read_bytes() for p in package.iterdir() if p.name != MANIFEST_NAME}


def add(hub: Hub, repository: str, folder: str, files: Files) -> None:
    held = hub.repositories.setdefault(repository, {})
    held.update({f"{folder}/{name}" if folder else name: content for name, content in files.items()})


@pytest.mark.parametrize(
    ("target", "folder"),
    [
        ("cpu-int4-rtn", "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"),
        ("cuda-fp16", "cuda/cuda-fp16"),
        ("cuda-int4-rtn", "cuda/cuda-int4-rtn-block-32"),
        ("dml-int4-awq", "directml/directml-int4-awq-block-128"),
    ],
)
def test_the_four_published_folders(target: str, folder: str) -> None:
    assert published_folder(find_target(target)) == folder


def test_every_target_finds_its_own_folder_and_no_other() -> None:
    folders = {name: published_folder(target) for name, target in targets().items()}
    assert len(set(folders.values())) == len(folders)
    files = [f"{folder}/genai_config.json" for folder in folders.values()]
    assert {name: find_published(files, target) for name, target in targets().items()} == folders


def test_a_folder_that_says_more_than_the_target() -> None:
    files = ["gpu/gpu-int4-awq-block-128/genai_config.json", "x/cpu-int4-awq-block-128-acc-level-4/genai_config.json"]
    assert find_published(files, find_target("cpu-int4-awq")) == "x/cpu-int4-awq-block-128-acc-level-4"
    assert find_published(files, find_target("cuda-fp16")) is None
    assert find_published(["genai_config.json", "README.md"], find_target("cuda-fp16")) == ""


def test_pull_one_of_microsofts(hub: Hub, run: Run, tiny_package: Factory, isolated: Path) -> None:
    ours = tiny_package("plain")
    add(hub, MICROSOFT, "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4", foreign(ours))
    add(hub, MICROSOFT, "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4", {"configuration_phi3.py": b"code"})
    add(hub, MICROSOFT, "cuda/cuda-fp16", foreign(ours))
    add(hub, MICROSOFT, "", {"README.md": b"card", "config.json": b"{}"})
    done = run("pull", MICROSOFT, "--target", "cpu-int4-rtn", HF_TOKEN="hf_secret")
    folder = isolated / "packages" / "Phi-3-mini-4k-instruct-onnx" / "cpu-int4-rtn"
    assert done.stdout.strip() == str(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == foreign(ours)
    assert {name.rpartition("/")[0] for name, _ in hub.fetched} == {"cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"}
    assert not any(name.endswith(".py") for name, _ in hub.fetched)
    assert "Bearer hf_secret" in hub.tokens
    # The notice names it as the other verbs take it.
    name = done.stderr.strip().rpartition("chat ")[2]
    assert name == "Phi-3-mini-4k-instruct-onnx/cpu-int4-rtn"
    assert "2 layers" in run("show", name).stdout
    assert run("list").stdout.splitlines()[1].startswith(f"{name} ")
    run("rm", name, "--yes")
    assert not folder.exists()


def test_a_pull_that_was_cut_off_goes_on(hub: Hub, run: Run, tiny_package: Factory, tmp_path: Path) -> None:
    # The library keeps what it has received in pieces of 10 MB.
    data = bytes(range(256)) * (24 << 12)
    add(hub, "org/cut", "", {**foreign(tiny_package("plain")), "model.onnx.data": data})
    hub.cut_after = 22 << 20
    run("pull", "org/cut", "-o", tmp_path / "got")  # the library tries again by itself
    first, *_, last = [asked for name, asked in hub.fetched if name == "model.onnx.data"]
    assert first is None
    assert last is not None
    assert int(last.removeprefix("bytes=").removesuffix("-")) >= 10 << 20
    assert (tmp_path / "got" / "model.onnx.data").read_bytes() == data


def test_what_killed_pulls_left_is_removed_once_the_file_is_there(
    hub: Hub, run: Run, tiny_package: Factory, tmp_path: Path
) -> None:
    add(hub, "org/fixed", "", foreign(tiny_package("plain")))
    pull = ("pull", "org/fixed", "-t", "cpu-int4-rtn", "-o", tmp_path / "out", "--force")
    run(*pull)
    (blobs,) = (tmp_path / "hf").rglob("blobs")
    names = sorted(path.name for path in blobs.iterdir())
    left, written, other = (blobs / f"{name}.0123abcd.incomplete" for name in (*names[:2], "00ff"))
    for path in (left, written, other):
        path.write_bytes(b"half")
    lock = blobs.parents[1] / ".locks" / blobs.parent.name / f"{written.name.partition('.')[0]}.lock"
    with FileLock(lock):
        run(*pull)
    assert not left.exists()
    assert written.exists(), "another process is writing it"
    assert other.exists(), "its file is not complete"


def test_what_goes_wrong_is_one_line(hub: Hub, run: Run, tiny_package: Factory, tmp_path: Path) -> None:
    add(hub, "org/some", "cuda/cuda-fp16", foreign(tiny_package("plain")))
    add(hub, "org/none", "", {"model.safetensors": b"", "config.json": b"{}"})

    def error(*arguments: str | Path, **environment: str) -> str:
        line = run("pull", *arguments, code=1, **environment).stderr.strip().splitlines()[-1]
        assert line.startswith("phi3-onnx: ")
        return line

    assert "it has cuda/cuda-fp16" in error("org/some", "-t", "cpu-int4-rtn")
    assert "phi3-onnx export org/none" in error("org/none")
    assert "the hub has no model 'org/missing'" in error("org/missing")
    assert "has no revision 'v9'" in error("org/some", "-t", "cuda-fp16", "--revision", "v9")
    assert "the hub is out of reach" in error("org/some", "-t", "cuda-fp16", HF_HUB_OFFLINE="1")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("kept")
    assert "already exists" in error("org/some", "-t", "cuda-fp16", "-o", tmp_path / "taken")


@pytest.fixture
def verified(tiny: Factory, tiny_package: Factory, tmp_path: Path) -> Path:
    """Return a folder of two packages with the figures of a verification in their manifests."""
    import shutil

    from phi3_onnx.evaluate.parity.result import record
    from phi3_onnx.evaluate.parity.verify import verify
    from phi3_onnx.export import open_checkpoint

    folder = tmp_path / "packages"
    for target in ("cpu-fp32", "cuda-fp16"):
        shutil.copytree(tiny_package("plain", target), folder / target)
        found = verify(folder / target, open_checkpoint(tiny("plain")), provider="cpu", steps=2)
        record(folder / target, found)
    return folder


def test_push_and_pull_again(hub: Hub, run: Run, verified: Path, tmp_path: Path) -> None:
    about = ("--base-model", "microsoft/Phi-3-mini-4k-instruct")
    run("push", verified / "cuda-fp16", "org/tiny-onnx", *about)
    done = run("push", verified / "cpu-fp32", "org/tiny-onnx", *about)
    assert "/org/tiny-onnx/commit/" in done.stdout
    files = hub.repositories["org/tiny-onnx"]
    assert {name.rpartition("/")[0] for name in files} == {"", "cuda/cuda-fp16", "cpu_and_mobile/cpu-fp32"}
    card = files["README.md"].decode()
    # The package that was there already is still in the card.
    for folder in ("cuda/cuda-fp16", "cpu_and_mobile/cpu-fp32"):
        assert card.count(f"| `{folder}` | ") == 2
    run("pull", "org/tiny-onnx", "-t", "cuda-fp16", "-o", tmp_path / "again")
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == {
        p.name: p.read_bytes() for p in (verified / "cuda-fp16").iterdir()
    }


def test_signed_packages_travel_with_their_statement(hub: Hub, run: Run, verified: Path, tmp_path: Path) -> None:
    run("sign", "--new-key", tmp_path / "key")
    run("sign", "--new-key", tmp_path / "other")
    about = ("--base-model", "microsoft/Phi-3-mini-4k-instruct")
    run("push", verified / "cuda-fp16", "org/tiny-onnx", *about, "--sign", tmp_path / "key")
    ask = ("pull", "org/tiny-onnx", "-t", "cuda-fp16", "--require-verified")
    done = run(*ask, "--key", tmp_path / "key.pub", "-o", tmp_path / "again")
    assert ", as verified" in done.stderr
    assert "each as it was signed" in run("verify", tmp_path / "again", "--key", tmp_path / "key.pub").stdout
    refused = run(*ask, "--key", tmp_path / "other.pub", "-o", tmp_path / "refused", code=1)
    assert "has no valid signature by the key" in refused.stderr.splitlines()[-1]
    assert "name the signer's public key" in run(*ask, "-o", tmp_path / "refused", code=2).stderr
    name = "cuda/cuda-fp16/model.onnx"
    files = hub.repositories["org/tiny-onnx"]
    files[name] = files[name] + b"\0"
    refused = run(*ask, "--key", tmp_path / "key.pub", "-o", tmp_path / "refused", code=1)
    assert "model.onnx" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "refused").exists() and not list(tmp_path.glob(".*"))


def test_variants_and_own_targets_travel_side_by_side(
    hub: Hub, run: Run, tiny: Factory, isolated: Path, tmp_path: Path
) -> None:
    plain = find_target("cpu-int4-rtn")
    made = (plain, with_quantization(plain, block_size=64), Target("mine", "my own", "cpu", "float32"))
    folder = tmp_path / "made"
    for number, target in enumerate(made):
        export(tiny("plain"), target, folder / str(number))
        run("verify", folder / str(number), "--steps", "2", "--no-record")
    about = ("--licence", "mit", "--unverified")
    run("push", folder, "org/tiny-onnx", *about)
    files = hub.repositories["org/tiny-onnx"]
    names = ["cpu-int4-rtn-block-32-acc-level-4", "cpu-int4-rtn.block-64", "mine"]
    assert {file.rpartition("/")[0] for file in files} == {"", *(f"cpu_and_mobile/{name}" for name in names)}
    card = files["README.md"].decode()
    assert "| `cpu_and_mobile/cpu-int4-rtn.block-64` | CPU, mobile | int4 block 64 symmetric, rtn |" in card
    assert "| `cpu_and_mobile/mine` | CPU, mobile | float32 |" in card
    for target in made:
        assert f"/{target.name}" in run("pull", "org/tiny-onnx", "-t", target.name).stdout
        pulled = isolated / "packages" / "tiny-onnx" / target.name
        assert read_manifest(pulled).target == target
        assert run("show", target.name).stdout.count(f"{target.name} (provider cpu") == 1
    assert "it has cpu_and_mobile/" in run("pull", "org/tiny-onnx", "-t", "cpu-int4-rtn.gptq", code=1).stderr
    # Two of one name have one place, which both would take.
    other = replace(made[2], opset=20)
    export(tiny("plain"), other, folder / "3")
    error = run("push", folder, "org/tiny-onnx", *about, code=1).stderr
    assert "both belong into cpu_and_mobile/mine" in error


def test_a_variant_that_an_older_version_filed_under_its_target(
    hub: Hub, run: Run, tiny: Factory, isolated: Path, tmp_path: Path
) -> None:
    variant = with_quantization(find_target("cpu-int4-rtn"), block_size=64)
    package = export(tiny("plain"), variant, tmp_path / "package")
    files = {path.name: path.read_bytes() for path in package.iterdir()}
    add(hub, "org/old", "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4", files)
    done = run("pull", "org/old", "-t", "cpu-int4-rtn")
    assert done.stdout.strip() == str(isolated / "packages" / "old" / variant.name)
    assert f"is a {variant.name} package" in done.stderr


def test_a_dry_run_writes_what_would_be_pushed(run: Run, hub: Hub, verified: Path, tmp_path: Path) -> None:
    run("push", verified, "org/tiny-onnx", "--licence", "apache-2.0", "--dry-run", tmp_path / "dry")
    assert hub.repositories == {}
    assert (tmp_path / "dry" / "cuda" / "cuda-fp16" / "model.onnx.data").is_file()
    card = (tmp_path / "dry" / "README.md").read_text(encoding="utf-8")
    head = card.split("---")[1]
    assert "license: apache-2.0" in head
    assert "base_model" not in head  # a folder on this machine is nobody else's model
    manifest = read_manifest(verified / "cuda-fp16")
    assert manifest.verification is not None
    kl = next(row["value"] for row in manifest.verification["rows"] if row["name"] == "mean_kl")
    assert f"| `cuda/cuda-fp16` | passed | CPU | {kl:.3g} | " in card
    assert "not a run on the provider it is for" in card
    assert "Responsible use" in card
    for line in card.splitlines():
        assert "{{" not in line
        assert "None" not in line


def test_what_must_not_be_published(run: Run, verified: Path, tiny_package: Factory, tmp_path: Path) -> None:
    to = ("org/x", "--dry-run", tmp_path / "dry")
    error = run("push", verified, *to, code=2).stderr
    assert "--licence apache-2.0" in error
    error = run("push", tiny_package("plain"), *to, "--licence", "mit", code=1).stderr
    assert "was never verified" in error
    assert not (tmp_path / "dry").exists()
    run("push", tiny_package("plain"), *to, "--licence", "mit", "--unverified")
    assert "not verified" in (tmp_path / "dry" / "README.md").read_text(encoding="utf-8")
