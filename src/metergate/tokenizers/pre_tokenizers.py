"""The pre-tokenizers we know: regular expressions that split text before byte pairs are merged.

Only these have proven boundaries for the tail window; a pre-tokenizer that is not here is refused, or its texts are
counted whole (L8).
"""

from collections.abc import Iterable

import regex

# What the text formats write down, character by character. Several formats spell the same rule differently.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT2_OF_OPENAI = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's spellings: ASCII contractions, and look-ahead where its engine lacks the letter classes.
_ASCII_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3_GGUF = LLAMA3.replace(_CONTRACTIONS, _ASCII_CONTRACTIONS)
QWEN2_GGUF = QWEN2.replace(_CONTRACTIONS, _ASCII_CONTRACTIONS)
QWEN35_GGUF = QWEN35.replace(_CONTRACTIONS, _ASCII_CONTRACTIONS)
_MIXED_GGUF = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
_UPPER_GGUF = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
_REST_GGUF = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K_GGUF = rf"{_MIXED_GGUF}{_ASCII_CONTRACTIONS}?|{_UPPER_GGUF}{_ASCII_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST_GGUF}"
TEKKEN_GGUF = rf"{_MIXED_GGUF}|{_UPPER_GGUF}|\p{{N}}|{_REST_GGUF}"

DIGIT = r"\p{N}"
THREE_DIGITS = r"\p{N}{1,3}"
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)

# Each of these splits at every boundary below.
MAIN_PATTERNS = frozenset({GPT2, _GPT2_OF_OPENAI, CL100K, LLAMA3, QWEN2, QWEN35, O200K, TEKKEN, DEEPSEEK3})
# These may come before one of them: they only split more, and none of their pieces goes on over a boundary.
HELPER_PATTERNS = frozenset({DIGIT, THREE_DIGITS, CJK})

# Where every main pattern starts a new piece, whatever surrounds it:
# - before a space that follows a letter, mark, number, punctuation or symbol: no piece goes on over a space, and a
#   space belongs to what follows it. Not after whitespace: a run of it is split by what comes after the run;
# - before a line's end, or a mark that ends a phrase, after a letter or digit: those runs hold neither. Not before an
#   apostrophe ("don't"), and only after letters that no Unicode version disputes: to an older one a newer letter is a
#   symbol, which would take the mark along.
_BOUNDARY = (
    r"(?<=[\p{L}\p{M}\p{N}\p{P}\p{S}])(?= )"
    r"|(?<=[A-Za-z0-9ぁ-ゖァ-ヺ一-龥])(?=[\n.,:;!?()。，、：；！？])"
)


def boundary(special_tokens: Iterable[str], swallowing: Iterable[str] = ()) -> regex.Pattern[str]:
    """The boundaries of a vocabulary with these special tokens, to be searched backwards.

    A place within a special token is none, nor is the place after a ``swallowing`` token, one that takes the space
    after it.
    """
    plain = regex.compile(_BOUNDARY)
    inner = {token[: match.start()] for token in special_tokens for match in plain.finditer(token) if match.start()}
    excluded = "".join(rf"(?<!{regex.escape(prefix)})" for prefix in sorted(inner | set(swallowing)))
    return regex.compile(rf"(?r){excluded}(?:{_BOUNDARY})")
