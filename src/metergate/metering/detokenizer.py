"""Makes the texts of an answer of the token ids that a backend generated.

Characters are delivered whole: what a token begins of one is held back until another ends it. Bytes that are no UTF-8
become U+FFFD, as every tokenizer's own decoder has it; a character that the answer's end cuts off is not delivered.
Special tokens have no text. A stop text, and what may become one, is held back; the first one in the text ends the
answer before it. Everything is decided token by token, so that it does not depend on how the ids came together (L7).
"""

from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from enum import Enum, auto

from metergate.core.catalog import ReasoningForm
from metergate.core.errors import BackendUnavailable
from metergate.core.inference import BackendEvent, Delta, Finish, TokenIds
from metergate.core.rows import FinishReason
from metergate.metering.token_text import TokenText, begun_at_end
from metergate.ports import TokenCodec

_REASONING_BEGIN, _REASONING_END = "<think>", "</think>"
_Utf8Decoder = getincrementaldecoder("utf-8")


class _Place(Enum):
    """Where in an answer its raw text is."""

    BEFORE = auto()  # nothing but blanks came, and perhaps the beginning of a tag
    REASONING = auto()
    CONTENT = auto()


_FIRST_PLACES = {
    ReasoningForm.NONE: _Place.CONTENT,
    ReasoningForm.THINK: _Place.BEFORE,
    ReasoningForm.THINK_OPEN: _Place.REASONING,
}


class Detokenizer:
    """The texts of one answer."""

    def __init__(
        self, codec: TokenCodec, *, model_id: str, stop: Sequence[str], reasoning: ReasoningForm, token_ids_max: int
    ) -> None:
        """``token_ids_max`` ends an answer whose backend does not: no more ids are looked at."""
        self._token_bytes = codec.token_bytes
        self._model_id = model_id
        self._stop = tuple(stop)
        self._token_ids_left = token_ids_max
        self._decoder = _Utf8Decoder("replace")
        self._raw = TokenText()  # in it, a stop text may have begun
        self._ready = TokenText()  # in it, a tag may have begun
        self._place = _FIRST_PLACES[reasoning]
        self.finish_reason: FinishReason | None = None  # set when the gateway itself ends the answer

    def add(self, token_ids: Sequence[int]) -> Delta:
        """Return what can be delivered after more ids; BackendUnavailable for one that the vocabulary does not have."""
        for token_id in token_ids:
            if self.finish_reason is not None:
                break
            if not self._token_ids_left:
                self.finish_reason = FinishReason.LENGTH
                break
            self._token_ids_left -= 1
            self._add(token_id)
        if self.finish_reason is not None:
            return self.end()
        if not self._stop:
            self._release(len(self._raw.text))
        return self._next_delta(is_last=False)

    def end(self) -> Delta:
        """Return what was held back, when no more ids come."""
        self._release(len(self._raw.text))
        return self._next_delta(is_last=True)

    def _add(self, token_id: int) -> None:
        token = self._token_bytes(token_id)
        if token is None:
            problem = "it sent a token id that the model's vocabulary does not have"
            raise BackendUnavailable(model_id=self._model_id, problem=problem)
        self._raw.append_token(self._decoder.decode(token))
        if self._stop:
            self._look_for_stop()

    def _look_for_stop(self) -> None:
        text = self._raw.text
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.finish_reason = FinishReason.STOP
            self._raw = self._raw.take(min(found))
        else:
            self._release(len(text) - begun_at_end(text, self._stop))

    def _release(self, characters: int) -> None:
        # With none, tokens that have no text go on waiting for some.
        if characters:
            self._ready.append(self._raw.take(characters))

    # --- reasoning --------------------------------------------------------------------------------------------------

    def _next_delta(self, *, is_last: bool) -> Delta:
        if self._place is _Place.BEFORE:
            self._look_for_begin(is_last)
        reasoning = self._take_reasoning(is_last) if self._place is _Place.REASONING else TokenText()
        content = self._ready.take(len(self._ready.text)) if self._place is _Place.CONTENT else TokenText()
        characters = len(reasoning.text)
        return Delta(
            reasoning_content=reasoning.text,
            content=content.text,
            token_starts=(*reasoning.starts, *[characters + start for start in content.starts]),
        )

    def _look_for_begin(self, is_last: bool) -> None:
        text = self._ready.text.lstrip()
        if text.startswith(_REASONING_BEGIN):
            self._place = _Place.REASONING
            self._ready.drop(len(self._ready.text) - len(text) + len(_REASONING_BEGIN))
        elif is_last or not _REASONING_BEGIN.startswith(text):
            self._place = _Place.CONTENT

    def _take_reasoning(self, is_last: bool) -> TokenText:
        text = self._ready.text
        end = text.find(_REASONING_END)
        if end >= 0:
            self._place = _Place.CONTENT
            reasoning = self._ready.take(end)
            self._ready.drop(len(_REASONING_END))
            return reasoning
        held = 0 if is_last else begun_at_end(text, (_REASONING_END,))
        return self._ready.take(len(text) - held)


async def detokenized(
    answer: AsyncGenerator[BackendEvent, None], detokenizer: Detokenizer
) -> AsyncGenerator[BackendEvent, None]:
    """The same answer with texts in the place of token ids; it may end earlier, which stops the backend."""
    async with aclosing(answer) as events:
        async for event in events:
            if isinstance(event, TokenIds):
                delta = detokenizer.add(event.token_ids)
                if not delta.is_empty():
                    yield delta
                if detokenizer.finish_reason is not None:
                    yield Finish(reason=detokenizer.finish_reason)
                    return
            else:
                if isinstance(event, Finish) and not (held := detokenizer.end()).is_empty():
                    yield held
                yield event
