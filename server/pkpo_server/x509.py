"""What certificates say of themselves (RFC 5280): when they expire, and what kind of key they are for.

The standard library tells neither of a server's own certificate. A library that does takes 0.1 s to import, and these
are the operator's files, which OpenSSL has accepted before they are read here.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

_BLOCK = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# Tags of DER. Of a time's year, one kind has four digits, the other the last two: of 1950 to 2049.
_VERSION, _UTC_TIME = 0xA0, 0x17
_LONG_LENGTH = 0x80
# Object identifiers, as they are encoded; of elliptic curves the curve's, since that is what differs.
_EC = bytes.fromhex("2a8648ce3d0201")
_KINDS = {
    bytes.fromhex("2a864886f70d010101"): "RSA",
    bytes.fromhex("2a864886f70d01010a"): "RSA-PSS",
    bytes.fromhex("2a8648ce3d030107"): "P-256",
    bytes.fromhex("2b81040022"): "P-384",
    bytes.fromhex("2b81040023"): "P-521",
    bytes.fromhex("2b8104000a"): "secp256k1",
    bytes.fromhex("2b6570"): "Ed25519",
    bytes.fromhex("2b6571"): "Ed448",
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate.

    Attributes:
        expires: Unix seconds.
        key_kind: such as RSA, P-256 or Ed25519; "unknown" where it is none of the common ones.
    """

    expires: float
    key_kind: str


def certificates(pem: bytes) -> list[Certificate]:
    """Those in a PEM file, in its order.

    Raises:
        ValueError: one cannot be read, or there is none.
    """
    blocks = _BLOCK.findall(pem.decode("latin-1"))
    if not blocks:
        raise ValueError("there is no certificate in it")
    try:
        return [_certificate(ssl.PEM_cert_to_DER_cert(block)) for block in blocks]
    except ValueError as error:
        raise ValueError(f"a certificate cannot be read: {error}") from error


def _certificate(der: bytes) -> Certificate:
    ((_, whole),) = _elements(der)
    (_, signed), *_ = _elements(whole)
    # Serial number, algorithm, issuer, validity, subject, key; the version before them may be absent.
    _, _, _, validity, _, key, *_ = (content for tag, content in _elements(signed) if tag != _VERSION)
    _, expires = _elements(validity)
    return Certificate(_seconds(*expires), _key_kind(key))


def _key_kind(key: bytes) -> str:
    (_, algorithm), _ = _elements(key)
    (_, name), *parameters = _elements(algorithm)
    if name == _EC:
        ((_, name),) = parameters
    return _KINDS.get(name, "unknown")


def _seconds(tag: int, time: bytes) -> float:
    text = time.decode()
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The tag and the content of each element of DER, one after the other."""
    at = 0
    while at < len(content):
        tag, length = content[at : at + 2]
        at += 2
        if length >= _LONG_LENGTH:
            digits = length - _LONG_LENGTH
            length = int.from_bytes(content[at : at + digits], "big")
            at += digits
        if at + length > len(content):
            raise ValueError("it ends too early")
        yield tag, content[at : at + length]
        at += length
