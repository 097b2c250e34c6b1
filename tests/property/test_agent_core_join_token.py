"""Join tokens for any secret, and certificates for any name."""

import datetime
import ipaddress

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.access.certificates import (
    authority_named_in,
    fingerprint,
    holder_of,
    is_issued_by,
    key_to_pem,
    make_authority,
    make_request,
    new_key,
    sign_node,
)
from agent.access.join_token import (
    MAX_TTL_S,
    JoinToken,
    make_token,
    parse_token,
    render_token,
    require_unexpired,
    token_credentials,
)
from kvorum.errors import InvalidInput, Refused

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
AUTHORITY = make_authority("test", now=NOW)

tokens = st.builds(
    lambda random, ttl_s, ca: make_token(ca_hash=ca, ttl_s=ttl_s, now=NOW, random=random),
    st.binary(min_size=25, max_size=25),
    st.integers(1, MAX_TTL_S),
    st.text("0123456789abcdef", min_size=64, max_size=64),
)


@given(tokens)
def test_a_token_survives_its_text(token: JoinToken) -> None:
    assert parse_token(f" {render_token(token)}\n") == token


@given(st.text())
def test_any_text_is_a_token_or_invalid(text: str) -> None:
    try:
        assert render_token(parse_token(text)) == text.strip()
    except InvalidInput as error:
        assert error.field == "token"


@settings(max_examples=30)
@given(tokens)
def test_both_sides_derive_the_same_key_and_certificate(token: JoinToken) -> None:
    key, certificate = token_credentials(token)
    assert token_credentials(parse_token(render_token(token))) == (key, certificate)
    assert holder_of(x509.load_pem_x509_certificate(certificate)) == ("token", token.id)
    assert is_issued_by(certificate, certificate)
    assert not is_issued_by(certificate, AUTHORITY.certificate)


@settings(max_examples=30)
@given(tokens, st.integers(4, 118), st.sampled_from("0123456789abcdefghijklmnopqrstuvwxyz."))
def test_an_edited_token_has_another_key_or_is_none(token: JoinToken, place: int, letter: str) -> None:
    text = render_token(token)
    edited = text[:place] + letter + text[place + 1 :]
    try:
        other = parse_token(edited)
    except InvalidInput:
        return
    assert (token_credentials(other)[0] == token_credentials(token)[0]) == (edited == text)


@given(tokens)
def test_a_token_is_good_until_its_last_second(token: JoinToken) -> None:
    expiry = datetime.datetime.fromtimestamp(token.expires, datetime.UTC)
    require_unexpired(token.expires, now=expiry - datetime.timedelta(microseconds=1))
    with pytest.raises(Refused, match="expired"):
        require_unexpired(token.expires, now=expiry)


@given(st.integers().filter(lambda ttl_s: not 0 < ttl_s <= MAX_TTL_S))
def test_a_time_to_live_has_bounds(ttl_s: int) -> None:
    with pytest.raises(InvalidInput):
        make_token(ca_hash="0" * 64, ttl_s=ttl_s, now=NOW, random=bytes(25))


def test_the_secret_is_not_shown() -> None:
    token = make_token(ca_hash="0" * 64, ttl_s=1, now=NOW, random=bytes(range(25)))
    assert "secret" not in repr(token)
    assert repr(token.secret) not in repr(token)


@settings(max_examples=20)
@given(
    st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True),
    st.uuids().map(str),
    st.ip_addresses().filter(lambda address: not address.is_multicast and not address.is_unspecified).map(str),
)
def test_a_node_certificate_says_who_the_node_is_and_nothing_the_request_wanted(
    name: str, uid: str, address: str
) -> None:
    pem = sign_node(make_request(new_key(), "root@pam"), AUTHORITY, uid=uid, name=name, address=address, now=NOW)
    certificate = x509.load_pem_x509_certificate(pem)
    assert holder_of(certificate) == ("node", uid)
    assert is_issued_by(pem, AUTHORITY.certificate)
    assert authority_named_in(pem) == fingerprint(AUTHORITY.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name, uid, "node.kvorum.internal"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(address)]
    assert certificate.subject.rfc4514_string() == f"CN={name}"


@given(st.binary(max_size=200))
def test_a_request_is_read_or_invalid(content: bytes) -> None:
    with pytest.raises(InvalidInput):
        sign_node(content, AUTHORITY, uid="u", name="n", address="10.0.0.1", now=NOW)


def test_only_p256_keys_are_signed() -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "n1")])
    key = ec.generate_private_key(ec.SECP384R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    with pytest.raises(InvalidInput, match="P-256"):
        sign_node(
            request.public_bytes(serialization.Encoding.PEM),
            AUTHORITY,
            uid="u",
            name="n",
            address="10.0.0.1",
            now=NOW,
        )
    assert b"PRIVATE KEY" in key_to_pem(new_key())
