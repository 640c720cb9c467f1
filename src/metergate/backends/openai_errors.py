"""What an OpenAI-compatible server calls an error: its type and code, if they look like names, and no text of it."""

import re

import msgspec

# A word of the backend that may be shown: what types and codes look like, and too short for much else.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}|[0-9]{3,5}")


class _Error(msgspec.Struct):
    type: str | None = None
    code: str | int | None = None


class _ErrorAnswer(msgspec.Struct):
    error: _Error


_errors = msgspec.json.Decoder(_Error)
_error_answers = msgspec.json.Decoder(_ErrorAnswer)


def error_answer_name(body: bytes) -> str:
    """What the body of an error answer calls its error, as " (type, code)"; "" if it names none."""
    try:
        error = _error_answers.decode(body).error
    except (ValueError, RecursionError):
        return ""
    return in_brackets(error.type, error.code)


def error_name(raw: msgspec.Raw) -> str:
    """What an error within an answer is called, in the same form."""
    try:
        error = _errors.decode(raw)
    except (ValueError, RecursionError):
        return ""
    return in_brackets(error.type, error.code)


def in_brackets(*words: str | int | None) -> str:
    """Those words that look like a name, in brackets after a blank."""
    names = [str(word) for word in words if word is not None and _NAME.fullmatch(str(word))]
    return f" ({', '.join(names)})" if names else ""
