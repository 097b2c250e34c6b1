"""TLS 1.3 and nothing older, for all of gRPC in this process. Apart from `server`, which imports gRPC: that is too late."""

import os
import sys

# No suite of TLS 1.2 works with our keys (they are not RSA), so that 1.3, whose suites are not chosen here, is all that is left.
TLS_1_3_ONLY = {"GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES256-GCM-SHA384"}


def require_tls_1_3() -> None:
    """Before gRPC is imported: it reads this then, once, and has no other switch."""
    assert "grpc" not in sys.modules, "gRPC has chosen its cipher suites already"
    os.environ.update(TLS_1_3_ONLY)
