"""Key files: never overwritten, private, optionally encrypted; keys of other kinds or of small order are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from compiler.artifact import KeyKind, private_key_bytes, public_key_bytes, public_keys, write_new_keys
from compiler.artifact.keys import kind_of, public_of
from compiler.errors import OptionError, StorageError

_P = 2**255 - 19
_ORDER_EIGHT = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7


@pytest.mark.parametrize("kind", KeyKind)
@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_pair_is_written_and_read(tmp_path: Path, kind: KeyKind, passphrase: bytes | None) -> None:
    path = tmp_path / "key.pem"
    public = write_new_keys(path, kind, passphrase)
    assert path.stat().st_mode & 0o777 == 0o600
    assert kind_of(public) == kind
    private = private_key_bytes(path, kind, passphrase)
    assert public_key_bytes(public, kind) == public_of(private, kind)
    with pytest.raises(OptionError, match="exists"):
        write_new_keys(path, kind)
    with pytest.raises(OptionError, match=r"an \w+25519 private key is needed"):
        private_key_bytes(path, next(each for each in KeyKind if each != kind), passphrase)


def test_passphrases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.pem"
    write_new_keys(path, passphrase=b"right")
    monkeypatch.delenv("TENSORWRIGHT_PASSPHRASE", raising=False)
    with pytest.raises(OptionError, match="is encrypted"):
        private_key_bytes(path)
    with pytest.raises(OptionError, match="cannot be decrypted"):
        private_key_bytes(path, passphrase=b"wrong")
    monkeypatch.setenv("TENSORWRIGHT_PASSPHRASE", "right")
    assert len(private_key_bytes(path)) == 32
    with pytest.raises(OptionError, match="passphrase is empty"):
        write_new_keys(tmp_path / "other.pem", passphrase=b"")


def test_a_folder_of_keys(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"holds no \.pem or \.pub file"):
        public_keys([tmp_path])
    folder = tmp_path / "keys"
    folder.mkdir()
    made = [write_new_keys(tmp_path / name) for name in ("a.pem", "b.pem")]
    for path in made:
        path.rename(folder / path.name)
    (folder / "notes.txt").write_text("not a key")
    assert len(set(public_keys([folder]))) == 2
    write_new_keys(tmp_path / "c.pem", KeyKind.CONNECTION).rename(folder / "c.pub")
    with pytest.raises(OptionError, match="an Ed25519 public key is needed"):
        public_keys([folder])
    with pytest.raises(StorageError, match="cannot be written"):
        write_new_keys(tmp_path / "missing" / "key.pem")


@pytest.mark.parametrize("sign_bit", [0, 0x80])
@pytest.mark.parametrize("y", [0, 1, _P - 1, _P, _P + 1, _P + 5, "order eight", "minus order eight"])
def test_signing_keys_of_small_order_are_refused(y: int | str, sign_bit: int) -> None:
    d, eight = -121665 * pow(121666, -1, _P) % _P, _ORDER_EIGHT
    assert (d * eight**4 + 2 * eight**2 - 1) % _P == 0  # doubled, it is a point of order 4
    value = {"order eight": eight, "minus order eight": _P - eight}[y] if isinstance(y, str) else y
    raw = bytearray(value.to_bytes(32, "little"))
    raw[31] |= sign_bit
    with pytest.raises(OptionError, match="small order"):
        public_key_bytes(bytes(raw))


@pytest.mark.parametrize("u", [0, 1, _P - 1, _P])
def test_connection_keys_of_small_order_are_refused(u: int) -> None:
    with pytest.raises(OptionError, match="small order"):
        public_key_bytes(u.to_bytes(32, "little"), KeyKind.CONNECTION)


def test_files_of_openssl_are_read(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = Ed25519PrivateKey.generate().public_key()
    path = tmp_path / "public.pem"
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert public_key_bytes(path) == public.public_bytes_raw()
