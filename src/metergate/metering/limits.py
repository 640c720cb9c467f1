"""The bounds of every request (L10)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times are seconds; texts are measured in characters (code points), each of which is at most four tokens."""

    # At once; more are refused before any work is done for them. Two hundred streams of 50 tokens a second fill a core:
    # beyond a thousand, each more would slow all, and a backend's connections (1,024) run out.
    requests_max: int = 1_000
    # Set aside ahead of delivery. Small, because other requests of the wallet need credit too; large enough that a
    # stream of 50 tokens a second extends its reservation about once a second.
    slice_tokens: int = 64
    # The most of one delivery, which is also the most that a crash can leave debited but not delivered.
    delivery_characters_max: int = 2048
    # Read from the backend but not yet delivered: what a slow app can make the operator pay for in vain.
    read_ahead_characters_max: int = 8192
    # Texts from this length on are counted in a thread: about two milliseconds for the slowest tokenizer.
    counted_in_loop_characters_max: int = 4096
    # From dispatch to the first event of a backend; prompts of large models take their time.
    first_token_seconds_max: float = 60.0
    # Between two events of a backend.
    between_tokens_seconds_max: float = 30.0
    # A request's whole time: grants that expire while reserved are honoured for no longer than this.
    request_seconds_max: float = 600.0
    # A write that an app's flow control holds back is given up this long after the request was told to stop.
    stalled_write_seconds_max: float = 2.0
    # What the content policy may take for one piece of an answer, which waits for it; then the request fails.
    content_policy_seconds_max: float = 2.0
    # How much of the answer before a piece it is shown, of each kind: enough to see what a sentence began with.
    content_policy_context_characters: int = 2_000
    # Texts kept in memory for replays: long enough for an app to reconnect.
    replay_seconds: float = 120.0
    # Their total size.
    replay_characters_max: int = 4_000_000
