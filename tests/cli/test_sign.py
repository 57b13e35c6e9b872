"""`sign`, and what checks a signature: `verify --key`, `pull --require-verified`; nothing asks a service."""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from phi3_onnx.configs import PackageError, UsageError, read_manifest
from phi3_onnx.configs.manifest import MANIFEST_NAME
from phi3_onnx.export.package.attestation import ATTESTATION_NAME, check_attestation, sign
from phi3_onnx.export.package.keys import make_keys, read_private, read_public

from .conftest import Run

Factory = Callable[..., Path]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_keys(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def package(tiny_package: Factory, tmp_path: Path) -> Path:
    """Return a package of its own, whose manifest has a verification that passed."""
    folder = Path(shutil.copytree(tiny_package("plain"), tmp_path / "package"))
    record(folder, passed=True)
    return folder


def record(folder: Path, *, passed: bool) -> None:
    rows = [{"name": "mean_kl", "value": 0.001, "threshold": 0.01, "passed": passed}]
    verification = {"passed": passed, "provider": "cpu", "created": "2026-01-01", "rows": rows}
    manifest = replace(read_manifest(folder), verification=verification)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def public(key: Path) -> Any:
    return read_public(key.with_name(f"{key.name}.pub"))


def test_what_was_signed_is_true_until_a_file_changes(run: Run, package: Path, key: Path) -> None:
    signed = run("sign", package, "--key", key)
    assert signed.code == 0 and signed.out.strip() == str(package / ATTESTATION_NAME)
    checked = run("verify", package, "--key", f"{key}.pub")
    assert checked.code == 0, checked.err
    assert "mean_kl" in checked.out and read_manifest(package).source in checked.out
    data = package / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    refused = run("verify", package, "--key", f"{key}.pub")
    assert refused.code == 1 and "model.onnx.data has another sha256 than was signed" in refused.err
    assert "Traceback" not in refused.err and len(refused.err.splitlines()) == 1


def test_a_statement_binds_source_tools_files_and_figures(package: Path, key: Path) -> None:
    sign(package, read_private(key))
    (line,) = (package / ATTESTATION_NAME).read_text().splitlines()
    envelope = json.loads(line)
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    payload = base64.b64decode(envelope["payload"])
    # DSSE's pre-authentication encoding, written out here once more.
    message = b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload
    public(key).verify(base64.b64decode(envelope["signatures"][0]["sig"]), message)
    stated, manifest = json.loads(payload), read_manifest(package)
    assert stated["_type"] == "https://in-toto.io/Statement/v1"
    assert {entry["name"] for entry in stated["subject"]} == {*manifest.files, MANIFEST_NAME}
    predicate = stated["predicate"]
    assert predicate["source"] == {"uri": manifest.source, "revision": manifest.revision}
    assert predicate["tools"] == manifest.versions and predicate["adapter"] is None
    assert predicate["verification"]["rows"][0]["value"] == 0.001


def change_envelope(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = package / ATTESTATION_NAME
    envelope = json.loads(path.read_text())
    change(envelope)
    path.write_text(json.dumps(envelope))


def _other_payload(envelope: dict[str, Any]) -> None:
    stated = json.loads(base64.b64decode(envelope["payload"]))
    stated["predicate"]["verification"]["rows"][0]["value"] = 0.0001
    envelope["payload"] = base64.b64encode(json.dumps(stated).encode()).decode()


@pytest.mark.parametrize(
    "change",
    [
        _other_payload,
        lambda envelope: envelope.update(payloadType="application/json"),
        lambda envelope: envelope.update(signatures=[]),
        lambda envelope: envelope["signatures"][0].update(sig=base64.b64encode(bytes(64)).decode()),
    ],
    ids=["figures", "type", "no signature", "zeros"],
)
def test_nothing_of_an_envelope_can_be_changed(package: Path, key: Path, change: Callable[[Any], None]) -> None:
    sign(package, read_private(key))
    change_envelope(package, change)
    with pytest.raises(PackageError, match="has no valid signature by the key"):
        check_attestation(package, public(key))


def test_what_is_refused_beside_a_valid_signature(package: Path, key: Path, tmp_path: Path) -> None:
    sign(package, read_private(key))
    make_keys(tmp_path / "other")
    with pytest.raises(PackageError, match=r"no valid signature by the key .*; it names the key"):
        check_attestation(package, public(tmp_path / "other"))
    (package / "extra.onnx").write_bytes(b"")
    with pytest.raises(PackageError, match=r"extra\.onnx was not signed"):
        check_attestation(package, public(key))
    (package / "extra.onnx").unlink()
    (package / "config.json").unlink()
    with pytest.raises(PackageError, match=r"config\.json is missing"):
        check_attestation(package, public(key))


def test_a_statement_of_another_package_is_not_true_here(
    package: Path, key: Path, tiny_package: Factory, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_package("gqa"), tmp_path / "gqa"))
    statement = sign(other, read_private(key))
    with pytest.raises(PackageError, match="has another sha256 than was signed"):
        check_attestation(package, public(key), statement)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]\n", "null", '{"payload": "*", "signatures": []}', "[" * 100_000, "\0\xff"]
)
def test_a_hostile_statement_is_one_line(package: Path, key: Path, text: str, run: Run) -> None:
    (package / ATTESTATION_NAME).write_text(text, encoding="latin-1")
    refused = run("verify", package, "--key", f"{key}.pub")
    assert refused.code == 1 and len(refused.err.splitlines()) == 1 and ATTESTATION_NAME in refused.err


def test_a_verification_that_failed_is_refused_where_one_is_required(package: Path, key: Path) -> None:
    record(package, passed=False)
    sign(package, read_private(key))
    assert not check_attestation(package, public(key)).passed
    with pytest.raises(PackageError, match="says that it failed its verification"):
        check_attestation(package, public(key), require_verified=True)


def test_keys(tmp_path: Path, package: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHI3_ONNX_KEY_PASSWORD", "a secret")
    assert run("sign", "--new-key", tmp_path / "mine").code == 0
    assert (tmp_path / "mine").stat().st_mode & 0o077 == 0
    assert b"ENCRYPTED" in (tmp_path / "mine").read_bytes()
    assert run("sign", package, "--key", tmp_path / "mine").code == 0
    monkeypatch.setenv("PHI3_ONNX_KEY_PASSWORD", "another")
    wrong = run("sign", package, "--key", tmp_path / "mine")
    assert wrong.code == 2 and "the password is wrong" in wrong.err
    again = run("sign", "--new-key", tmp_path / "mine")
    assert again.code == 1 and "a key is never replaced" in again.err
    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "curve").write_bytes(curve)
    with pytest.raises(UsageError, match="must hold an Ed25519 key, got EC"):
        read_private(tmp_path / "curve")
    for missing in (tmp_path / "none", package / "model.onnx"):
        with pytest.raises(UsageError, match=str(missing)):
            read_public(missing)
    assert "name your private key" in run("sign", package).err
    assert "name a package to sign" in run("sign").err


def test_an_unsigned_package(package: Path, key: Path, run: Run) -> None:
    refused = run("verify", package, "--key", f"{key}.pub")
    assert refused.code == 1 and "nobody signed this package" in refused.err
    assert "name the signer's public key" in run("verify", package, "--attestation", package / ATTESTATION_NAME).err
