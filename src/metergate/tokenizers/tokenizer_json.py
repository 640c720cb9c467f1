"""Any Hugging Face ``tokenizer.json``, counted by the reference library."""

import json
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Reference

from metergate.core.errors import TokenizerInvalid
from metergate.tokenizers import pre_tokenizers as known
from metergate.tokenizers.byte_pairs import letters_characters_max, piece_encoder, token_counter
from metergate.tokenizers.long_runs import LongRuns
from metergate.tokenizers.token_bytes import ids_of
from metergate.tokenizers.vocabulary import Vocabulary


def load_tokenizer_json(path: Path) -> Vocabulary:
    """Read a ``tokenizer.json``; TokenizerInvalid if it is none.

    Special tokens are recognised in outputs and prompts alike. The template writes what a prompt begins with, so the
    library adds nothing to it; around a text that is embedded it adds what the file says.
    """
    try:
        text = path.read_text(encoding="utf-8")
        reference = Reference.from_str(text)
        rules = json.loads(text)
    except OSError as error:
        raise TokenizerInvalid(path=str(path), problem=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise TokenizerInvalid(path=str(path), problem="it is no valid tokenizer.json: it is not UTF-8 text") from error
    except Exception as error:
        # tokenizers raises nothing narrower for a file it cannot read
        raise TokenizerInvalid(path=str(path), problem=f"it is no valid tokenizer.json: {error}") from error
    # Files may ask to cut or to fill texts: a count must not.
    reference.no_truncation()
    reference.no_padding()

    count = token_counter(reference)
    added = reference.get_added_tokens_decoder().values()
    splits_as_known = _splits_as_known(rules)
    return Vocabulary(
        count_text=count,
        count_rendered=count,
        count_prompt_text=count,
        boundary=known.boundary(
            [token.content for token in added], swallowing=[token.content for token in added if token.rstrip]
        )
        if splits_as_known
        else None,
        runs=_runs(reference, rules) if splits_as_known else None,
        characters_per_token_max=_characters_max(reference, rules) if splits_as_known else None,
        ids=ids_of(reference, rules),
        added_tokens=reference.num_special_tokens_to_add(is_pair=False),
    )


def _runs(reference: Reference, rules: dict[str, Any]) -> LongRuns | None:
    """Cuts in long runs; None if a token of the text takes blanks along, or pieces are not merged from bytes."""
    added = reference.get_added_tokens_decoder().values()
    is_of_bytes = any(step["type"] == "ByteLevel" for step in _steps(rules.get("pre_tokenizer"), "pretokenizers"))
    if not is_of_bytes or any(token.lstrip or token.rstrip for token in added):
        return None
    return LongRuns(
        piece_encoder(reference),
        [token.content for token in added],
        compose=str if rules.get("normalizer") is None else partial(unicodedata.normalize, "NFC"),
    )


def _characters_max(reference: Reference, rules: dict[str, Any]) -> int | None:
    """The most characters that a token of known rules stands for; None if characters may get lost."""
    steps = _steps(rules.get("pre_tokenizer"), "pretokenizers")
    if not any(step["type"] == "ByteLevel" for step in steps):
        return None  # characters without a token are dropped
    if any(token.lstrip or token.rstrip for token in reference.get_added_tokens_decoder().values()):
        return None  # such a token takes any number of blanks along
    return letters_characters_max(reference.get_vocab(), composes=rules.get("normalizer") is not None)


def _splits_as_known(rules: dict[str, Any]) -> bool:
    """Whether the text is split by known patterns only, so that the tail window's boundaries are proven for it."""
    return (
        rules["model"]["type"] == "BPE"
        and all(step["type"] == "NFC" for step in _steps(rules.get("normalizer"), "normalizers"))
        and any(_is_splitter(step) for step in _steps(rules.get("pre_tokenizer"), "pretokenizers"))
        and all(_is_known(step) for step in _steps(rules.get("pre_tokenizer"), "pretokenizers"))
    )


def _steps(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return list(step[name]) if step["type"] == "Sequence" else [step]


def _is_known(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    return step["type"] == "Digits" or _isolates(step, known.HELPER_PATTERNS) or _is_splitter(step)


def _is_splitter(step: dict[str, Any]) -> bool:
    """Whether it alone splits at every boundary."""
    if step["type"] == "ByteLevel":
        return bool(step.get("use_regex", True))
    return _isolates(step, known.MAIN_PATTERNS)


def _isolates(step: dict[str, Any], patterns: frozenset[str]) -> bool:
    if step["type"] != "Split":
        return False
    # Taking away what is between the matches is the same as isolating them: these patterns match every character.
    isolated = step["behavior"] == "Isolated" and not step["invert"]
    kept = step["behavior"] == "Removed" and step["invert"] and patterns == known.MAIN_PATTERNS
    return (isolated or kept) and step["pattern"].get("Regex") in patterns
