"""`tensorwright sign` and `tensorwright verify`."""

from __future__ import annotations

from pathlib import Path

import typer

from compiler.cli import options
from compiler.cli.options import option
from compiler.cli.output import print_json, print_line
from compiler.errors import OptionError

SIGN_HELP = """Sign a module, so that others can verify its origin and that it has not changed.

The signature covers every byte: code, weights and manifest. Signing again with the same key replaces its signature.

[bold]Typical[/]

  tensorwright key new release.pem
  tensorwright sign model.twm --key release.pem
"""

VERIFY_HELP = """Check that a module is intact and signed by a key that you trust, without running it.

[bold]Typical[/]

  tensorwright verify model.twm --trusted-key release.pem.pub
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("sign", help=SIGN_HELP)(_sign)
    app.command("verify", help=VERIFY_HELP)(_verify)


def _sign(
    module: Path = options.MODULE_PATH,
    key: Path = option("An Ed25519 private key (PEM).", "FILE", default=...),
    passphrase_file: Path | None = options.PASSPHRASE_FILE,
    as_json: bool = options.JSON,
) -> None:
    from compiler.artifact import KeyKind, sign
    from compiler.artifact.keys import public_of
    from compiler.cli.passphrases import load_private_key
    from compiler.cli.paths import check_is_module

    check_is_module(module)
    private = load_private_key(key, KeyKind.SIGNING, passphrase_file)
    sign(module, private)
    public = public_of(private).hex()
    if as_json:
        print_json({"module": str(module), "key": public})
    else:
        print_line(f"signed {module} with key {public[:16]}...")


def _verify(
    module: Path = options.MODULE_PATH, trusted: list[Path] | None = options.TRUSTED_KEYS, as_json: bool = options.JSON
) -> None:
    from compiler.artifact import public_keys, read_artifact, signatures_of
    from compiler.cli.paths import check_is_module

    if not trusted:
        raise OptionError("no key to verify with is given", "name the keys that you trust: --trusted-key FILE")
    check_is_module(module)
    read_artifact(module, trusted)
    keys = public_keys(trusted)
    signers = [each.public_key.hex() for each in signatures_of(module) if each.public_key in keys]
    if as_json:
        print_json({"module": str(module), "keys": signers})
    else:
        print_line(f"{module} is whole, and signed by {', '.join(f'{each[:16]}...' for each in signers)}")
