"""A signed statement of what a package was made from, how, what its files are, and how close it is to its source.

It is an in-toto statement (in-toto.io/Statement/v1) in a DSSE envelope (github.com/secure-systems-lab/dsse, protocol
1.0), signed by Ed25519. It lies in the package as `phi3_onnx.intoto.jsonl`, an envelope a line. Nothing asks a service:
whoever checks it has the signer's public key.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...configs import Manifest, OutputError, PackageError, read_manifest
from ...configs.files import replacing
from ...configs.manifest import MANIFEST_NAME, check_files, file_sha256
from ...configs.target import table_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ATTESTATION_NAME = "phi3_onnx.intoto.jsonl"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://pypi.org/project/phi3-onnx/faithfulness/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
_LARGEST = 16 << 20
"""Bytes of an attestation; one of a model of 40 layers has some ten thousand."""
_MOST_ENVELOPES = 64


@dataclass(frozen=True)
class Attestation:
    """A statement whose signature was checked."""

    key_id: str
    """Of the key that signed it."""
    subjects: Mapping[str, str]
    """File name -> sha256."""
    predicate: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether it states a verification that passed."""
        return bool((self.predicate.get("verification") or {}).get("passed"))


def statement(folder: Path) -> dict[str, Any]:
    """Return the statement about the package in `folder`, whose files are compared with its manifest first.

    Raises:
        PackageError: the package is damaged.

    """
    manifest = read_manifest(folder)
    check_files(folder, manifest, hashes=True)
    sums = {name: entry.sha256 for name, entry in manifest.files.items()}
    sums[MANIFEST_NAME] = file_sha256(folder / MANIFEST_NAME)
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(sums.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": _predicate(manifest),
    }


def _predicate(manifest: Manifest) -> dict[str, Any]:
    """Return what is stated of a package: where its weights are from, what made it, and what was measured."""
    return {
        "model": manifest.model,
        "source": {"uri": manifest.source, "revision": manifest.revision},
        "adapter": asdict(manifest.adapter) if manifest.adapter else None,
        "target": table_of(manifest.target),
        "calibration": manifest.calibration,
        "tools": dict(manifest.versions),
        "created": manifest.created,
        "verification": manifest.verification,
    }


