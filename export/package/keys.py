"""Ed25519 keys in PEM files, for statements about packages (RFC 8032; PKCS#8 and SubjectPublicKeyInfo)."""

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ...configs import OutputError, UsageError

PUBLIC_SUFFIX = ".pub"
_LARGEST = 64 << 10
"""Bytes of a file that can be a key."""

Password = Callable[[], str]
"""Asked for where a private key is encrypted."""


def make_keys(path: Path, password: str | None = None) -> Path:
    """Make a private key at `path`, readable by its owner alone, and return the public one's path, beside it.

    Args:
        path: the new file.
        password: encrypts it, where given.

    Raises:
        OutputError: one of both is there already, or cannot be written.

    """
    key = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    beside = path.with_name(path.name + PUBLIC_SUFFIX)
    for file in (path, beside):
        if file.exists():
            raise OutputError(f"{file} already exists, and a key is never replaced; name another file")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
        beside.write_bytes(public)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; name another file") from error
    return beside


def read_private(path: Path, password: Password | None = None) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        UsageError: there is none, it is of another kind, or the password is wrong.

    """
    content = _content(path)
    try:
        try:
            key = serialization.load_pem_private_key(content, None)
        except TypeError:  # it is encrypted
            if password is None:
                raise UsageError(f"{path} is encrypted, and there is no password for it") from None
            key = serialization.load_pem_private_key(content, password().encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{path} holds no private key that can be read, or the password is wrong; "
            "make one: phi3-onnx sign --new-key FILE"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} must hold an Ed25519 key, got {_kind(key)}; make one: phi3-onnx sign --new-key FILE")
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        UsageError: there is none, or it is of another kind.

    """
    try:
        key = serialization.load_pem_public_key(_content(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} holds no public key in PEM; expected the .pub file of the signer") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} must hold an Ed25519 key, got {_kind(key)}")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """Return what names a key: the sha256 of its SubjectPublicKeyInfo in DER, as hexadecimal digits."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return sha256(der).hexdigest()


def signed_by(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether a key made this signature of a message."""
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror or error}") from error


def _kind(key: object) -> str:
    return type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey").lstrip("_")
