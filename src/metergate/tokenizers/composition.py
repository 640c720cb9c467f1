"""Unicode's composed form (NFC), which some vocabularies are counted in, at a cost that grows with a text's length.

Normalizing sorts each run of combining marks, and Python does so in time quadratic in the run, holding every other
thread up: 100,000 marks stop the process for eight seconds. So runs are bounded as in Unicode's Stream-Safe Text Format
(UAX #15), which no written language comes near. A prompt beyond the bound is refused. A model's output cannot be: of
each run beyond the bound, what follows the bound is counted as it is written. That depends on the whole text only,
never on how it came in pieces (L7).
"""

import unicodedata

import regex

from metergate.core.errors import RequestInvalid, Violation

# The Stream-Safe Text Format's own bound, chosen there to be well beyond what any language or notation needs.
NON_STARTERS_MAX = 30

# Normalizing keeps the interpreter's lock: about a millisecond for so many characters, then others get a turn.
_PIECE_CHARACTERS = 32_768

# What normalizing sorts: characters of a combining class, and the three that are none but decompose to such.
_NON_STARTER = r"[\P{ccc=0}\u0f73\u0f75\u0f81]"
_LONG_RUN = regex.compile(rf"{_NON_STARTER}{{{NON_STARTERS_MAX}}}({_NON_STARTER}+)")

# Nothing before such a character can join it, or pass it when marks are sorted (UAX #15, concatenation).
_STABLE_STARTER = regex.compile(r"(?=\p{ccc=0})\p{NFC_QC=Yes}")


def compose(text: str) -> str:
    """The composed form of a model's output; of a run of more than NON_STARTERS_MAX marks the rest as it is written."""
    if text.isascii():
        return text
    pieces: list[str] = []
    start = 0
    if len(text) > NON_STARTERS_MAX:
        for run in _LONG_RUN.finditer(text, concurrent=True):
            pieces += (_normalize(text[start : run.start(1)]), run[1])
            start = run.end()
    pieces.append(_normalize(text[start:]))
    return "".join(pieces)


def compose_prompt(text: str) -> str:
    """The composed form of a prompt; RequestInvalid if it has a run of more than NON_STARTERS_MAX marks."""
    if text.isascii():
        return text
    if _LONG_RUN.search(text, concurrent=True):
        description = f"must not have more than {NON_STARTERS_MAX} combining marks in a row"
        raise RequestInvalid(Violation("messages", description))
    return _normalize(text)


def _normalize(text: str) -> str:
    pieces: list[str] = []
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        starter = _STABLE_STARTER.search(text, start + _PIECE_CHARACTERS, concurrent=True)
        if starter is None:
            break
        pieces.append(unicodedata.normalize("NFC", text[start : starter.start()]))
        start = starter.start()
    pieces.append(unicodedata.normalize("NFC", text[start:]))
    return "".join(pieces)