def sign(folder: Path, key: "Ed25519PrivateKey") -> Path:
    """Write a signed statement into a package, in place of an earlier one, and return its path.

    Raises:
        PackageError: the package is damaged.
        OutputError: the folder cannot be written to.

    """
    from .keys import key_id

    payload = json.dumps(statement(folder), ensure_ascii=False, sort_keys=True).encode()
    signature = key.sign(_to_sign(PAYLOAD_TYPE, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }
    path = folder / ATTESTATION_NAME
    try:
        with replacing(path) as beside:
            beside.write_text(json.dumps(envelope) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def check_attestation(
    folder: Path, key: "Ed25519PublicKey", file: Path | None = None, *, require_verified: bool = False
) -> Attestation:
    """Check that a key signed a statement that is true of the package in `folder`, and return it.

    The signature is checked before anything of the statement is read. Each file of the package must be in the statement
    with the sha256 that it has, and no other may lie there: an engine might read it.

    Args:
        folder: the package's.
        key: the signer's.
        file: where the statement lies; None takes the package's own.
        require_verified: refuse a package whose stated verification did not pass, or never ran.

    Raises:
        PackageError: there is no statement, nobody signed it with this key, or it is not true of this package.

    """
    path = file or folder / ATTESTATION_NAME
    found = _signed(path, key)
    problems: list[str] = []
    for name, digest in found.subjects.items():
        here = folder / name
        if not here.is_file():
            problems.append(f"{name} is missing")
        elif file_sha256(here) != digest:
            problems.append(f"{name} has another sha256 than was signed")
    allowed = {*found.subjects, ATTESTATION_NAME}
    problems += [
        f"{other.relative_to(folder).as_posix()} was not signed"
        for other in sorted(folder.rglob("*"))
        if not other.is_dir() and other.relative_to(folder).as_posix() not in allowed
    ]
    if MANIFEST_NAME not in found.subjects:
        problems.append(f"the statement is not about {MANIFEST_NAME}")
    if not problems and _as_json(_predicate(read_manifest(folder))) != found.predicate:
        problems.append(f"the statement says something else than {MANIFEST_NAME}")
    if problems:
        raise PackageError(
            f"{path} is not true of {folder}: {'; '.join(problems)}; fetch the package again, or sign it again"
        )
    if require_verified and not found.passed:
        state = "failed its verification" if found.predicate.get("verification") else "was never verified"
        raise PackageError(f"{folder} is signed, but the statement says that it {state}; ask for one that passed")
    return found


def _signed(path: Path, key: "Ed25519PublicKey") -> Attestation:
    """Return the statement of the first envelope that a key signed."""
    from .keys import key_id, signed_by

    others: list[str] = []
    for payload, kind, signatures in _envelopes(path):
        if any(signed_by(key, signature, _to_sign(kind, payload)) for _, signature in signatures):
            return _parsed(path, payload, kind, key_id(key))
        others += [name for name, _ in signatures]
    by = f"; it names the key {', '.join(sorted({other[:16] for other in others}))}" if others else ""
    raise PackageError(
        f"{path} has no valid signature by the key {key_id(key)[:16]}{by}; "
        "take the public key of who signed it, or do not trust the package"
    )


def _parsed(path: Path, payload: bytes, kind: str, key: str) -> Attestation:
    try:
        table = json.loads(payload)
        if kind != PAYLOAD_TYPE or table["_type"] != STATEMENT_TYPE or table["predicateType"] != PREDICATE_TYPE:
            raise ValueError(f"it is a {kind}, {table.get('predicateType')!r:.100}")
        subjects = {entry["name"]: entry["digest"]["sha256"] for entry in table["subject"]}
        if len(subjects) != len(table["subject"]) or not isinstance(table["predicate"], dict):
            raise ValueError("a file is named twice, or nothing is said of them")
        for name, digest in subjects.items():
            if not isinstance(digest, str) or not name or name in (".", "..") or set(name) & set("/\\:\0"):
                raise ValueError(f"{name!r:.80} is not a file of a package")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PackageError(f"{path} is signed, but is no statement about a package: {error}; sign it again") from error
    return Attestation(key, subjects, table["predicate"])


def _envelopes(path: Path) -> Iterator[tuple[bytes, str, list[tuple[str, bytes]]]]:
    """Yield the payload, its type, and the signatures with the names of their keys, of each envelope in a file."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise PackageError(f"there is no {path}: nobody signed this package; sign it: phi3-onnx sign") from None
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror or error}") from error
    lines = [line for line in content.splitlines() if line.strip()]
    if len(content) > _LARGEST or not 1 <= len(lines) <= _MOST_ENVELOPES:
        raise PackageError(
            f"{path} must hold 1 to {_MOST_ENVELOPES} envelopes, a line each, in {_LARGEST} bytes at most"
        )
    for line in lines:
        try:
            table = json.loads(line)
            payload = base64.b64decode(table["payload"], validate=True)
            signatures = [
                (str(entry.get("keyid", "")), base64.b64decode(entry["sig"], validate=True))
                for entry in table["signatures"][:_MOST_ENVELOPES]
            ]
            yield payload, str(table["payloadType"]), signatures
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
            raise PackageError(f"{path} is not a DSSE envelope ({error}); sign the package again") from error


def _to_sign(kind: str, payload: bytes) -> bytes:
    """Return the bytes that a signature is of: DSSE's pre-authentication encoding."""
    name = kind.encode()
    return b" ".join((b"DSSEv1", str(len(name)).encode(), name, str(len(payload)).encode(), payload))


def _as_json(value: Any) -> Any:
    """Return a value as it comes back from JSON: tuples are lists there."""
    return json.loads(json.dumps(value))
