"""What certificates say of themselves: when they expire, and what kind of key they are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.x509 import Certificate as Parsed

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate.

    Attributes:
        expires: Unix seconds.
        key_kind: such as RSA, P-256 or Ed25519.
    """

    expires: float
    key_kind: str


def certificates(pem: bytes) -> list[Certificate]:
    """Those in a PEM file, in its order.

    Raises:
        ValueError: one cannot be read, or there is none.
    """
    # A tenth of a second, which a server without TLS has no need to wait.
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

    try:
        parsed = load_pem_x509_certificates(pem)
    except InvalidVersion as error:  # which is no ValueError
        raise ValueError(f"a certificate cannot be read: {error}") from error
    return [Certificate(each.not_valid_after_utc.timestamp(), _key_kind(each)) for each in parsed]


def _key_kind(certificate: Parsed) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm:
        return "unknown"
    if isinstance(key, EllipticCurvePublicKey):
        return _CURVES.get(key.curve.name, key.curve.name)
    return type(key).__name__.lstrip("_").removesuffix("PublicKey")
