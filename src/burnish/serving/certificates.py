"""The certificate and key of the doors."""

from __future__ import annotations

import ssl

import grpc
from cryptography import x509

from burnish.config.serving import TlsConfig
from burnish.errors import ConfigError


def certificate_end(tls: TlsConfig) -> float:
    """When the certificate ends, in seconds since 1970.

    Raises:
        ConfigError: certificate and key cannot be read, or do not belong together.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
        first = x509.load_pem_x509_certificates(tls.certificate.read_bytes())[0]
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"tls.certificate={tls.certificate} with tls.key={tls.key}: {error}") from error
    return first.not_valid_after_utc.timestamp()


def grpc_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """What a gRPC server needs for TLS."""
    return grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.certificate.read_bytes())])
