"""`virtualmle keygen` and `init`: the key pair of operator mode, and a home whose datasets are sealed for it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import HERE, Home, Json


def keygen(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory of the two files.")] = Path("keys"),
    as_json: Json = False,
) -> None:
    """Create a key pair for operator mode.

    Run it where the test sets will be opened, not where models are tuned. An existing key is never overwritten.

    Example: virtualmle keygen --out ~/seal-keys
    """
    from ..examiner.operator_keys import create_keys  # imports cryptography

    private, public = create_keys(out.expanduser().resolve())
    if as_json:
        print(json.dumps({"private_key": str(private), "public_key": str(public)}, indent=1))
        return
    print(f"private key: {private}")
    print("  Keep it on this machine, readable by you only, and keep a copy offline: without it no test set that is")
    print("  sealed for it can be opened. Never copy it to the machine of the agent.")
    print(f"public key:  {public}")
    print(f"  Copy it to the machine that tunes, and run there: virtualmle init --public-key {public.name}")


def init(
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key",
            metavar="FILE",
            help="Seal test sets for this key of `virtualmle keygen`.",
            show_default="a key pair in the home",
        ),
    ] = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Create a home.

    With --public-key, the home is in operator mode: its datasets are sealed for a key that is kept elsewhere, finalize
    leaves a sealed choice, and only the holder of the key can take the look. Other commands create a home as needed.

    Example: virtualmle init --home ~/recsys --public-key public_key
    """
    from ..examiner.operator_keys import read_public_keys
    from ..examiner.vault import Vault
    from .options import open_workspace

    vault = Vault(home)
    if public_key is None:
        vault.public_key()
    else:
        keys = read_public_keys(public_key.expanduser())
        vault.use_operator_key(keys.sealing, keys.verifying)
    open_workspace(home).close()
    if as_json:
        print(json.dumps({"home": str(home), "mode": vault.mode, "answers_verified": vault.verify_key() is not None}))
        return
    where = "the private key is kept elsewhere" if vault.mode == "operator" else "the key pair is in its vault"
    print(f"{home}: {vault.mode} mode; {where}")
