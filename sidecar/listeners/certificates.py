"""The certificates of the local authority: what they say. No files, no clock.

The authority may vouch for the listed hosts and nothing else (RFC 5280, 4.2.1.10), so that its key, should
it be stolen, opens no other connection of the clients that trust it.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Collection, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ORGANIZATION: Final = "nextvision-sidecar"
"""Of our own certificates: by it they are told from others' in a bundle."""
AUTHORITY_YEARS: Final = 10
LEAF_DAYS: Final = 7
BACKDATED: Final = dt.timedelta(days=1)
"""A client whose clock is slow takes a certificate for not yet valid."""
_LONGEST_COMMON_NAME: Final = 64
_ALL_ADDRESSES: Final = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def authority(key: Key, hosts: Collection[str], wall: float) -> x509.Certificate:
    """The certificate of an authority for `hosts`, signed by itself, `wall` (Unix seconds) being now.

    Of one key the name is always the same: a certificate made anew for other hosts takes the place of
    the one before in chains that clients with the old bundle build.
    """
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Sidecar local CA {identifier.digest[:4].hex()}"),
        ]
    )
    now = dt.datetime.fromtimestamp(wall, dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + dt.timedelta(days=365 * AUTHORITY_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.NameConstraints(
                permitted_subtrees=[x509.DNSName(host) for host in sorted(set(hosts))],
                # A kind of name that no constraint speaks of is not constrained.
                excluded_subtrees=[x509.IPAddress(network) for network in _ALL_ADDRESSES],
            ),
            critical=True,
        )
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def leaf(host: str, key: Key, ca: x509.Certificate, ca_key: Key, wall: float) -> x509.Certificate:
    """A server's certificate for `host`."""
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION)]
    if len(host) <= _LONGEST_COMMON_NAME:
        names.append(x509.NameAttribute(NameOID.COMMON_NAME, host))
    public = key.public_key()
    now = dt.datetime.fromtimestamp(wall, dt.UTC)
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(ca.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(now + dt.timedelta(days=LEAF_DAYS), ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def is_ours(certificate: x509.Certificate) -> bool:
    """Whether a sidecar made it as its authority's."""
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return any(it.value == ORGANIZATION for it in found) and certificate.subject == certificate.issuer


def outside(certificate: x509.Certificate, hosts: Sequence[str]) -> list[str]:
    """Those of `hosts` that the authority may not vouch for."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return []
    permitted = [it.value for it in constraints.permitted_subtrees or () if isinstance(it, x509.DNSName)]
    excluded = [it.value for it in constraints.excluded_subtrees or () if isinstance(it, x509.DNSName)]
    return [
        host
        for host in hosts
        if (permitted and not any(_within(host, it) for it in permitted))
        or any(_within(host, it) for it in excluded)
    ]


def _within(host: str, constraint: str) -> bool:
    """RFC 5280, 4.2.1.10: a name is within when labels are added to the left of the constraint, or none."""
    constraint = constraint.lower().removeprefix(".")
    return host == constraint or host.endswith(f".{constraint}") or not constraint


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Key) -> bytes:
    """The private key, not encrypted: for a file of mode 0600, or for memory."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
