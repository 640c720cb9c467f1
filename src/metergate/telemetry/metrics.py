"""The observer that counts: Prometheus metrics of calls, credits, backends and the store."""

import asyncio
import platform
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

import grpc

from metergate.core import errors
from metergate.core.audit import AuditRound, DifferenceKind
from metergate.core.catalog import Catalog
from metergate.core.operations import Settle, Settled
from metergate.core.passage import Verdict
from metergate.core.rating import rate_ceil
from metergate.core.reservation import CloseCause, Reservation
from metergate.core.rows import Charge
from metergate.ports import CallStart, Commit, Delivery, Recovery
from metergate.telemetry import families
from metergate.telemetry.instruments import Exposition, Histogram, counter, gauge

# Enough for every app of a busy operator; a client cannot make up app ids, but an operator may issue many.
APPS_MAX = 200

# No id begins with a bracket, so these are no app's and no model's.
UNKNOWN_MODEL = "(unknown)"
OTHER_APP = "(other)"
OWN_APP = "(own)"  # the subscriber's own key

REASONS = frozenset(
    kind.reason for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MetergateError)
)


def outcome_of(error: BaseException | None) -> str:
    """What a call came to, as a label: one of REASONS, OK or CANCELLED."""
    if error is None:
        return "OK"
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED"
    reason = error.reason if isinstance(error, errors.MetergateError) else ""
    return reason if reason in REASONS else errors.MetergateError.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendLoad:
    """What one backend does now."""

    in_flight: int  # requests that it works on
    queued: int  # requests that wait for it
    is_up: bool  # the last look reached it
    ejected: Mapping[str, bool]  # whether it is left out, by model id, of those that were asked for


