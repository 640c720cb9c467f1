"""The listener over TLS: real handshakes, with certificates that each test makes."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import DAY, Authority, Issued, replace
from edge_harness import Clockwork
from fakes import MemoryLedgerStore
from grpc_health.v1 import health_pb2, health_pb2_grpc

from metergate.clock import SystemClock
from metergate.core.errors import CertificateInvalid
from metergate.edges.auth import Authenticator
from metergate.edges.server import ServerHandle, ServerLimits, start_server
from metergate.edges.tls import Certificates, TlsFiles

SERVING = health_pb2.HealthCheckResponse.SERVING


def files_in(folder: Path, client_ca: str | None = None) -> TlsFiles:
    client_ca_path = None if client_ca is None else folder / client_ca
    return TlsFiles(certificate_path=folder / "tls.crt", key_path=folder / "tls.key", client_ca_path=client_ca_path)


@asynccontextmanager
async def listening(files: TlsFiles) -> AsyncIterator[ServerHandle]:
    handle = await start_server(
        address="127.0.0.1:0",
        servicers=[],
        authenticator=Authenticator(MemoryLedgerStore(), Clockwork(), SystemClock()),
        limits=ServerLimits(),
        certificates=Certificates(files, SystemClock()),
    )
    try:
        yield handle
    finally:
        await handle.server.stop(None)


def channel(handle: ServerHandle, authority: Authority, client: Issued | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=authority.pem,
        private_key=None if client is None else client.key,
        certificate_chain=None if client is None else client.certificate,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(f"localhost:{handle.port}", credentials, options=options)


async def health(open_channel: grpc.aio.Channel) -> int:
    stub: Any = health_pb2_grpc.HealthStub(open_channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status)


async def is_served(handle: ServerHandle, authority: Authority, client: Issued | None = None) -> bool:
    """Whether a new connection, which trusts this authority, is served."""
    async with channel(handle, authority, client) as fresh:
        try:
            return await health(fresh) == SERVING
        except grpc.aio.AioRpcError as exc:
            if exc.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority, and its certificate for the listener in tls.crt and tls.key."""
    authority = Authority()
    authority.issue().write(tmp_path)
    return authority


async def test_an_app_that_trusts_the_authority_is_served_and_another_is_not(
    tmp_path: Path, authority: Authority
) -> None:
    async with listening(files_in(tmp_path)) as handle:
        assert await is_served(handle, authority)
        assert not await is_served(handle, Authority("another"))


