"""The composition root: the only file that knows every adapter. Open, serve, drain, close."""

import asyncio
import logging
import os
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self
from uuid import uuid4

import uuid_utils

from metergate.clock import SystemClock
from metergate.config import Config, needing_restart
from metergate.core.audit import AuditRound
from metergate.core.errors import (
    CertificateInvalid,
    ConfigInvalid,
    IdConflict,
    MetergateError,
    StoreRefused,
    StoreUnavailable,
)
from metergate.edges.account import AccountServicer
from metergate.edges.admin import AdminServicer
from metergate.edges.admin_socket import PATH_BYTES_MAX, admin_socket_path, leave_admin_socket, start_admin_server
from metergate.edges.auth import Authenticator
from metergate.edges.catalog import CatalogServicer
from metergate.edges.http import HttpServer, operators_pages
from metergate.edges.inference import InferenceServicer
from metergate.edges.key_uses import KeyUses
from metergate.edges.pages import PageTokens
from metergate.edges.readiness import Readiness, Report, tell_health
from metergate.edges.server import ServerHandle, ServerLimits, start_server
from metergate.edges.tls import Certificates, TlsFiles
from metergate.metering.auditor import Auditor
from metergate.metering.expiry import ExpirySweep
from metergate.metering.limits import Limits
from metergate.metering.upkeep import Upkeep
from metergate.metering.use_case import Metering
from metergate.offerings import Offerings, Parts, parts_problems
from metergate.policies.webhook import WebhookPolicy, WebhookPolicyOptions
from metergate.ports import Clock, ContentPolicy, LedgerStore, Observer
from metergate.stores.sqlite import SqliteLedgerReader, SqliteLedgerStore
from metergate.stores.sqlite.connection import check_path
from metergate.telemetry.event_loop import sample_lag
from metergate.telemetry.fan_out import FanOut
from metergate.telemetry.gathering import EventClock, Gathering
from metergate.telemetry.logs import RequestLog
from metergate.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# After the last request was settled, its status still has to reach the app.
LAST_WORDS_SECONDS = 2.0

# A request that ended at its time limit still has to be settled, and its receipt and status be sent.
SETTLING_SECONDS = 60.0


async def start_problems(config: Config) -> list[MetergateError]:
    """Everything that ``Gateway.open`` would refuse, as far as that can be told without a port and the store's lock."""
    problems = list(parts_problems(config))
    try:
        _open_certificates(config, SystemClock())
    except CertificateInvalid as exc:
        problems.append(exc)
    try:
        await _check_store(config)
    except (StoreRefused, StoreUnavailable, IdConflict) as exc:
        problems.append(exc)
    return problems


async def _check_store(config: Config) -> None:
    check_path(config.store_path, create=True)
    if config.store_path.exists():
        store = await SqliteLedgerReader.open_read_only(config.store_path)
        try:
            await store.check_rate_cards(config.rate_cards)
        finally:
            await store.close()