class Metrics:
    """Every metric of one gateway. All methods but ``render`` are called in the event loop's thread."""

    def __init__(self, catalog: Catalog, monotonic: Callable[[], float]) -> None:
        self.catalog = catalog  # what is on sale; set anew when that changes
        self._monotonic = monotonic
        self._apps: set[str] = set()
        self._exposition = Exposition()
        registry = self._exposition.registry
        self.calls = counter(families.CALLS, registry)
        self.requests = counter(families.REQUESTS, registry)
        self.request_seconds = Histogram(families.REQUEST_SECONDS, registry)
        self.closed = counter(families.CLOSED, registry)
        self.replays = counter(families.REPLAYS, registry)
        self.running = gauge(families.RUNNING, registry)
        self.oldest_seconds = gauge(families.OLDEST_SECONDS, registry)
        self.first_token_seconds = Histogram(families.FIRST_TOKEN_SECONDS, registry)
        self.between_deliveries_seconds = Histogram(families.BETWEEN_DELIVERIES_SECONDS, registry)
        self.capture_seconds = Histogram(families.CAPTURE_SECONDS, registry).series()
        self.tokens = counter(families.TOKENS, registry)
        self.captured = counter(families.CAPTURED, registry)
        self.charged = counter(families.CHARGED, registry)
        self.given_back = counter(families.GIVEN_BACK, registry)
        self.expired = counter(families.EXPIRED, registry)
        self.operator_cost = counter(families.OPERATOR_COST, registry)
        self.attempts = counter(families.ATTEMPTS, registry)
        self.failures = counter(families.FAILURES, registry)
        self.failovers = counter(families.FAILOVERS, registry)
        self.repeats = counter(families.REPEATS, registry)
        self.ejections = counter(families.EJECTIONS, registry)
        self.backend_up = gauge(families.BACKEND_UP, registry)
        self.backend_ejected = gauge(families.BACKEND_EJECTED, registry)
        self.backend_in_flight = gauge(families.BACKEND_IN_FLIGHT, registry)
        self.backend_queued = gauge(families.BACKEND_QUEUED, registry)
        self.backend_queue_seconds = Histogram(families.BACKEND_QUEUE_SECONDS, registry)
        self.reports = counter(families.REPORTS, registry)
        self.report_difference = counter(families.REPORT_DIFFERENCE, registry)
        self.policy_calls = counter(families.CONTENT_POLICY_CALLS, registry)
        self.policy_seconds = Histogram(families.CONTENT_POLICY_SECONDS, registry).series()
        self._commits = counter(families.COMMITS, registry)
        self._commits_ok, self._commits_failed = self._commits.labels("ok"), self._commits.labels("failed")
        self.commit_seconds = Histogram(families.COMMIT_SECONDS, registry).series()
        self.commit_operations = Histogram(families.COMMIT_OPERATIONS, registry).series()
        self.queued = gauge(families.QUEUED, registry)
        self.request_filter_whole = gauge(families.REQUEST_FILTER_WHOLE, registry)
        self.audited_subscribers = counter(families.AUDITED, registry)
        self.audit_differences = counter(families.AUDIT_DIFFERENCES, registry)
        self.audit_seconds = Histogram(families.AUDIT_SECONDS, registry).series()
        self.account = gauge(families.ACCOUNT, registry)
        self.imbalance = gauge(families.IMBALANCE, registry)
        self.recovered = counter(families.RECOVERED, registry)
        self.stuck = gauge(families.STUCK, registry)
        self.pruned = counter(families.PRUNED, registry)
        # From 0 on: a rate sees nothing of a counter that begins with its first difference.
        for result in ("ok", "different"):
            self.audited_subscribers.labels(result)
        for kind in DifferenceKind:
            self.audit_differences.labels(kind.value)
        self.ready = gauge(families.READY, registry)
        self.loop_lag_seconds = Histogram(families.LOOP_LAG_SECONDS, registry).series()
        _tell_build(gauge(families.BUILD, registry).labels)
        self._timings: dict[str, StreamTimings] = {}

    def call_began(self, start: CallStart) -> "CallMetrics":
        """Watch a call."""
        return CallMetrics(self, start, self._monotonic)

    def called(self, method: str, error: BaseException | None) -> None:
        """Count a call of any service, by a method of the protos."""
        self.calls.labels(method, outcome_of(error)).inc()

    def committed(self, commit: Commit) -> None:
        """Count a transaction."""
        (self._commits_failed if commit.has_failed else self._commits_ok).inc()
        self.commit_seconds.observe(commit.seconds)
        self.commit_operations.observe(commit.operations)
        if commit.expired_microcredits:
            self.expired.inc(commit.expired_microcredits)

    def audited(self, audited: AuditRound) -> None:
        """Count a round of the running audit, and keep the balances that it saw."""
        self.audited_subscribers.labels("different").inc(audited.different)
        self.audited_subscribers.labels("ok").inc(audited.subscribers - audited.different)
        for difference in audited.differences:
            self.audit_differences.labels(difference.kind.value).inc()
        self.audit_seconds.observe(audited.seconds)
        for account, balance in audited.account_balances.items():
            self.account.labels(account).set(balance.balance_microcredits)
        self.imbalance.set(sum(balance.balance_microcredits for balance in audited.account_balances.values()))

    def swept(self, recovery: Recovery) -> None:
        """Count what a look for abandoned reservations came to."""
        self.recovered.inc(recovery.settled)
        self.stuck.set(recovery.stuck)

    def checked(self, *, is_ready: bool, backend_ids: Iterable[str]) -> None:
        """Keep what the last check of readiness found."""
        self.ready.set(is_ready)
        for backend_id in backend_ids:
            # From 0 on: a rate sees nothing of a counter that begins with its first failure.
            for counted in (self.attempts, self.failures, self.failovers, self.repeats):
                counted.labels(backend_id)

    def pooled(self, loads: Mapping[str, BackendLoad]) -> None:
        """Keep what the backends do now."""
        for shown in (self.backend_up, self.backend_ejected, self.backend_in_flight, self.backend_queued):
            shown.clear()  # of backends that are not set up any more
        for backend_id, load in loads.items():
            self.backend_up.labels(backend_id).set(load.is_up)
            for model_id, is_ejected in load.ejected.items():
                self.backend_ejected.labels(backend_id, self.model_label(model_id)).set(is_ejected)
                self.ejections.labels(backend_id, self.model_label(model_id))
            self.backend_in_flight.labels(backend_id).set(load.in_flight)
            self.backend_queued.labels(backend_id).set(load.queued)

    def waited(self, model_id: str, seconds: float, *, has_place: bool) -> None:
        """Time a request's wait for a backend."""
        self.backend_queue_seconds.series("served" if has_place else "refused", self.model_label(model_id)).observe(
            seconds
        )

    def ejected(self, backend_id: str, model_id: str) -> None:
        """Count an ejection."""
        self.ejections.labels(backend_id, self.model_label(model_id)).inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text in the best format of an Accept header, and its content type. Takes milliseconds: use a thread."""
        return self._exposition.render(accept)

    # --- labels -----------------------------------------------------------------------------------------------------

    def model_label(self, model_id: str) -> str:
        """The model if it is on sale."""
        return model_id if model_id in self.catalog.models else UNKNOWN_MODEL

    def app_label(self, app_id: str) -> str:
        """The app if it is one of the first that called."""
        if not app_id:
            return OWN_APP
        if app_id not in self._apps:
            if len(self._apps) >= APPS_MAX:
                return OTHER_APP
            self._apps.add(app_id)
        return app_id

    def timings(self, model: str) -> "StreamTimings":
        """The histograms of a model's streams."""
        if model not in self._timings:
            self._timings[model] = StreamTimings(self, model)
        return self._timings[model]

    def price(self, charge: Charge) -> int:
        """Microcredits of what the backend reported, by the charge's rate card; 0 if either is not known."""
        model = self.catalog.models.get(charge.model_id)
        cards = () if model is None else model.rate_cards
        card = next((card for card in cards if card.rate_card_id == charge.rate_card_id), None)
        return 0 if card is None or charge.usage_reported is None else rate_ceil(charge.usage_reported, card)


