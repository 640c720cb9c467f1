"""Who is calling: the bearer key of a call's metadata becomes an authorization."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from metergate.core.errors import AuthorizationRevoked, Unauthenticated
from metergate.core.keys import hash_key, is_key
from metergate.core.rows import Authorization
from metergate.ports import Clock, Grantee, LedgerStore

# A change of what a key stands for bites within a time that an operator can wait out at the prompt; an app that calls
# ten times a second still saves nineteen look-ups of twenty.
CACHE_SECONDS = 2.0

# About a kilobyte each: 10 MB. Beyond it the oldest are forgotten, and looked up again.
CACHE_KEYS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Known:
    until_seconds: float
    grantee: Grantee


class Authenticator:
    """Finds whom a key stands for, and remembers it for a moment.

    ``monotonic`` returns seconds of a clock that never goes back. What is returned may be ``CACHE_SECONDS`` old: it
    says who the caller is and what it may use, never what is left to spend; that the ledger alone decides. Unknown
    keys are not remembered: a key works from the moment it was issued. ``used`` is told the id of every key that opened
    something, and must not raise.
    """

    def __init__(
        self,
        store: LedgerStore,
        monotonic: Callable[[], float],
        clock: Clock,
        used: Callable[[str], None] = lambda key_id: None,
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        self._clock = clock
        self._used = used
        self._known: dict[bytes, _Known] = {}  # by hash, in the order in which they expire
        self._forgotten = 0  # how often something was

    async def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> Authorization:
        """The caller's authorization.

        Unauthenticated if the key is missing, malformed, unknown or expired; AuthorizationRevoked; StoreUnavailable.
        """
        grantee = await self._grantee(hash_key(_bearer_key(metadata)))
        if grantee.key.revoke_time_us is not None or grantee.authorization.revoke_time_us is not None:
            raise AuthorizationRevoked
        if grantee.key.is_expired(self._clock.now_us()):
            raise Unauthenticated(problem="the key has expired")
        self._used(grantee.key.key_id)
        return grantee.authorization

    def forget(self, key_id: str) -> None:
        """Look the key up again when it is used next: it was revoked just now."""
        self._forget(lambda grantee: grantee.key.key_id == key_id)

    def forget_authorization(self, authorization_id: str) -> None:
        """Look every key of an authorization up again: it was revoked just now."""
        self._forget(lambda grantee: grantee.authorization.authorization_id == authorization_id)

    def forget_subscriber(self, subscriber_id: str) -> None:
        """Keep nothing of a subscriber that was erased just now."""
        self._forget(lambda grantee: grantee.authorization.subscriber_id == subscriber_id)

    def _forget(self, is_it: Callable[[Grantee], bool]) -> None:
        self._forgotten += 1
        for secret_hash in [found for found, known in self._known.items() if is_it(known.grantee)]:
            del self._known[secret_hash]

    async def _grantee(self, secret_hash: bytes) -> Grantee:
        # The time before the look-up: a revocation during it still bites within CACHE_SECONDS.
        now_seconds = self._monotonic()
        known = self._known.get(secret_hash)
        if known is not None and now_seconds < known.until_seconds:
            return known.grantee
        forgotten = self._forgotten
        grantee = await self._store.find_grantee(secret_hash)
        if grantee is None:
            raise Unauthenticated(problem="the key is unknown")
        if forgotten == self._forgotten:  # else this may be what it was before its revocation
            self._remember(secret_hash, _Known(now_seconds + CACHE_SECONDS, grantee))
        return grantee

    def _remember(self, secret_hash: bytes, known: _Known) -> None:
        self._known.pop(secret_hash, None)
        self._known[secret_hash] = known
        while len(self._known) > CACHE_KEYS_MAX:
            del self._known[next(iter(self._known))]


def _bearer_key(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    values = [value for name, value in metadata if name == "authorization"]
    if not values:
        raise Unauthenticated(problem="the metadata has no authorization")
    if len(values) > 1:
        raise Unauthenticated(problem="the metadata has more than one authorization")
    scheme, _, key = str(values[0]).partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated(problem="the authorization's scheme is not Bearer")
    if not is_key(key):
        raise Unauthenticated(problem="the key is malformed")
    return key
