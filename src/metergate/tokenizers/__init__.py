"""Counting rules, named after the form their vocabulary comes in."""

from metergate.tokenizers.open import TokenizerSpec, open_tokenizer

__all__ = ["TokenizerSpec", "open_tokenizer"]
