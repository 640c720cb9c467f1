"""Credits are integers: one credit is 1,000,000 microcredits, stored and sent as signed 64-bit."""

from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow, Subnormal

MICROCREDITS_PER_CREDIT = 1_000_000

# Half of what a signed 64-bit integer reaches. It bounds one amount, and each sum that SQLite or protobuf ever holds:
# all of a wallet's credit, and what an authorization has charged and reserved. Two amounts of this size added would
# just pass 64 bits, so that nothing adds two without a bound.
AMOUNT_MICROCREDITS_MAX = 2**62

# Refuses what it cannot hold exactly: the largest amount has 19 digits, and zeros behind the last are harmless.
_EXACT = Context(prec=50, traps=[InvalidOperation, Overflow, Inexact, Subnormal])


def format_credits(amount_microcredits: int) -> str:
    """The amount in credits with all six decimals, for people: ``5.250000``."""
    sign = "-" if amount_microcredits < 0 else ""
    whole, fraction = divmod(abs(amount_microcredits), MICROCREDITS_PER_CREDIT)
    return f"{sign}{whole:,}.{fraction:06d}"


def parse_credits(text: str) -> int:
    """Microcredits of a decimal number of credits; ValueError if it is no number, too fine, or out of range."""
    try:
        amount = _EXACT.multiply(_EXACT.create_decimal(text.replace("_", "")), Decimal(MICROCREDITS_PER_CREDIT))
    except Overflow:
        raise ValueError(f"{text!r} credits is out of range") from None
    except (Inexact, Subnormal):
        raise ValueError(f"{text!r} is finer than one microcredit (six decimals), or out of range") from None
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a decimal number of credits") from None
    if not amount.is_finite():
        raise ValueError(f"{text!r} is not a finite number of credits")
    if abs(amount) > AMOUNT_MICROCREDITS_MAX:
        raise ValueError(f"{text!r} credits is out of range")
    if amount != amount.to_integral_value():
        raise ValueError(f"{text!r} is finer than one microcredit (six decimals)")
    return int(amount)