async def test_new_certificates_serve_new_connections_while_a_stream_goes_on(
    tmp_path: Path, authority: Authority
) -> None:
    renewed = Authority("a new authority")
    async with listening(files_in(tmp_path)) as handle, channel(handle, authority) as old:
        stub: Any = health_pb2_grpc.HealthStub(old)
        stream = stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert (await stream.read()).status == SERVING
        renewed.issue().write(tmp_path)
        assert await is_served(handle, renewed)
        assert not await is_served(handle, authority)
        assert await health(old) == SERVING
        await handle.health.enter_graceful_shutdown()
        assert (await stream.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        stream.cancel()


def not_pem(folder: Path, authority: Authority) -> None:
    replace(folder / "tls.crt", b"x")


def other_key(folder: Path, authority: Authority) -> None:
    replace(folder / "tls.key", authority.issue().key)


def open_key(folder: Path, authority: Authority) -> None:
    (folder / "tls.key").chmod(0o604)


def writable_key(folder: Path, authority: Authority) -> None:
    (folder / "tls.key").chmod(0o660)


def locked_key(folder: Path, authority: Authority) -> None:
    authority.issue(password=b"secret").write(folder)


def no_key(folder: Path, authority: Authority) -> None:
    (folder / "tls.key").unlink()


def key_is_no_key(folder: Path, authority: Authority) -> None:
    replace(folder / "tls.key", authority.pem)


def expired(folder: Path, authority: Authority) -> None:
    authority.issue(begins=-9 * DAY, ends=-DAY).write(folder)


def of_tomorrow(folder: Path, authority: Authority) -> None:
    authority.issue(begins=DAY).write(folder)


def enormous(folder: Path, authority: Authority) -> None:
    replace(folder / "tls.crt", b"x" * 2**21)


def a_folder(folder: Path, authority: Authority) -> None:
    (folder / "tls.crt").unlink()
    (folder / "tls.crt").mkdir()


BAD = [
    (not_pem, "certificate_path", "it must be PEM"),
    (other_key, "key_path", "it is not the key of the first certificate"),
    (open_key, "key_path", "its mode 0604 lets others at it; chmod 600"),
    (writable_key, "key_path", "its mode 0660 lets others at it; chmod 600"),
    (locked_key, "key_path", "it is encrypted"),
    (no_key, "key_path", "No such file or directory"),
    (key_is_no_key, "key_path", "it has no private key that can be read"),
    (expired, "certificate_path", "it expired at 20"),
    (of_tomorrow, "certificate_path", "it is not valid before 20"),
    (enormous, "certificate_path", "it is larger than 1,048,576 bytes"),
    (a_folder, "certificate_path", "Is a directory"),
]


@pytest.mark.parametrize(("spoil", "key", "problem"), BAD, ids=[spoil.__name__ for spoil, _, _ in BAD])
def test_bad_files_are_refused_with_their_key_name_and_reason(
    tmp_path: Path, authority: Authority, spoil: Callable[[Path, Authority], None], key: str, problem: str
) -> None:
    spoil(tmp_path, authority)
    with pytest.raises(CertificateInvalid) as caught:
        Certificates(files_in(tmp_path), SystemClock())
    assert caught.value.key == f"listener.tls.{key}"
    assert caught.value.path == str(
        tmp_path / key.replace("certificate_path", "tls.crt").replace("key_path", "tls.key")
    )
    assert problem in caught.value.problem
    assert "PRIVATE KEY" not in str(caught.value)


@pytest.mark.parametrize("spoil", [not_pem, other_key, expired, no_key], ids=lambda spoil: spoil.__name__)
async def test_a_bad_new_file_is_logged_once_and_the_old_certificates_stay(
    tmp_path: Path,
    authority: Authority,
    spoil: Callable[[Path, Authority], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with listening(files_in(tmp_path)) as handle:
        spoil(tmp_path, authority)
        assert await is_served(handle, authority)
        assert await is_served(handle, authority)
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert errors[0].startswith("new certificates are not served, the old ones stay: listener.tls.")
        renewed = Authority("a new authority")
        renewed.issue().write(tmp_path)
        assert await is_served(handle, renewed)


@pytest.mark.parametrize(("days", "warnings"), [(29, 1), (31, 0)])
def test_a_certificate_that_expires_within_30_days_is_warned_of(
    tmp_path: Path, authority: Authority, days: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    authority.issue(ends=days * DAY).write(tmp_path)
    Certificates(files_in(tmp_path), SystemClock())
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warnings


async def test_mutual_tls_serves_only_apps_with_a_certificate_of_the_authority(
    tmp_path: Path, authority: Authority
) -> None:
    of_apps = Authority("the authority of apps")
    replace(tmp_path / "apps.crt", of_apps.pem)
    async with listening(files_in(tmp_path, "apps.crt")) as handle:
        assert await is_served(handle, authority, of_apps.issue())
        assert not await is_served(handle, authority)
        assert not await is_served(handle, authority, Authority("another").issue())
        assert not await is_served(handle, authority, authority.issue())


def test_an_authority_of_apps_that_is_none_is_refused(tmp_path: Path, authority: Authority) -> None:
    replace(tmp_path / "apps.crt", b"")
    with pytest.raises(CertificateInvalid, match=r"listener\.tls\.client_ca_path: .*apps\.crt"):
        Certificates(files_in(tmp_path, "apps.crt"), SystemClock())


def shake_hands(port: int, version: ssl.TLSVersion) -> str | None:
    """The version that was agreed on, by a client that would take any cipher; None if none was."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    context.maximum_version = version
    context.minimum_version = version
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain) as secure:
            return secure.version()
    except (ssl.SSLError, ConnectionError):
        return None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
async def test_nothing_older_than_tls_1_2_is_spoken(tmp_path: Path, authority: Authority) -> None:
    async with listening(files_in(tmp_path)) as handle:

        async def agreed(version: ssl.TLSVersion) -> str | None:
            return await asyncio.to_thread(shake_hands, handle.port, version)

        assert await agreed(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert await agreed(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert await agreed(ssl.TLSVersion.TLSv1_1) is None
        assert await agreed(ssl.TLSVersion.TLSv1) is None


async def test_plaintext_is_not_served_beside_tls(tmp_path: Path, authority: Authority) -> None:
    async with listening(files_in(tmp_path)) as handle:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{handle.port}") as plain:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health(plain)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await is_served(handle, authority)


async def test_garbage_in_place_of_a_handshake_harms_nobody(tmp_path: Path, authority: Authority) -> None:
    async with listening(files_in(tmp_path)) as handle:
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70_000), b""):
            _, writer = await asyncio.open_connection("127.0.0.1", handle.port)
            writer.write(garbage)
            writer.close()
        assert await is_served(handle, authority)
