"""Texts drawn to find where counting in pieces, or our reading of a vocabulary, differs from the reference."""

import random
from collections.abc import Callable, Iterator
from itertools import pairwise

SCRIPTS = (
    (0x20, 0x7E),
    (0x20, 0x7E),
    (0xA1, 0x17F),
    (0x370, 0x3FF),
    (0x400, 0x45F),
    (0x5D0, 0x5EA),
    (0x620, 0x64A),
    (0x904, 0x94D),
    (0xE01, 0xE4E),
    (0x3041, 0x3096),
    (0x30A1, 0x30FA),
    (0x4E00, 0x9FA5),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1F64F),
    (0x20000, 0x2A6DF),
)
WORDS = (
    " the straightforward answer isn't here, they'LL say; 3.14159 of 1,000,000",
    "今天天气很好，我们去公园散步。“人工智能”正在改变世界！",
    "def add(first: int, second=[1,2]) -> int:\n\treturn first+second  # sum\r\n",
    "हिन्दी में लिखा। ภาษาไทย กำลัง العَرَبِيَّة",
    "👩‍👩‍👧‍👦🇨🇳👍🏽1️⃣❤️‍🔥",
    '{"key": [1, 2, {"nested": "value"}]}\n\n\n| a | b |\n|---|---|\n',
    "https://example.com/a?b=c&d=e#f fooBarBaz SCREAMING_SNAKE x86_64",
    "<|im_end|><|im_start|>assistant\n</s><|endoftext|><think>",
    "<｜User｜>b<｜end▁of▁sentence｜>，c",
)
MARKS = "\u0300\u0301\u0308\u0323\u0327\u0336\u3099\u093c\u05b0"
BLANKS = (" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", " \n \n", "    ")
RUNS = (
    "a",
    "e",
    "Z",
    "啊",
    "的",
    " ",
    "\n",
    "=",
    "-",
    "*",
    ".",
    "!",
    "/",
    "0",
    "7",
    "😀",
    "ab",
    "aB",
    "Ab1",
    "か",
    "ก",
    "-=",
    "、",
)
ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    "0123456789",
    "的一是不了人我在有他这中大来上国",
    "=-*#_~.",
    " \n\t",
    "éèüßñ",
    "กขคงจำลัง",
    "हिन्दीमेंलखा",
)


def _characters(draw: random.Random) -> str:
    low, high = draw.choice(SCRIPTS)
    return "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 8)))


def _words(draw: random.Random) -> str:
    text = draw.choice(WORDS)
    start = draw.randrange(len(text))
    return text[start : start + draw.randint(1, 30)]


def _marked(draw: random.Random) -> str:
    # No more marks in a row than Unicode's Stream-Safe Text Format has: beyond them counting has a rule of its own.
    return draw.choice("aeokcかไहบ") + "".join(draw.choices(MARKS, k=draw.randint(1, 6)))


def _blanks(draw: random.Random) -> str:
    return draw.choice(BLANKS)


def _short_run(draw: random.Random) -> str:
    return draw.choice(RUNS) * draw.randint(2, 40)


PIECES: tuple[Callable[[random.Random], str], ...] = (
    _characters,
    _characters,
    _words,
    _words,
    _marked,
    _blanks,
    _short_run,
)


def _long_run(draw: random.Random) -> str:
    """A run that a tail is shortened in, sometimes broken by something else."""
    run = draw.choice(RUNS) * draw.randint(200, 1500)
    if draw.random() < 0.5:
        run = "".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(300, 2000)))
    return run


def texts(seed: int, count: int) -> Iterator[str]:
    """So many texts; every eighth has a long run or two."""
    draw = random.Random(seed)
    for number in range(count):
        pieces = [draw.choice(PIECES)(draw) for _ in range(draw.randint(1, 12))]
        if number % 8 == 0:
            for _ in range(draw.randint(1, 2)):
                pieces.insert(draw.randint(0, len(pieces)), _long_run(draw))
        yield "".join(pieces)


def chunkings(seed: int, text: str) -> Iterator[list[str]]:
    """One character at a time, a few at a time, and cut at a few places."""
    draw = random.Random(seed)
    yield list(text)
    yield _cut(text, draw, 5)
    yield _cut(text, draw, max(1, len(text) // 3))


def _cut(text: str, draw: random.Random, characters_max: int) -> list[str]:
    cuts = [0]
    while cuts[-1] < len(text):
        cuts.append(min(len(text), cuts[-1] + draw.randint(1, characters_max)))
    return [text[start:end] for start, end in pairwise(cuts)]
