"""Every metric of the gateway: its name, labels and meaning. The reference in the docs is generated from this table.

Label values are bounded whatever apps send: ``model`` is a model on sale or (unknown), ``app`` one of the first 200
apps that called or (other), and every other value comes from a table of the code or from the configuration.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric."""

    name: str  # as it is exposed
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # upper bounds of a histogram's buckets, without infinity; in the name's unit


# Waiting: from what nobody notices to the longest limit that a configuration usually sets.
_WAITS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# Work of the gateway and its disk: from a commit to a RAM disk to a disk that stalls.
_WORK_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

# A whole request: up to the longest that a stream may last by default.
_REQUEST_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

# A transaction takes at most 512 operations.
_BATCH_OPERATIONS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)

# --- requests -------------------------------------------------------------------------------------------------------

CALLS = Family(
    name="metergate_calls_total",
    kind="counter",
    help="gRPC calls of every service that ended, those too that were refused at the door (no valid key, bad fields).",
    labels=("method", "outcome"),
)
REQUESTS = Family(
    name="metergate_requests_total",
    kind="counter",
    help="Inference requests that were let in at the door and ended, by what they came to.",
    labels=("verb", "outcome", "model", "app"),
)
REQUEST_SECONDS = Family(
    name="metergate_request_seconds",
    kind="histogram",
    help="How long a call took, from its authentication to its end.",
    labels=("verb",),
    bounds=_REQUEST_SECONDS,
)
CLOSED = Family(
    name="metergate_reservations_closed_total",
    kind="counter",
    help="Reservations that were settled or released, by why their request left.",
    labels=("close_cause", "model"),
)
REPLAYS = Family(
    name="metergate_replays_total",
    kind="counter",
    help="Requests that were answered from the record of their charge.",
    labels=("model",),
)
RUNNING = Family(
    name="metergate_active_reservations",
    kind="gauge",
    help="Requests of this process that have a reservation now.",
)
OLDEST_SECONDS = Family(
    name="metergate_oldest_reservation_seconds",
    kind="gauge",
    help="How long the oldest of them has been running; 0 if there is none.",
)

# --- streams --------------------------------------------------------------------------------------------------------

FIRST_TOKEN_SECONDS = Family(
    name="metergate_first_token_seconds",
    kind="histogram",
    help=(
        "Time to a stream's first delivery. part: backend (since it was called, or queued for), gateway (all else, "
        "admission too)."
    ),
    labels=("part", "model"),
    bounds=_WAITS_SECONDS,
)
BETWEEN_DELIVERIES_SECONDS = Family(
    name="metergate_between_deliveries_seconds",
    kind="histogram",
    help="Time from the end of one delivery of a stream to the next. part: backend (awaited), gateway (all else).",
    labels=("part", "model"),
    bounds=_WAITS_SECONDS,
)
CAPTURE_SECONDS = Family(
    name="metergate_capture_seconds",
    kind="histogram",
    help="How long a delivery waited for its capture to be durable; a part of the gateway's time.",
    bounds=_WORK_SECONDS,
)

# --- tokens and credits ---------------------------------------------------------------------------------------------

TOKENS = Family(
    name="metergate_tokens_total",
    kind="counter",
    help="Charged tokens, as the gateway counted them, by class.",
    labels=("token_class", "model"),
)
CAPTURED = Family(
    name="metergate_captured_microcredits_total",
    kind="counter",
    help="Captured of reservations that are closed: charged + given back.",
    labels=("model",),
)
CHARGED = Family(
    name="metergate_charged_microcredits_total",
    kind="counter",
    help="Charged.",
    labels=("model", "app"),
)
GIVEN_BACK = Family(
    name="metergate_given_back_microcredits_total",
    kind="counter",
    help="Captured but not charged, so given back.",
    labels=("model",),
)
EXPIRED = Family(
    name="metergate_expired_microcredits_total",
    kind="counter",
    help="Credit that expired unused and became breakage.",
)
OPERATOR_COST = Family(
    name="metergate_operator_cost_microcredits_total",
    kind="counter",
    help=(
        "Work of backends that nobody was charged for, at the rate card's prices; an upper estimate. reason: attempt "
        "(the prompt of a failed attempt before the one that counted), released (the prompts of a request that was "
        "charged nothing), reported (what the backend's own report would cost above the charge)."
    ),
    labels=("model", "reason"),
)

# --- backends -------------------------------------------------------------------------------------------------------

