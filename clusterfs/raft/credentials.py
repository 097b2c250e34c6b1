"""Who we are and whom we believe: TLS 1.3 contexts from files, and the node that a certificate names.

Only the cluster's own CA counts, both sides must show a certificate, and what identifies a peer is the one SAN URI
`kvorum://node/<uid>` in it; names and addresses change. Users' and tokens' certificates of the same CA name no node.
"""

import ssl
from pathlib import Path

from .values import TlsFiles

PROTOCOL = "kvorum-raft/1"
_URI = "kvorum://node/"


class Credentials:
    """Contexts made anew when a file has changed, so that a renewed certificate serves the next connection."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps: tuple[int, ...] = ()
        self._load()

    def server(self) -> ssl.SSLContext:
        self._load()
        return self._server

    def client(self) -> ssl.SSLContext:
        self._load()
        return self._client

    def _load(self) -> None:
        """Raises OSError (ssl.SSLError is one) when the files cannot be used and there is nothing older to go on with."""
        try:
            stamps = tuple(_stamp(path) for path in (self._files.ca, self._files.certificate, self._files.key))
            if stamps == self._stamps:
                return
            server, client = _context(self._files, server=True), _context(self._files, server=False)
        except OSError:
            # Files that are being replaced: the old contexts serve until they fit together again.
            if self._stamps:
                return
            raise
        self._stamps, self._server, self._client = stamps, server, client


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def _context(files: TlsFiles, *, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The peer is told by its UUID below, not by the name it was dialled by.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(files.ca)
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols([PROTOCOL])
    if server:
        context.num_tickets = 0
    return context


def node_of(connection: ssl.SSLSocket) -> str | None:
    """The uid in the verified peer's certificate; None when it names no node, or several."""
    certificate = connection.getpeercert() or {}
    # typeshed cannot tell the parts of a certificate apart.
    names: list[tuple[str, str]] = list(certificate.get("subjectAltName", ()))  # type: ignore[arg-type]
    uids = [name.removeprefix(_URI) for kind, name in names if kind == "URI" and name.startswith(_URI)]
    return uids[0] if len(uids) == 1 and uids[0] else None
