"""Join tokens: one line of text that lets one node in once, made and read as values.

The text carries a secret, the moment it expires and the hash of the cluster's CA. From these a P-256 key and a certificate
follow (HKDF, RFC 5869), the same on both sides: the issuer keeps only the certificate, the joiner proves the secret by
the TLS handshake itself, and the secret never travels. Because expiry and CA are part of what the key follows from, a
token that somebody edited is an unknown one. Storing and redeeming are for `agent.services.cluster`.
"""

import base64
import datetime
import hashlib
import re
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kvorum.errors import InvalidInput, PermissionDenied, Refused

from .certificates import URI_SCHEME, key_to_pem, sign_for_itself

DEFAULT_TTL_S = 3600
MAX_TTL_S = 604_800
TOKENS_DIRECTORY = "priv/join-tokens"

ID_BYTES = 5
SECRET_BYTES = 20

NEW_TOKEN = "make a new one on a member with 'kvorum cluster token'"  # noqa: S105 - a remedy, not a secret

_TEXT = re.compile(r"kv1\.([a-z2-7]{8})\.([a-z2-7]{32})\.([0-9a-f]{8})\.([0-9a-f]{64})")
# Order of the group of P-256 (FIPS 186-5).
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True, slots=True)
class JoinToken:
    id: str
    secret: bytes
    # Seconds since the epoch.
    expires: int
    # SHA-256 of the CA's certificate (DER), hex.
    ca_hash: str

    def __repr__(self) -> str:
        return f"JoinToken({self.id})"  # the secret must not reach a log


class StoredToken(msgspec.Struct, frozen=True, kw_only=True):
    """What the store keeps of a token that nobody has used yet, at `priv/join-tokens/<id>.json`."""

    id: str
    # PEM; what the joiner must prove to hold the key of.
    certificate: str
    expires: int
    author: str


def make_token(*, ca_hash: str, ttl_s: int, now: datetime.datetime, random: bytes) -> JoinToken:
    """`random`: ID_BYTES + SECRET_BYTES of it, unpredictable. Raises InvalidInput for a bad time to live."""
    if not 0 < ttl_s <= MAX_TTL_S:
        raise InvalidInput(f"a join token lives 1 to {MAX_TTL_S} seconds, not {ttl_s}", field="ttl_seconds")
    assert len(random) == ID_BYTES + SECRET_BYTES
    return JoinToken(
        id=base64.b32encode(random[:ID_BYTES]).decode().lower(),
        secret=random[ID_BYTES:],
        expires=int(now.timestamp()) + ttl_s,
        ca_hash=ca_hash,
    )


def render_token(token: JoinToken) -> str:
    secret = base64.b32encode(token.secret).decode().lower()
    return f"kv1.{token.id}.{secret}.{token.expires:08x}.{token.ca_hash}"


def parse_token(text: str) -> JoinToken:
    """Raises InvalidInput when it is no token at all; whether it is good only the cluster knows."""
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            "this is no join token", field="token", remedy="copy it whole, as 'kvorum cluster token' printed it"
        )
    name, secret, expires, ca_hash = match.groups()
    return JoinToken(id=name, secret=base64.b32decode(secret.upper()), expires=int(expires, 16), ca_hash=ca_hash)


def token_credentials(token: JoinToken) -> tuple[bytes, bytes]:
    """The key and the self-signed certificate that follow from a token; PEM."""
    key = _derive_key(token)
    until = datetime.datetime.fromtimestamp(token.expires, datetime.UTC)
    certificate = sign_for_itself(
        key,
        name=f"join token {token.id}",
        uri=f"{URI_SCHEME}token/{token.id}",
        serial=int.from_bytes(hashlib.sha256(token.id.encode()).digest()[:16]) | 1,
        since=until - datetime.timedelta(seconds=2 * MAX_TTL_S),
        until=until,
    )
    return key_to_pem(key), certificate


def stored(token: JoinToken, *, author: str) -> StoredToken:
    _, certificate = token_credentials(token)
    return StoredToken(id=token.id, certificate=certificate.decode(), expires=token.expires, author=author)


def entry_path(token_id: str) -> str:
    return f"{TOKENS_DIRECTORY}/{token_id}.json"


def parse_stored(content: bytes) -> StoredToken:
    """Raises PermissionDenied: a damaged entry lets nobody in."""
    try:
        return msgspec.json.decode(content, type=StoredToken)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PermissionDenied(f"the join token's entry is damaged: {error}", remedy=NEW_TOKEN) from error


def require_unexpired(expires: int, *, now: datetime.datetime) -> None:
    """Raises Refused."""
    if now.timestamp() >= expires:
        moment = datetime.datetime.fromtimestamp(expires, datetime.UTC)
        raise Refused(f"the join token has expired, at {moment:%Y-%m-%d %H:%M:%S} UTC", remedy=NEW_TOKEN)


def unknown_token() -> PermissionDenied:
    """For a token that is well formed but that the cluster does not (any longer) have."""
    return PermissionDenied(
        "the cluster does not know this join token: it has been used already, or withdrawn", remedy=NEW_TOKEN
    )


def wrong_authority(address: str) -> Refused:
    return Refused(
        f"{address} is not of the cluster that the join token was made for: its CA is another one",
        remedy="check the address; if it is right, somebody may be in between. " + NEW_TOKEN.capitalize(),
    )


def _derive_key(token: JoinToken) -> ec.EllipticCurvePrivateKey:
    info = f"kvorum join token 1|{token.id}|{token.expires}|{token.ca_hash}".encode()
    # 48 bytes for a 32-byte order: the remainder is as good as uniform (FIPS 186-5, A.2.1).
    material = HKDF(algorithm=hashes.SHA256(), length=48, salt=None, info=info).derive(token.secret)
    return ec.derive_private_key(int.from_bytes(material) % (_P256_ORDER - 1) + 1, ec.SECP256R1())
