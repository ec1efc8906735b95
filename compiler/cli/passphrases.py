"""Passphrases of private keys: from a file, the environment, or the terminal."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from compiler.artifact.keys import PASSPHRASE_VARIABLE, KeyKind, is_encrypted, private_key_bytes
from compiler.device.credentials import Credentials
from compiler.device.credentials import load_credentials as device_credentials
from compiler.errors import OptionError, storage_errors


def load_private_key(path: Path, kind: KeyKind, passphrase_file: Path | None = None) -> bytes:
    """Return the 32 raw bytes of a private key; if it is encrypted and neither a file nor TENSORWRIGHT_PASSPHRASE gives
    its passphrase, prompt for it.

    Raises:
        OptionError: the file is not a private key of that kind, or its passphrase is missing or wrong.
        StorageError: the passphrase's file cannot be read.
    """
    passphrase = _of_file(passphrase_file) if passphrase_file is not None else None
    if passphrase is None and not os.environ.get(PASSPHRASE_VARIABLE) and _is_encrypted_file(path) and _terminal():
        passphrase = getpass.getpass(f"passphrase of {path}: ").encode()
    return private_key_bytes(path, kind, passphrase)


def load_credentials(key: Path | None, device_key: Path | None, passphrase_file: Path | None) -> Credentials | None:
    """Load the keys of --key and --device-key; None if neither is given.

    Raises:
        OptionError: only one of the two is given, or one is not an X25519 key.
        StorageError: the passphrase's file cannot be read.
    """
    if key is None and device_key is None:
        return None
    if key is None or device_key is None:
        raise OptionError("--key, this client's key, and --device-key, the server's, go together")
    return device_credentials(load_private_key(key, KeyKind.CONNECTION, passphrase_file), device_key)


def new_passphrase(passphrase_file: Path | None) -> bytes:
    """Return the passphrase of a new private key: from a file, from TENSORWRIGHT_PASSPHRASE, or prompted for twice.

    Raises:
        OptionError: there is none, or the two differ.
        StorageError: the file cannot be read.
    """
    if passphrase_file is not None:
        return _of_file(passphrase_file)
    if given := os.environ.get(PASSPHRASE_VARIABLE):
        return given.encode()
    if not _terminal():
        raise OptionError(
            "there is no terminal to ask for a passphrase", f"set {PASSPHRASE_VARIABLE}, or give --passphrase-file"
        )
    first = getpass.getpass("new passphrase: ")
    if getpass.getpass("the same again: ") != first:
        raise OptionError("the two passphrases differ")
    return first.encode()


def _of_file(path: Path) -> bytes:
    with storage_errors(path, what="the passphrase file "):
        return path.read_bytes().rstrip(b"\r\n")


def _is_encrypted_file(path: Path) -> bool:
    try:
        return is_encrypted(path.read_bytes())
    except OSError:
        return False  # reading the key reports the error


def _terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
