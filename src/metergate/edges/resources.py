"""Names of resources: ``models/{model}``, ``subscribers/{subscriber}/charges/{charge}``, and so on."""

import re

# One segment: what a URL and a metric label carry unescaped.
_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"

_MODEL = re.compile(rf"models/({_ID})", re.ASCII)
_APP = re.compile(rf"apps/({_ID})", re.ASCII)
_AUTHORIZATION = re.compile(rf"authorizations/({_ID})", re.ASCII)
_KEY = re.compile(rf"keys/({_ID})", re.ASCII)
_SUBSCRIBER = re.compile(rf"subscribers/({_ID})", re.ASCII)
_WALLET = re.compile(rf"subscribers/({_ID})/wallet", re.ASCII)
_MAKERS = rf"rollover|refund|refund-of-{_ID}|adjustment"
# What the ledger's own grants are named after; ids that people choose have no colon.
_GRANT = re.compile(rf"subscribers/({_ID})/grants/((?:(?:{_MAKERS}):)?{_ID})", re.ASCII)
_CHARGE = re.compile(rf"subscribers/({_ID})/charges/({_ID})", re.ASCII)


def parse_id(text: str) -> str | None:
    """The text if it can be one segment of a name, else None."""
    return text if re.fullmatch(_ID, text, re.ASCII) else None


def parse_model(name: str) -> str | None:
    """The model's id, or None if this is no model's name."""
    return _only(_MODEL, name)


def parse_app(name: str) -> str | None:
    """The app's id, or None if this is no app's name."""
    return _only(_APP, name)


def parse_authorization(name: str) -> str | None:
    """The authorization's id, or None if this is no authorization's name."""
    return _only(_AUTHORIZATION, name)


def parse_key(name: str) -> str | None:
    """The key's id, or None if this is no key's name."""
    return _only(_KEY, name)


def parse_subscriber(name: str) -> str | None:
    """The subscriber's id, or None if this is no subscriber's name."""
    return _only(_SUBSCRIBER, name)


def parse_wallet(name: str) -> str | None:
    """The subscriber's id, or None if this is no wallet's name."""
    return _only(_WALLET, name)


def parse_charge(name: str) -> tuple[str, str] | None:
    """The subscriber's and the charge's id, or None if this is no charge's name."""
    match = _CHARGE.fullmatch(name)
    return (match[1], match[2]) if match else None


def parse_grant(name: str) -> tuple[str, str] | None:
    """The subscriber's and the grant's id, or None if this is no grant's name."""
    match = _GRANT.fullmatch(name)
    return (match[1], match[2]) if match else None


def model_name(model_id: str) -> str:
    """``models/{model}``."""
    return f"models/{model_id}"


def rate_card_name(model_id: str, rate_card_id: str) -> str:
    """``models/{model}/rateCards/{rate_card}``."""
    return f"models/{model_id}/rateCards/{rate_card_id}"


def provider_name(provider_id: str) -> str:
    """``providers/{provider}``."""
    return f"providers/{provider_id}"


def app_name(app_id: str) -> str:
    """``apps/{app}``, or nothing for the subscriber's own access."""
    return f"apps/{app_id}" if app_id else ""


def authorization_name(authorization_id: str) -> str:
    """``authorizations/{authorization}``."""
    return f"authorizations/{authorization_id}"


def key_name(key_id: str) -> str:
    """``keys/{key}``."""
    return f"keys/{key_id}"


def subscriber_name(subscriber_id: str) -> str:
    """``subscribers/{subscriber}``."""
    return f"subscribers/{subscriber_id}"


def wallet_name(subscriber_id: str) -> str:
    """``subscribers/{subscriber}/wallet``."""
    return f"subscribers/{subscriber_id}/wallet"


def grant_name(subscriber_id: str, grant_id: str) -> str:
    """``subscribers/{subscriber}/grants/{grant}``."""
    return f"subscribers/{subscriber_id}/grants/{grant_id}"


def reservation_name(subscriber_id: str, reservation_id: str) -> str:
    """``subscribers/{subscriber}/reservations/{reservation}``."""
    return f"subscribers/{subscriber_id}/reservations/{reservation_id}"


def charge_name(subscriber_id: str, charge_id: str | None) -> str:
    """``subscribers/{subscriber}/charges/{charge}``, or nothing without a charge."""
    return f"subscribers/{subscriber_id}/charges/{charge_id}" if charge_id else ""


def correction_name(subscriber_id: str, correction_id: str) -> str:
    """``subscribers/{subscriber}/corrections/{correction}``."""
    return f"subscribers/{subscriber_id}/corrections/{correction_id}"


def transfer_name(subscriber_id: str, sequence: int) -> str:
    """``subscribers/{subscriber}/transfers/{sequence}``."""
    return f"subscribers/{subscriber_id}/transfers/{sequence}"


def _only(pattern: re.Pattern[str], name: str) -> str | None:
    match = pattern.fullmatch(name)
    return match[1] if match else None
