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
        raise ValueError(str(error)) from error
    return [Certificate(each.not_valid_after_utc.timestamp(), _key_kind(each)) for each in parsed]


def belong_together(certificate: bytes, key: bytes) -> bool:
    """Whether a PEM file's private key is that of the first certificate in another.

    Raises:
        ValueError: one of them cannot be read, or the key is encrypted.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificate

    try:
        # Whether it is a sound key is not asked here, and to find that out of one of RSA holds up every thread.
        own = load_pem_private_key(key, None, unsafe_skip_rsa_key_validation=True).public_key()
        return bool(own == load_pem_x509_certificate(certificate).public_key())
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(str(error)) from error


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
