"""Credits are integers: one credit is 1,000,000 microcredits, stored and sent as signed 64-bit."""

from decimal import Decimal, InvalidOperation

MICROCREDITS_PER_CREDIT = 1_000_000

# Half of a signed 64-bit integer: two such amounts still add up without overflow, in SQLite and in protobuf alike.
AMOUNT_MICROCREDITS_MAX = 2**62


def format_credits(amount_microcredits: int) -> str:
    """The amount in credits with all six decimals, for people: ``5.250000``."""
    sign = "-" if amount_microcredits < 0 else ""
    whole, fraction = divmod(abs(amount_microcredits), MICROCREDITS_PER_CREDIT)
    return f"{sign}{whole:,}.{fraction:06d}"


def parse_credits(text: str) -> int:
    """Microcredits of a decimal number of credits; ValueError if it is no number, too fine, or out of range."""
    try:
        amount = Decimal(text.replace("_", "")) * MICROCREDITS_PER_CREDIT
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a decimal number of credits") from None
    if not amount.is_finite():
        raise ValueError(f"{text!r} is not a finite number of credits")
    if abs(amount) > AMOUNT_MICROCREDITS_MAX:
        raise ValueError(f"{text!r} credits is out of range")
    if amount != amount.to_integral_value():
        raise ValueError(f"{text!r} is finer than one microcredit (six decimals)")
    return int(amount)
