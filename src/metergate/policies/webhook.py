"""A content policy that is asked over HTTP: one POST a piece of an answer, JSON both ways.

How long it may take is decided by who asks; cancelling the call closes its connection.
"""

from dataclasses import dataclass
from typing import Literal

import aiohttp
import msgspec

from metergate.core.errors import ContentPolicyUnavailable
from metergate.core.passage import Passage

# A verdict is one short object; whatever is longer is none.
_ANSWER_BYTES_MAX = 4_096

# Below the 5 s after which common servers close an idle connection: the gateway goes first.
_IDLE_CONNECTION_SECONDS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookPolicyOptions:
    """How to reach the webhook."""

    url: str
    connections_max: int  # as many answers are vetted at once; more wait within their time limit


class _Answer(msgspec.Struct):
    verdict: Literal["allow", "block"]


class WebhookPolicy:
    """A policy behind a URL. Create it within the event loop that uses it."""

    def __init__(self, options: WebhookPolicyOptions) -> None:
        self._url = options.url
        limit = options.connections_max
        self._session = _session(aiohttp.TCPConnector(limit=limit, keepalive_timeout=_IDLE_CONNECTION_SECONDS))
        # For what is asked again: each connection is used once.
        self._repeats = _session(aiohttp.TCPConnector(limit=limit, force_close=True))

    async def allows(self, passage: Passage) -> bool:
        """Ask; ContentPolicyUnavailable unless the answer is 200 with a verdict. No text of the peer is quoted."""
        body = _encoded(passage)
        try:
            return await self._ask(self._session, body)
        except aiohttp.ClientConnectorError as exc:
            raise _unasked(exc) from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # Perhaps a kept connection that was being closed in that instant: that is no verdict, and asking again is
            # harmless.
            pass
        except (aiohttp.ClientError, OSError) as exc:
            raise _unasked(exc) from None
        try:
            return await self._ask(self._repeats, body)
        except aiohttp.ServerDisconnectedError:
            raise ContentPolicyUnavailable(problem="it closed the connection without an answer") from None
        except (aiohttp.ClientError, OSError) as exc:
            raise _unasked(exc) from None

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()
        await self._repeats.close()

    async def _ask(self, session: aiohttp.ClientSession, body: bytes) -> bool:
        async with session.post(self._url, data=body, allow_redirects=False) as response:
            if response.status != 200:
                raise ContentPolicyUnavailable(problem=f"HTTP status {response.status}")
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > _ANSWER_BYTES_MAX:
                    raise ContentPolicyUnavailable(problem="its answer is too long")
        try:
            return msgspec.json.decode(answer, type=_Answer).verdict == "allow"
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ContentPolicyUnavailable(problem="its answer is no verdict") from None


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        # A compressed answer could grow without bound; it is not asked for, and not unpacked if it comes.
        headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
    )


def _unasked(failure: Exception) -> ContentPolicyUnavailable:
    return ContentPolicyUnavailable(problem=f"it could not be asked: {type(failure).__name__}")


def _encoded(passage: Passage) -> bytes:
    delta, before = passage.delta, passage.before
    return msgspec.json.encode(
        {
            "reservation": passage.reservation_id,
            "model": passage.model_id,
            "index": passage.index,
            "content": delta.content,
            "reasoning_content": delta.reasoning_content,
            "tool_calls": [
                {"index": call.index, "id": call.tool_call_id, "name": call.name, "arguments": call.arguments}
                for call in delta.tool_calls
            ],
            "before": {
                "content": before.content,
                "reasoning_content": before.reasoning_content,
                "arguments": before.arguments,
            },
        }
    )
