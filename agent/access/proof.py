"""What a peer's certificate proves, and whether that still counts: the decision behind each call over TLS.

The handshake has shown that the peer holds the certificate's key and that some root we trust signed it. That is not enough:
roots include join tokens, a signature may be of somebody who was removed since, and connections outlive all of it. So
each call is judged anew from values: the certificate, the CA, the members, the token's entry, the moment.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from kvorum.errors import PermissionDenied

from .caller import Caller, CallerKind, parse_user
from .certificates import holder_of, is_issued_by
from .join_token import StoredToken, require_unexpired, unknown_token

# How far apart clocks of nodes may be before a certificate counts as not yet valid.
CLOCK_SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Claim:
    """Who the certificate says the peer is. `public_key` is DER; `by_authority`: the CA itself signed it."""

    kind: CallerKind
    # A node's uid, a user's name, a token's id.
    name: str
    public_key: bytes
    by_authority: bool
    not_before: datetime.datetime
    not_after: datetime.datetime


@lru_cache(maxsize=256)
def read_claim(certificate_pem: bytes, authority_pem: bytes) -> Claim:
    """Raises PermissionDenied when the certificate names nobody."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        kind, name = holder_of(certificate)
        key = certificate.public_key()
    except ValueError as error:
        raise PermissionDenied(f"cannot read the peer's certificate: {error}") from error
    return Claim(
        kind=CallerKind(kind),
        name=name,
        public_key=key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        by_authority=is_issued_by(certificate_pem, authority_pem),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def prove(claim: Claim, *, members: Mapping[str, str], token: StoredToken | None, now: datetime.datetime) -> Caller:
    """The caller, or PermissionDenied. `members`: uid to name. `token`: the store's entry for the token that is claimed."""
    if not claim.not_before - CLOCK_SKEW <= now <= claim.not_after:
        raise PermissionDenied("the peer's certificate is not valid now", remedy="check both clocks")
    if claim.kind is CallerKind.token:
        return _prove_token(claim, token, now)
    if not claim.by_authority:
        raise PermissionDenied("the peer's certificate is not signed by the cluster's CA")
    if claim.kind is CallerKind.user:
        return Caller(CallerKind.user, parse_user(claim.name))
    name = members.get(claim.name)
    if name is None:
        raise PermissionDenied(f"node {claim.name} is not a member of this cluster")
    return Caller(CallerKind.node, name)


def _prove_token(claim: Claim, token: StoredToken | None, now: datetime.datetime) -> Caller:
    if token is None or token.id != claim.name:
        raise unknown_token()
    require_unexpired(token.expires, now=now)
    kept = x509.load_pem_x509_certificate(token.certificate.encode()).public_key()
    der = kept.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if der != claim.public_key:
        raise unknown_token()
    return Caller(CallerKind.token, claim.name)
