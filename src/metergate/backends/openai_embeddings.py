"""Embeddings of an OpenAI-compatible server: ``POST {url}/embeddings``.

Pure: bytes on one side, the domain on the other. The request is an allow-list, and no text of the backend goes into an
error or a log, as in ``openai_answer``.
"""

import binascii
import sys
from array import array
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from metergate.backends.openai_answer import NULL
from metergate.backends.openai_usage import PromptDetails, Tokens
from metergate.backends.vector_checks import checked_vectors, prompt_usage, single_precision, unusable
from metergate.core.embedding import EmbeddingBackendRequest, Embeddings, Vector
from metergate.core.usage import TokenClass, Usage

# float: numbers as JSON text. base64: as their bytes, which is exact and a fifth of the size.
VectorEncoding = Literal["base64", "float"]

# The longest text of a double-precision number, which is how servers print single-precision ones, and its comma.
_NUMBER_BYTES_MAX = 26

# What surrounds each vector, and all of them: names, an index, the model, the usage.
_VECTOR_BYTES_MAX = 256
_ANSWER_BYTES = 64 * 1024


def encode_embedding_request(request: EmbeddingBackendRequest, *, model: str, encoding: VectorEncoding) -> bytes:
    """The JSON body for ``model``, the backend's own name of it."""
    body: dict[str, Any] = {"model": model, "input": request.inputs, "encoding_format": encoding}
    if request.asks_dimensions:
        body["dimensions"] = request.dimensions
    return msgspec.json.encode(body)


def answer_bytes_max(request: EmbeddingBackendRequest) -> int:
    """More than any answer needs: more is no answer."""
    vector_bytes = request.dimensions * _NUMBER_BYTES_MAX + _VECTOR_BYTES_MAX
    return len(request.inputs) * vector_bytes + _ANSWER_BYTES


class _Vector(msgspec.Struct):
    index: int
    embedding: list[float] | str


class _Answer(msgspec.Struct):
    data: list[_Vector]
    usage: msgspec.Raw = NULL  # decoded apart: nonsense in it spoils the report, not the answer


class _Usage(msgspec.Struct):
    prompt_tokens: Tokens
    prompt_tokens_details: PromptDetails | None = None


_answers = msgspec.json.Decoder(_Answer)
_usages = msgspec.json.Decoder(_Usage)


def decode_embeddings(body: bytes, request: EmbeddingBackendRequest) -> Embeddings:
    """The answer; BackendUnavailable if it makes no sense. Plain computation, in time that grows with the answer."""
    try:
        answer = _answers.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        # The original error may name fields of the answer.
        raise unusable(request, "it sent something else than embeddings") from None
    return Embeddings(vectors=checked_vectors(request, _vectors(answer, request)), usage_reported=_usage(answer.usage))


def _vectors(answer: _Answer, request: EmbeddingBackendRequest) -> "Iterator[tuple[int, Vector[float]]]":
    for item in answer.data:
        # Either form is taken: some servers know only one of them, whatever they were asked.
        if isinstance(item.embedding, str):
            yield item.index, _from_base64(item.embedding, request)
        else:
            yield item.index, single_precision(item.embedding)


def _from_base64(text: str, request: EmbeddingBackendRequest) -> "Vector[float]":
    vector: Vector[float] = array("f")
    try:
        vector.frombytes(binascii.a2b_base64(text, strict_mode=True))
    except ValueError:
        raise unusable(request, "it sent a vector that is no base64 of single-precision numbers") from None
    if sys.byteorder == "big":
        vector.byteswap()
    return vector


def _usage(raw: msgspec.Raw) -> Usage | None:
    if raw is NULL or raw == NULL:
        return None
    try:
        usage = _usages.decode(raw)
    except (ValueError, RecursionError):
        return None
    cached = (usage.prompt_tokens_details or PromptDetails()).cached_tokens or 0
    return prompt_usage({TokenClass.PROMPT: usage.prompt_tokens - cached, TokenClass.CACHED_PROMPT: cached})