class StreamTimings:
    """The histograms that every delivery of a model's streams is put into, looked up once."""

    __slots__ = ("between_backend", "between_gateway", "capture", "first_backend", "first_gateway")

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.first_backend = metrics.first_token_seconds.series("backend", model)
        self.first_gateway = metrics.first_token_seconds.series("gateway", model)
        self.between_backend = metrics.between_deliveries_seconds.series("backend", model)
        self.between_gateway = metrics.between_deliveries_seconds.series("gateway", model)
        self.capture = metrics.capture_seconds


class CallMetrics:
    """Counts one call."""

    def __init__(self, metrics: Metrics, start: CallStart, monotonic: Callable[[], float]) -> None:
        self._metrics = metrics
        self._start = start
        self._monotonic = monotonic
        self._began_seconds = monotonic()
        self._model = metrics.model_label(start.model_id)
        self._app = metrics.app_label(start.caller.app_id)
        # The parts of a whole answer are not delivered one by one.
        self._timings = metrics.timings(self._model) if start.verb == "StreamComplete" else None
        self._prompt_microcredits: int | None = None  # None: no reservation was made
        self._attempts = 0
        self._backend_id = ""  # that was called last
        self._was_vetted = False

    def admitted(self, reservation: Reservation, prompt_tokens: int) -> None:
        """A reservation begins with the prompt captured, so it tells the prompt's price."""
        self._prompt_microcredits = reservation.captured_microcredits

    def dispatched(self, backend_id: str) -> Mapping[str, str]:
        """Count an attempt."""
        if self._attempts and backend_id != self._backend_id:
            self._metrics.failovers.labels(self._backend_id).inc()
        self._attempts += 1
        self._backend_id = backend_id
        self._metrics.attempts.labels(backend_id).inc()
        return {}

    def failed_over(self, backend_id: str, problem: str) -> None:
        """Count a failure."""
        self._metrics.failures.labels(backend_id).inc()

    def crossed(self, backend_id: str) -> None:
        """Count a repeat; the attempt that comes is the one that counts."""
        self._attempts -= 1
        self._metrics.repeats.labels(backend_id).inc()

    def delivered(self, delivery: Delivery) -> None:
        """Time a delivery: called for every token."""
        timings = self._timings
        if timings is None:
            return
        if delivery.is_first:
            timings.first_backend.observe(delivery.backend_seconds)
            timings.first_gateway.observe(delivery.gateway_seconds)
        else:
            timings.between_backend.observe(delivery.backend_seconds)
            timings.between_gateway.observe(delivery.gateway_seconds)
        timings.capture.observe(delivery.capture_seconds)

    def vetted(self, verdict: Verdict, seconds: float) -> None:
        """Count a call of the content policy."""
        if not self._was_vetted:
            self._was_vetted = True
            # From 0 on: a rate sees nothing of a counter that begins with its first failure.
            for other in Verdict:
                self._metrics.policy_calls.labels(other.value, self._model)
        self._metrics.policy_calls.labels(verdict.value, self._model).inc()
        self._metrics.policy_seconds.observe(seconds)

    def settled(self, operation: Settle, settled: Settled) -> None:
        """Count what a reservation came to."""
        metrics, model = self._metrics, self._model
        metrics.closed.labels(operation.close_cause.value, model).inc()
        charge, prompt_microcredits = settled.charge, self._prompt_microcredits or 0
        if charge is None:
            metrics.captured.labels(model).inc(prompt_microcredits)
            metrics.given_back.labels(model).inc(prompt_microcredits)
            self._count_operator_cost("released", self._attempts * prompt_microcredits)
            return
        metrics.captured.labels(model).inc(charge.captured_microcredits)
        metrics.charged.labels(model, self._app).inc(charge.charged_microcredits)
        metrics.given_back.labels(model).inc(charge.captured_microcredits - charge.charged_microcredits)
        for token_class, tokens in charge.usage_counted:
            metrics.tokens.labels(token_class.value, model).inc(tokens)
        sent = sum(attempt.prompt_tokens > 0 for attempt in charge.attempts[:-1])
        self._count_operator_cost("attempt", sent * prompt_microcredits)
        self._count_operator_cost("reported", max(0, metrics.price(charge) - charge.charged_microcredits))
        if charge.close_cause is CloseCause.FINISHED and charge.attempts:
            self._compare(charge, charge.attempts[-1].backend_id)

    def _count_operator_cost(self, reason: str, microcredits: int) -> None:
        if microcredits:
            self._metrics.operator_cost.labels(self._model, reason).inc(microcredits)

    def _compare(self, charge: Charge, backend_id: str) -> None:
        """Set the count against the report; an answer that was cut short cannot match."""
        if charge.usage_reported is None:
            self._metrics.reports.labels(self._model, backend_id, "missing").inc()
            return
        result = "mismatch" if charge.usage_mismatch else "match"
        self._metrics.reports.labels(self._model, backend_id, result).inc()
        difference = charge.usage_reported.total() - charge.usage_counted.total()
        if difference:
            larger = "reported" if difference > 0 else "counted"
            self._metrics.report_difference.labels(self._model, backend_id, larger).inc(abs(difference))

    def ended(self, error: BaseException | None) -> None:
        """Count the call."""
        metrics, start = self._metrics, self._start
        metrics.requests.labels(start.verb, outcome_of(error), self._model, self._app).inc()
        metrics.request_seconds.series(start.verb).observe(self._monotonic() - self._began_seconds)
        if error is None and self._prompt_microcredits is None and start.verb != "CountTokens":
            metrics.replays.labels(self._model).inc()


def _tell_build(labels: Callable[..., object]) -> None:
    child = labels(version("metergate"), platform.python_version(), grpc.__version__, sqlite3.sqlite_version)
    child.set(1)  # type: ignore[attr-defined]
