"""TLS of the listener: certificates that are checked before they are served, and read again when their files change.

gRPC asks for the certificates at every handshake, so that new ones serve new connections and open streams go on. A bad
new file is logged and the old certificates stay. Below TLS 1.2 gRPC itself refuses.
"""

import logging
import os
import stat
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from metergate.core.errors import CertificateInvalid
from metergate.core.times import datetime_of
from metergate.ports import Clock

_log = logging.getLogger(__name__)

# A chain of certificates has some kilobytes, a bundle of every public authority 250 kB: more is the wrong file.
FILE_BYTES_MAX = 1024 * 1024

# Two renewals of a certificate that is made anew every two weeks may fail before it is too late.
EXPIRY_WARNING = timedelta(days=30)

# Its owner may do anything, its group may read (how Kubernetes mounts secrets), nobody else anything.
_KEY_MODE_REFUSED = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where the listener's certificates are, all PEM."""

    certificate_path: Path  # the listener's own certificate, then its intermediates
    key_path: Path  # unencrypted
    client_ca_path: Path | None  # the authorities of apps' certificates, then required; None: apps need none


@dataclass(frozen=True, slots=True)
class _Version:
    """Which content a file has, without reading it."""

    inode: int
    size: int
    modified_ns: int


class Certificates:
    """The certificates that are served now. CertificateInvalid at first if they cannot be."""

    def __init__(self, files: TlsFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._versions = self._look()  # before reading: what changes meanwhile is read again
        self._configuration = read_certificates(files, clock)

    def credentials(self) -> grpc.ServerCredentials:
        """What a server listens with."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._changed,  # type: ignore[arg-type]  # None is "unchanged", which the stubs do not know
            require_client_authentication=self._files.client_ca_path is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """New certificates for this connection and later ones; None if there are none.

        Called in threads of gRPC's own at every handshake, which would fail with it: it never raises.
        """
        versions = self._look()
        if versions == self._versions:
            return None
        self._versions = versions  # a bad file is reported once, not at every connection
        try:
            changed = read_certificates(self._files, self._clock)
        except CertificateInvalid as exc:
            _log.error("new certificates are not served, the old ones stay: %s", exc)
            return None
        except Exception as exc:  # noqa: BLE001 - a defect here must not end all handshakes
            _log.error("new certificates are not served, the old ones stay: %s", type(exc).__name__)
            return None
        _log.info("new certificates are served from now on")
        return changed

    def _look(self) -> tuple[_Version | None, ...]:
        files = self._files
        paths = (files.certificate_path, files.key_path, files.client_ca_path)
        return tuple(None if path is None else _version(path) for path in paths)


def read_certificates(files: TlsFiles, clock: Clock) -> grpc.ServerCertificateConfiguration:
    """Read and check all files; CertificateInvalid names the file, its key of the configuration and the reason.

    Logs a warning for each certificate that expires within ``EXPIRY_WARNING``.
    """
    now = datetime_of(clock.now_us())
    key_pem, certificate_pem = read_own_certificate(
        "listener.tls", certificate_path=files.certificate_path, key_path=files.key_path, now=now
    )
    client_ca_pem = None
    if files.client_ca_path is not None:
        client_ca_pem = read_authorities("listener.tls.client_ca_path", files.client_ca_path, now)
    return grpc.ssl_server_certificate_configuration([(key_pem, certificate_pem)], client_ca_pem)


def read_own_certificate(table: str, *, certificate_path: Path, key_path: Path, now: datetime) -> tuple[bytes, bytes]:
    """Read a key and its certificate, which the gateway shows; CertificateInvalid names the key of ``table``."""
    certificate_key = f"{table}.certificate_path"
    certificate_pem = _read(certificate_key, certificate_path)
    chain = _certificates(certificate_key, certificate_path, certificate_pem)
    for certificate in chain:
        _check_time(certificate_key, certificate_path, certificate, now)
    key_pem = _read_key(f"{table}.key_path", key_path)
    if _public_bytes(_private_key(f"{table}.key_path", key_path, key_pem)) != _public_bytes_of(chain[0]):
        problem = f"it is not the key of the first certificate in {certificate_path}"
        raise CertificateInvalid(key=f"{table}.key_path", path=str(key_path), problem=problem)
    return key_pem, certificate_pem


def read_authorities(key: str, path: Path, now: datetime) -> bytes:
    """Read a bundle of authorities' certificates; CertificateInvalid names ``key`` and the file.

    A bundle outlives some of its authorities: it is refused when the last of them expired.
    """
    content = _read(key, path)
    authorities = _certificates(key, path, content)
    _check_time(key, path, max(authorities, key=lambda authority: authority.not_valid_after_utc), now)
    return content


def _version(path: Path) -> _Version | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return _Version(status.st_ino, status.st_size, status.st_mtime_ns)


def _read(key: str, path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise CertificateInvalid(key=key, path=str(path), problem=exc.strerror or str(exc)) from exc
    if len(content) > FILE_BYTES_MAX:
        raise CertificateInvalid(key=key, path=str(path), problem=f"it is larger than {FILE_BYTES_MAX:,} bytes")
    return content


def _read_key(key: str, path: Path) -> bytes:
    content = _read(key, path)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & _KEY_MODE_REFUSED:
        problem = f"its mode {mode:04o} lets others at it; chmod 600 {path}"
        raise CertificateInvalid(key=key, path=str(path), problem=problem)
    return content


def _certificates(key: str, path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as exc:
        problem = "it has no certificate, or one that cannot be read; it must be PEM"
        raise CertificateInvalid(key=key, path=str(path), problem=problem) from exc


def _private_key(key: str, path: Path, content: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(content, password=None)
    except TypeError as exc:
        problem = "it is encrypted, and nobody is there to ask for its password; store it unencrypted"
        raise CertificateInvalid(key=key, path=str(path), problem=problem) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        problem = "it has no private key that can be read; it must be PEM"
        raise CertificateInvalid(key=key, path=str(path), problem=problem) from exc


def _public_bytes(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_bytes_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_time(key: str, path: Path, certificate: x509.Certificate, now: datetime) -> None:
    expiry = certificate.not_valid_after_utc
    if expiry <= now:
        raise CertificateInvalid(
            key=key, path=str(path), problem=f"it expired at {expiry:%Y-%m-%d %H:%M} UTC; renew it"
        )
    begin = certificate.not_valid_before_utc
    if begin > now:
        problem = f"it is not valid before {begin:%Y-%m-%d %H:%M} UTC; is this machine's clock right?"
        raise CertificateInvalid(key=key, path=str(path), problem=problem)
    if expiry - now <= EXPIRY_WARNING:
        _log.warning("%s: %s expires at %s UTC; renew it", key, path, f"{expiry:%Y-%m-%d %H:%M}")