ATTEMPTS = Family(
    name="metergate_backend_attempts_total",
    kind="counter",
    help="Requests that were sent to a backend.",
    labels=("backend",),
)
FAILURES = Family(
    name="metergate_backend_failures_total",
    kind="counter",
    help="Attempts that failed: unreachable, broken off, too slow, refused or nonsense.",
    labels=("backend",),
)
FAILOVERS = Family(
    name="metergate_backend_failovers_total",
    kind="counter",
    help="Requests that failed at this backend before their first token and were sent to another.",
    labels=("backend",),
)
REPEATS = Family(
    name="metergate_backend_repeats_total",
    kind="counter",
    help="Requests that were sent to the backend once more, for it closed the kept connection that they were sent on.",
    labels=("backend",),
)
EJECTIONS = Family(
    name="metergate_backend_ejections_total",
    kind="counter",
    help="How often the backend was left out for a while for a model, because it failed again and again.",
    labels=("backend", "model"),
)
BACKEND_EJECTED = Family(
    name="metergate_backend_ejected",
    kind="gauge",
    help="1 while the backend is left out for a model, else 0; of models that were asked for.",
    labels=("backend", "model"),
)
BACKEND_IN_FLIGHT = Family(
    name="metergate_backend_in_flight_requests",
    kind="gauge",
    help="Requests that the backend works on now, for this process.",
    labels=("backend",),
)
BACKEND_QUEUED = Family(
    name="metergate_backend_queued_requests",
    kind="gauge",
    help="Requests that wait for the backend now; one that may go to several waits for each.",
    labels=("backend",),
)
BACKEND_QUEUE_SECONDS = Family(
    name="metergate_backend_queue_seconds",
    kind="histogram",
    help="How long requests waited for a backend with room, of those that had to. result: served or refused.",
    labels=("result", "model"),
    bounds=_WAITS_SECONDS,
)
BACKEND_UP = Family(
    name="metergate_backend_up",
    kind="gauge",
    help="1 if the last check reached the backend, else 0.",
    labels=("backend",),
)
REPORTS = Family(
    name="metergate_usage_reports_total",
    kind="counter",
    help=(
        "Answers that the model finished, by what their backend reported beside the gateway's count. result: match "
        "(within the model's tolerance), mismatch, missing."
    ),
    labels=("model", "backend", "result"),
)
REPORT_DIFFERENCE = Family(
    name="metergate_usage_difference_tokens_total",
    kind="counter",
    help="Tokens by which reports of finished answers differ from the count. larger: counted or reported.",
    labels=("model", "backend", "larger"),
)

# --- content policy -------------------------------------------------------------------------------------------------

CONTENT_POLICY_CALLS = Family(
    name="metergate_content_policy_calls_total",
    kind="counter",
    help=(
        "Pieces of answers that the content policy was asked about. result: allowed, blocked, failed (no verdict in "
        "time)."
    ),
    labels=("result", "model"),
)
CONTENT_POLICY_SECONDS = Family(
    name="metergate_content_policy_seconds",
    kind="histogram",
    help="How long the content policy took for a piece, which waited for it; those too that it failed.",
    bounds=_WAITS_SECONDS,
)

# --- store ----------------------------------------------------------------------------------------------------------

COMMITS = Family(
    name="metergate_store_commits_total",
    kind="counter",
    help="Transactions of the ledger's store. result: ok or failed.",
    labels=("result",),
)
COMMIT_SECONDS = Family(
    name="metergate_store_commit_seconds",
    kind="histogram",
    help="How long a transaction took, its durable write included; failed ones too.",
    bounds=_WORK_SECONDS,
)
COMMIT_OPERATIONS = Family(
    name="metergate_store_commit_operations",
    kind="histogram",
    help="Operations in one transaction.",
    bounds=_BATCH_OPERATIONS,
)
QUEUED = Family(
    name="metergate_store_queued_operations",
    kind="gauge",
    help="Operations that wait for the next transaction.",
)
REQUEST_FILTER_WHOLE = Family(
    name="metergate_store_request_filter_whole",
    kind="gauge",
    help=(
        "1: of a new request the gateway knows from memory that it was never charged. 0, for minutes at the first "
        "start on a large ledger and a second at others: it is looked for in the file."
    ),
)

# --- the books ------------------------------------------------------------------------------------------------------

