"""Passphrases of private keys: prompted for on a terminal, unless given otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.artifact import KeyKind, write_new_keys
from compiler.cli import passphrases
from compiler.errors import OptionError, StorageError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORWRIGHT_PASSPHRASE", raising=False)


def answers(monkeypatch: pytest.MonkeyPatch, *given: str) -> None:
    """A terminal on which these lines are typed."""
    typed = iter(given)
    monkeypatch.setattr(passphrases, "_terminal", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda _prompt: next(typed))


def test_a_key_is_encrypted_and_opened_by_what_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.pem"
    answers(monkeypatch, "secret", "secret", "wrong", "secret")
    write_new_keys(path, passphrase=passphrases.new_passphrase(None))
    with pytest.raises(OptionError, match="cannot be decrypted"):
        passphrases.load_private_key(path, KeyKind.SIGNING)
    assert len(passphrases.load_private_key(path, KeyKind.SIGNING)) == 32


def test_what_was_typed_twice_must_be_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "one", "other")
    with pytest.raises(OptionError, match="differ"):
        passphrases.new_passphrase(None)


def test_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, file = tmp_path / "key.pem", tmp_path / "passphrase"
    write_new_keys(path, passphrase=b"secret")
    monkeypatch.setattr(passphrases, "_terminal", lambda: False)
    with pytest.raises(OptionError, match="no terminal"):
        passphrases.new_passphrase(None)
    with pytest.raises(OptionError, match="is encrypted"):
        passphrases.load_private_key(path, KeyKind.SIGNING)
    with pytest.raises(StorageError, match="cannot be read"):
        passphrases.load_private_key(path, KeyKind.SIGNING, file)
    file.write_text("secret\n")
    assert len(passphrases.load_private_key(path, KeyKind.SIGNING, file)) == 32
