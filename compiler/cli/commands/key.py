"""`tensorwright key`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import typer

from compiler.cli import options
from compiler.cli.options import argument, flag, option
from compiler.cli.output import print_facts, print_json, print_table


class Kind(str, Enum):
    """The values of `KeyKind`, without its slow import."""

    SIGNING = "signing"
    CONNECTION = "connection"


HELP = """Create keys, and show the contents of key files.

Signing keys (Ed25519) sign modules; connection keys (X25519) open connections to device servers.

[bold]Typical[/]

  tensorwright key new release.pem          a signing key, and release.pem.pub for verification
  tensorwright key new laptop.pem --kind connection

[bold]Examples[/]

  Encrypted with a passphrase, which is prompted for:
    tensorwright key new release.pem --encrypt
"""

_NEW_HELP = """Create a key pair: FILE, readable only by its owner, and FILE.pub.

[bold]Typical[/]

  tensorwright key new release.pem
"""

_SHOW_HELP = """Show the kind and the fingerprint of public keys, or of all keys in a folder.

[bold]Typical[/]

  tensorwright key show release.pem.pub
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    keys = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")
    keys.command("new", help=_NEW_HELP)(_new)
    keys.command("show", help=_SHOW_HELP)(_show)
    app.add_typer(keys, name="key")


def _new(
    file: Path = argument("The private key to write.", "FILE"),
    kind: Kind = option("Purpose of the key.", default=Kind.SIGNING),
    encrypt: bool = flag("Encrypt with a passphrase, prompted for or from TENSORWRIGHT_PASSPHRASE.", "--encrypt"),
    passphrase_file: Path | None = options.PASSPHRASE_FILE,
    as_json: bool = options.JSON,
) -> None:
    from compiler.artifact import KeyKind, public_key_bytes, write_new_keys
    from compiler.cli.passphrases import new_passphrase

    passphrase = new_passphrase(passphrase_file) if encrypt or passphrase_file is not None else None
    public = write_new_keys(file, KeyKind(kind.value), passphrase)
    fingerprint = public_key_bytes(public, KeyKind(kind.value)).hex()
    if as_json:
        print_json({"private": str(file), "public": str(public), "kind": kind.value, "key": fingerprint})
        return
    print_facts([("private", f"{file} (keep it secret)"), ("public", str(public)), ("key", fingerprint)])


def _show(paths: list[Path] = argument("Public keys.", "PATH..."), as_json: bool = options.JSON) -> None:
    from compiler.artifact.keys import kind_of, public_keys

    rows = []
    for path in paths:
        for each in sorted(path.iterdir()) if path.is_dir() else [path]:
            kind = kind_of(each)
            rows.append((str(each), kind.value, public_keys([each], kind)[0].hex()))
    if as_json:
        print_json([{"path": path, "kind": kind, "key": key} for path, kind, key in rows])
    else:
        print_table(("file", "kind", "key"), rows)