AUDITED = Family(
    name="metergate_audited_subscribers_total",
    kind="counter",
    help="Subscribers whose books the running audit has recomputed. result: ok or different.",
    labels=("result",),
)
AUDIT_DIFFERENCES = Family(
    name="metergate_audit_differences_total",
    kind="counter",
    help="Differences that it found; the log names them. The same one counts in every round that comes by it.",
    labels=("kind",),
)
AUDIT_SECONDS = Family(
    name="metergate_audit_seconds",
    kind="histogram",
    help="How long one round took, its rests included.",
    bounds=_REQUEST_SECONDS,
)
ACCOUNT = Family(
    name="metergate_account_microcredits",
    kind="gauge",
    help="Balance of an account, credits less debits, at the last round; `grants` is what subscribers hold.",
    labels=("account",),
)
IMBALANCE = Family(
    name="metergate_account_imbalance_microcredits",
    kind="gauge",
    help="What the balances of all accounts add up to, added up exactly: anything but 0 is a defect.",
)
RECOVERED = Family(
    name="metergate_recovered_reservations_total",
    kind="counter",
    help="Reservations that nobody ran any more and that were settled, at what was captured, while serving.",
)
STUCK = Family(
    name="metergate_stuck_reservations",
    kind="gauge",
    help="Reservations that nobody runs and that the last look could not settle; the log names them.",
)
PRUNED = Family(
    name="metergate_pruned_reservations_total",
    kind="counter",
    help="Closed reservations that were removed for their age.",
)

# --- process --------------------------------------------------------------------------------------------------------

READY = Family(
    name="metergate_ready",
    kind="gauge",
    help="1 if the gateway is ready for requests, as /readyz says, else 0.",
)
LOOP_LAG_SECONDS = Family(
    name="metergate_event_loop_lag_seconds",
    kind="histogram",
    help="How much later than asked the event loop woke a sampler, four times a second.",
    bounds=_WORK_SECONDS,
)
BUILD = Family(
    name="metergate_build_info",
    kind="gauge",
    help="Always 1; the labels say what runs.",
    labels=("version", "python", "grpc", "sqlite"),
)

FAMILIES = (
    CALLS,
    REQUESTS,
    REQUEST_SECONDS,
    CLOSED,
    REPLAYS,
    RUNNING,
    OLDEST_SECONDS,
    FIRST_TOKEN_SECONDS,
    BETWEEN_DELIVERIES_SECONDS,
    CAPTURE_SECONDS,
    TOKENS,
    CAPTURED,
    CHARGED,
    GIVEN_BACK,
    EXPIRED,
    OPERATOR_COST,
    ATTEMPTS,
    FAILURES,
    FAILOVERS,
    REPEATS,
    EJECTIONS,
    BACKEND_UP,
    BACKEND_EJECTED,
    BACKEND_IN_FLIGHT,
    BACKEND_QUEUED,
    BACKEND_QUEUE_SECONDS,
    REPORTS,
    REPORT_DIFFERENCE,
    CONTENT_POLICY_CALLS,
    CONTENT_POLICY_SECONDS,
    COMMITS,
    COMMIT_SECONDS,
    COMMIT_OPERATIONS,
    QUEUED,
    REQUEST_FILTER_WHOLE,
    AUDITED,
    AUDIT_DIFFERENCES,
    AUDIT_SECONDS,
    ACCOUNT,
    IMBALANCE,
    RECOVERED,
    STUCK,
    PRUNED,
    READY,
    LOOP_LAG_SECONDS,
    BUILD,
)

# What a label's values are, and so how many there can be.
LABELS = {
    "verb": "`StreamComplete`, `Complete`, `Embed`, `CountTokens`",
    "outcome": "`OK`, `CANCELLED` (the app went away), or an error's reason: `INSUFFICIENT_CREDIT`, `OVERLOADED` ...",
    "model": "a model on sale, or `(unknown)`",
    "app": "one of the first 200 apps that called since the start, `(own)` for subscribers' own keys, or `(other)`",
    "close_cause": "why the request left: `FINISHED`, `CREDIT_EXHAUSTED`, `CLIENT_CANCELLED`, `BACKEND_ERROR` ...",
    "part": "`backend`, `gateway`",
    "token_class": "`PROMPT`, `CACHED_PROMPT`, `COMPLETION`, `REASONING`",
    "reason": "`attempt`, `released`, `reported`",
    "backend": "a backend of the configuration",
    "result": (
        "of reports: `match`, `mismatch`, `missing`; of commits: `ok`, `failed`; of queues: `served`, `refused`; "
        "of content policies: `allowed`, `blocked`, `failed`; of audits: `ok`, `different`"
    ),
    "kind": "what differs: `GRANT`, `CHARGE`, `SEQUENCE`, `PRICE`, `WALLET` ...",
    "account": "`payments`, `goodwill`, `revenue`, `breakage` ..., and `grants`: all grants together",
    "larger": "`counted`, `reported`",
    "method": "a method of the gateway's protos, such as `metergate.v1.InferenceService.Complete`",
    "version, python, grpc, sqlite": "what runs: one value each",
}