class Gateway:
    """One gateway process: opened from a configuration, serving until it is closed."""

    def __init__(
        self,
        *,
        config: Config,
        ledger: LedgerStore,
        offerings: Offerings,
        metering: Metering,
        server: ServerHandle,
        readiness: Readiness,
        metrics: Metrics,
        pages: HttpServer | None,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._offerings = offerings
        self._metering = metering
        self._server = server
        self._readiness = readiness
        self._metrics = metrics
        self._pages = pages
        self._closing = AsyncExitStack()

    @classmethod
    async def open(cls, config: Config) -> Self:
        """Open the store, recover what a dead process left, and serve.

        StoreRefused, TokenizerInvalid, CertificateInvalid, IdConflict (a rate card with other prices than it was served
        with) or ListenerRefused if it cannot; nothing is left open then.
        """
        async with AsyncExitStack() as opened:
            clock = SystemClock()
            certificates = _open_certificates(config, clock)
            parts = await asyncio.to_thread(Parts.of, config)
            event_clock = EventClock(time.monotonic)
            metrics = Metrics(parts.catalog, event_clock.seconds)
            gathering = _gather(metrics, event_clock)
            opened.callback(gathering.tell)
            offerings = Offerings(parts, metrics)
            opened.push_async_callback(offerings.close)
            observer = FanOut([gathering, *_open_traces(config, opened)])
            ledger = await SqliteLedgerStore.open(
                config.store_path,
                clock=clock,
                owner_id=f"gateway-{uuid4().hex}",
                create=True,
                observe=observer.committed,
                cache_mebibytes=config.store_cache_mebibytes,
                request_filter_mebibytes=config.store_request_filter_mebibytes,
            )
            opened.push_async_callback(ledger.close)
            metrics.request_filter_whole.set_function(lambda: ledger.has_whole_request_filter)
            await ledger.add_rate_cards(config.rate_cards)
            policy = _open_policy(config, opened)
            metering = _metering(config, ledger, offerings, clock, observer, policy)
            readiness = Readiness(ledger, lambda: metering.offering.pool)
            await readiness.look()
            pages = await _start_pages(config, ledger, metering, metrics, gathering, readiness, opened)
            uses = KeyUses(ledger, clock)
            opened.push_async_callback(uses.write)
            authenticator = Authenticator(ledger, time.monotonic, clock, uses.note)
            await _start_admin(config.store_path, _admin(ledger, metering, authenticator, clock), opened)
            server = await _start_server(config, ledger, metering, authenticator, clock, certificates, metrics)
            opened.push_async_callback(server.server.stop, LAST_WORDS_SECONDS)
            gateway = cls(
                config=config,
                ledger=ledger,
                offerings=offerings,
                metering=metering,
                server=server,
                readiness=readiness,
                metrics=metrics,
                pages=pages,
            )
            await gateway._tell(readiness.report)
            for forever in gateway._work(clock, uses):
                opened.push_async_callback(_cancel, asyncio.create_task(forever))
            gateway._closing = opened.pop_all()
            return gateway

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def port(self) -> int:
        """The port that apps call."""
        return self._server.port

    @property
    def metrics_port(self) -> int | None:
        """The port of metrics, liveness and readiness; None if there is none."""
        return None if self._pages is None else self._pages.port

    async def reload(self, config: Config) -> None:
        """Put another configuration's models, backends and rate cards on sale; what runs keeps what it began with.

        ConfigInvalid, naming every key that differs and is only read at start; TokenizerInvalid; CertificateInvalid;
        IdConflict: then nothing has changed.
        """
        if problems := needing_restart(self._config, config):
            raise ConfigInvalid(config.file, *problems)
        parts = await asyncio.to_thread(Parts.of, config)
        await self._ledger.add_rate_cards(config.rate_cards)
        self._metering.offering = self._offerings.replace(parts)
        self._config = config
        self._metrics.catalog = self._metering.offering.catalog
        await self._tell(await self._readiness.look())

    async def drain(self) -> None:
        """Stop admitting, tell health checks so, and end every request within the configured time."""
        await self._tell(self._readiness.drain())
        await self._server.health.enter_graceful_shutdown()
        await self._metering.drain(self._config.limits.drain_seconds_max)

    async def close(self) -> None:
        """Close the listener, then the pages for the operator, then the backends, then the store."""
        await self._closing.aclose()

    def _work(self, clock: Clock, uses: KeyUses) -> Iterator[Coroutine[Any, Any, NoReturn]]:
        """All that goes on for ever beside the calls."""
        config, metrics = self._config, self._metrics
        upkeep = Upkeep(
            self._ledger,
            clock,
            self._metering.is_running,
            retention_days=config.retention.closed_reservation_days,
            swept=metrics.swept,
            pruned=metrics.pruned.inc,
        )
        yield self._readiness.watch(self._tell)
        yield sample_lag(metrics.loop_lag_seconds)
        yield uses.run()
        yield upkeep.run()
        yield ExpirySweep(self._ledger, clock, config.limits.expiry_sweep_seconds).run()
        if config.audit.sample_subscribers:
            yield self._auditor().run()

    def _auditor(self) -> Auditor:
        audit = self._config.audit
        return Auditor(
            self._ledger,
            time.monotonic,
            sample_subscribers=audit.sample_subscribers,
            interval_seconds=audit.interval_seconds,
            told=self._audited,
        )

    def _audited(self, audited: AuditRound) -> None:
        self._metrics.audited(audited)
        if audited.differences and self._config.audit.stop_admissions_on_difference:
            logger.critical("nothing is admitted any more: the ledger's books differ; run metergate ledger verify")
            self._metering.stop_admissions()
            self._readiness.stop()

    async def _tell(self, report: Report) -> None:
        """Tell metrics and gRPC health what a look found."""
        self._metrics.checked(is_ready=report.is_ready, backend_ids=report.backends)
        await tell_health(self._server.health, report)


async def _cancel(task: "asyncio.Task[NoReturn]") -> None:
    task.cancel()
    await asyncio.wait([task])


def _gather(metrics: Metrics, clock: EventClock) -> Gathering:
    return Gathering(FanOut([metrics, RequestLog(clock.seconds, clock.late_seconds)]), clock)


def _open_traces(config: Config, opened: AsyncExitStack) -> list[Observer]:
    if config.traces.endpoint is None:
        return []
    # Imported only where it is wanted: OpenTelemetry is an optional extra.
    from metergate.telemetry.traces import Traces

    traces = Traces.to_collector(config.traces.endpoint, sample_ratio=config.traces.sample_ratio)
    opened.push_async_callback(traces.close)
    return [traces]


def _open_policy(config: Config, opened: AsyncExitStack) -> ContentPolicy | None:
    """None: no text is vetted."""
    url = config.content_policy.url
    if url is None:
        return None
    policy = WebhookPolicy(WebhookPolicyOptions(url=url, connections_max=config.limits.requests_max))
    opened.push_async_callback(policy.close)
    return policy


def _metering(
    config: Config,
    ledger: LedgerStore,
    offerings: Offerings,
    clock: Clock,
    observer: Observer,
    policy: ContentPolicy | None,
) -> Metering:
    return Metering(
        ledger=ledger,
        offering=offerings.current,
        clock=clock,
        new_id=_new_id,
        monotonic=time.monotonic,
        limits=_limits(config),
        observer=observer,
        policy=policy,
    )


def _new_id() -> str:
    # Ordered by time, so that the newest rows of an index lie together.
    return uuid_utils.uuid7().hex


def _limits(config: Config) -> Limits:
    limits = config.limits
    return Limits(
        requests_max=limits.requests_max,
        slice_tokens=limits.slice_tokens,
        delivery_characters_max=limits.delivery_characters_max,
        read_ahead_characters_max=limits.read_ahead_characters_max,
        first_token_seconds_max=limits.first_token_seconds_max,
        between_tokens_seconds_max=limits.between_tokens_seconds_max,
        request_seconds_max=limits.request_seconds_max,
        replay_seconds=limits.replay_seconds,
        replay_characters_max=limits.replay_characters_max,
        content_policy_seconds_max=config.content_policy.timeout_seconds,
        content_policy_context_characters=config.content_policy.context_characters,
    )


async def _start_pages(
    config: Config,
    ledger: SqliteLedgerStore,
    metering: Metering,
    metrics: Metrics,
    gathering: Gathering,
    readiness: Readiness,
    opened: AsyncExitStack,
) -> HttpServer | None:
    """None: the operator wants none."""
    if config.metrics.address is None:
        return None

    def refresh() -> None:
        gathering.tell()
        metrics.queued.set(ledger.queued_operations)

    shown = operators_pages(metrics, metering, readiness, refresh)
    pages = await HttpServer.start(config.metrics.address, shown)
    opened.push_async_callback(pages.close)
    return pages


def _admin(ledger: LedgerStore, metering: Metering, authenticator: Authenticator, clock: Clock) -> AdminServicer:
    def forget_subscriber(subscriber_id: str) -> None:
        authenticator.forget_subscriber(subscriber_id)
        metering.forget_texts()

    return AdminServicer(ledger, clock, authenticator.forget, authenticator.forget_authorization, forget_subscriber)


async def _start_admin(store_path: Path, servicer: AdminServicer, opened: AsyncExitStack) -> None:
    path = admin_socket_path(store_path)
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        # A deep folder is no reason not to serve apps.
        logger.warning("commands cannot write while this gateway serves: the path %s is too long for a socket", path)
        return
    server = await start_admin_server(path, servicer)
    opened.callback(leave_admin_socket, path)
    opened.push_async_callback(server.stop, LAST_WORDS_SECONDS)


def _open_certificates(config: Config, clock: Clock) -> Certificates | None:
    """None: the listener serves plaintext."""
    tls = config.listener.tls
    if tls is None:
        return None
    files = TlsFiles(
        certificate_path=config.resolve(tls.certificate_path),
        key_path=config.resolve(tls.key_path),
        client_ca_path=None if tls.client_ca_path is None else config.resolve(tls.client_ca_path),
    )
    return Certificates(files, clock)


async def _start_server(
    config: Config,
    ledger: LedgerStore,
    metering: Metering,
    authenticator: Authenticator,
    clock: SystemClock,
    certificates: Certificates | None,
    metrics: Metrics,
) -> ServerHandle:
    page_tokens = PageTokens(ledger.content_key)
    return await start_server(
        address=config.listener.address,
        servicers=[
            InferenceServicer(metering),
            AccountServicer(ledger, clock, page_tokens),
            CatalogServicer(lambda: metering.offering.catalog, clock, page_tokens),
        ],
        authenticator=authenticator,
        limits=ServerLimits(
            message_bytes_max=config.limits.message_bytes_max,
            calls_max=config.limits.calls_max,
            call_seconds_max=config.limits.request_seconds_max + SETTLING_SECONDS,
        ),
        certificates=certificates,
        observe=metrics.called,
    )
