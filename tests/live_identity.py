"""A server that asks who is calling, and the files that say it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme

from live_server import LiveServer

TOKEN = "a-token-of-some-length"


@contextmanager
def asking_server(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a server with mutual TLS and a token, and what reaches it: a file by the name of its setting."""
    authority = trustme.CA()
    served, own = authority.issue_cert("localhost"), authority.issue_cert("trainer")
    files = {name: folder / name for name in ("ca", "certificate", "key", "own_certificate", "own_key", "token")}
    authority.cert_pem.write_to_path(files["ca"])
    served.cert_chain_pems[0].write_to_path(files["certificate"])
    served.private_key_pem.write_to_path(files["key"])
    own.cert_chain_pems[0].write_to_path(files["own_certificate"])
    own.private_key_pem.write_to_path(files["own_key"])
    files["token"].write_text(f"{TOKEN}\n")
    flags = {"certificate": "tls-certificate", "key": "tls-key", "ca": "tls-client-ca", "token": "tokens"}
    options = [part for name, flag in flags.items() for part in (f"--{flag}", str(files[name]))]
    settings = {"ca_file": "ca", "certificate_file": "own_certificate", "key_file": "own_key", "token_file": "token"}
    with LiveServer(*options, wait=False) as live:
        port = live.address.rpartition(":")[2]
        yield f"localhost:{port}", {setting: str(files[name]) for setting, name in settings.items()}
