"""The certificates of a cluster, as values: authority, nodes, users. Keys and time come in, PEM goes out; no files here.

What a certificate says of its holder is one URI among the subject's alternative names: `kvorum://node/<uid>`,
`kvorum://user/<user@realm>` or `kvorum://token/<id>`. Names and addresses are there besides for programs that check those
(gRPC's and libvirt's clients). Every leaf says that it may not sign: a key that is trusted to prove a token or a node
must not be able to vouch for another. EC P-256 throughout, since every TLS library takes it.
"""

import datetime
import hashlib
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kvorum.errors import InvalidInput, PermissionDenied

# A DNS name in every node's certificate: a client that may call any node checks this one.
ANY_NODE = "node.kvorum.internal"
URI_SCHEME = "kvorum://"

AUTHORITY_LIFETIME = datetime.timedelta(days=20 * 365)
NODE_LIFETIME = datetime.timedelta(days=10 * 365)
# Clocks of nodes that are only now joining may be behind.
BACKDATED = datetime.timedelta(hours=24)

# X.509's upper bound for a common name.
COMMON_NAME_MAX = 64


@dataclass(frozen=True, slots=True)
class Authority:
    """The cluster's CA with its key: what may let nodes and users in. PEM."""

    certificate: bytes
    key: bytes


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate_pem: bytes) -> str:
    """SHA-256 over the DER form, in hex."""
    der = x509.load_pem_x509_certificate(certificate_pem).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def make_authority(cluster_name: str, *, now: datetime.datetime) -> Authority:
    key = new_key()
    name = _name(f"Kvorum CA {cluster_name}")
    since, until, serial = now - BACKDATED, now + AUTHORITY_LIFETIME, x509.random_serial_number()
    builder = _builder(name, name, key.public_key(), since=since, until=until, serial=serial)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Authority(certificate=to_pem(builder.sign(key, hashes.SHA256())), key=key_to_pem(key))


def make_request(key: ec.EllipticCurvePrivateKey, common_name: str) -> bytes:
    """A signing request. Nothing but its key counts: the names are the signer's business."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name)).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def sign_node(
    request: bytes, authority: Authority, *, uid: str, name: str, address: str, now: datetime.datetime
) -> bytes:
    """The certificate with which a node serves and calls. Raises InvalidInput when the request or the address is bad."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{URI_SCHEME}node/{uid}")]
    names += [x509.DNSName(name), x509.DNSName(uid), x509.DNSName(ANY_NODE)]
    names.append(x509.IPAddress(parse_address(address)))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _sign(request, authority, name, names, usages, now=now, until=now + NODE_LIFETIME)


def sign_user(
    request: bytes, authority: Authority, *, user: str, ttl: datetime.timedelta, now: datetime.datetime
) -> bytes:
    """The certificate with which a user's client calls. `user` is `user@realm`, checked by the caller."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{URI_SCHEME}user/{user}")]
    return _sign(request, authority, user, names, [ExtendedKeyUsageOID.CLIENT_AUTH], now=now, until=now + ttl)


def sign_for_itself(
    key: ec.EllipticCurvePrivateKey,
    *,
    name: str,
    uri: str,
    serial: int,
    since: datetime.datetime,
    until: datetime.datetime,
) -> bytes:
    """A certificate that only proves its own key. The same arguments give the same bytes (RFC 6979)."""
    subject = _name(name)
    builder = _builder(subject, subject, key.public_key(), since=since, until=until, serial=serial)
    builder = _leaf(builder, [x509.UniformResourceIdentifier(uri)], [ExtendedKeyUsageOID.CLIENT_AUTH])
    return to_pem(builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True))


def is_issued_by(certificate_pem: bytes, authority_pem: bytes) -> bool:
    """Whether this authority itself signed it: no intermediates, unlike what a TLS library may accept."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority_pem))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def authority_named_in(certificate_pem: bytes) -> str:
    """The fingerprint that a certificate names as its authority's; empty when none. A hint for errors, proof of nothing."""
    try:
        extension = x509.load_pem_x509_certificate(certificate_pem).extensions.get_extension_for_class(
            x509.IssuerAlternativeName
        )
    except (ValueError, x509.ExtensionNotFound):
        return ""
    for uri in extension.value.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith(f"{URI_SCHEME}ca/"):
            return uri.removeprefix(f"{URI_SCHEME}ca/")
    return ""


def holder_of(certificate: x509.Certificate) -> tuple[str, str]:
    """What the certificate says of its holder: `("node", uid)`, `("user", name)`, `("token", id)`.

    Raises PermissionDenied unless it says exactly one such thing.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        raise PermissionDenied("the certificate names no holder") from None
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(URI_SCHEME)]
    if len(uris) != 1:
        raise PermissionDenied("the certificate names no holder, or several")
    kind, slash, name = uris[0].removeprefix(URI_SCHEME).partition("/")
    if kind not in ("node", "user", "token") or not slash or not name:
        raise PermissionDenied("the certificate names a holder of no known kind")
    return kind, name


def parse_address(text: str, *, field: str = "address") -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address that other nodes can reach: neither unspecified nor multicast."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is no IP address", field=field) from None
    if address.is_unspecified or address.is_multicast:
        raise InvalidInput(f"{text} is no address of one node", field=field)
    return address


def _sign(
    request_pem: bytes,
    authority: Authority,
    common_name: str,
    names: list[x509.GeneralName],
    usages: list[x509.ObjectIdentifier],
    *,
    now: datetime.datetime,
    until: datetime.datetime,
) -> bytes:
    try:
        request = x509.load_pem_x509_csr(request_pem)
        public = request.public_key()
        is_good = request.is_signature_valid
    except Exception as error:  # malformed ASN.1 and unknown curves come as several unrelated classes
        raise InvalidInput(f"cannot read the signing request: {error}", field="certificate_signing_request") from error
    if not is_good or not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InvalidInput("the signing request is not signed by a P-256 key", field="certificate_signing_request")
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    key = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    since, serial = now - BACKDATED, x509.random_serial_number()
    builder = _builder(_name(common_name), issuer.subject, public, since=since, until=until, serial=serial)
    builder = _leaf(builder, names, usages)
    hint = x509.UniformResourceIdentifier(f"{URI_SCHEME}ca/{fingerprint(authority.certificate)}")
    builder = builder.add_extension(x509.IssuerAlternativeName([hint]), critical=False)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
    )
    return to_pem(builder.sign(key, hashes.SHA256()))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    *,
    since: datetime.datetime,
    until: datetime.datetime,
    serial: int,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public,
        serial_number=serial,
        not_valid_before=since,
        not_valid_after=until,
    )


def _leaf(
    builder: x509.CertificateBuilder, names: list[x509.GeneralName], usages: list[x509.ObjectIdentifier]
) -> x509.CertificateBuilder:
    # Both of the first two must say so: gRPC's TLS takes a trusted self-signed leaf for an issuer when only CA:FALSE does.
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=not signs_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:COMMON_NAME_MAX])])
