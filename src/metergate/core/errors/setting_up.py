"""Refusals of the configuration and of commands."""

from dataclasses import dataclass
from typing import ClassVar

from metergate.core.errors.base import MetergateError


@dataclass(kw_only=True, eq=False)
class RateCardInvalid(MetergateError):
    """The rate card {rate_card_id} is invalid: {problem}."""

    reason: ClassVar[str] = "RATE_CARD_INVALID"
    rate_card_id: str
    problem: str


@dataclass(kw_only=True, eq=False)
class IdConflict(MetergateError):
    """The id {id} was used for another {resource}."""

    reason: ClassVar[str] = "ID_CONFLICT"
    resource: str
    id: str


@dataclass(kw_only=True, eq=False)
class TokenizerInvalid(MetergateError):
    """The tokenizer {path} cannot be used: {problem}."""

    reason: ClassVar[str] = "TOKENIZER_INVALID"
    path: str
    problem: str


@dataclass(kw_only=True, eq=False)
class StoreRefused(MetergateError):
    """The store {path} cannot be opened: {problem}."""

    reason: ClassVar[str] = "STORE_REFUSED"
    path: str
    problem: str


@dataclass(kw_only=True, eq=False)
class BackupRefused(MetergateError):
    """The backup {path} cannot be restored: {problem}."""

    reason: ClassVar[str] = "BACKUP_REFUSED"
    path: str
    problem: str


@dataclass(kw_only=True, eq=False)
class FileRefused(MetergateError):
    """The file {path} cannot be written: {problem}."""

    reason: ClassVar[str] = "FILE_REFUSED"
    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """What is wrong with one key of the configuration."""

    key: str  # path in the file: "models.smollm2.backends"; "" for the file itself
    description: str
    variable: str | None = None  # the environment variable that the value came from; None: it came from the file

    def line(self, file: str) -> str:
        """The problem with the place to mend."""
        place = file if self.variable is None else f"environment variable {self.variable}"
        key = "" if self.key in ("", self.variable) else f"{self.key}: "
        return f"{place}: {key}{self.description}"


class ConfigInvalid(MetergateError):
    """The configuration is invalid."""

    reason: ClassVar[str] = "CONFIG_INVALID"

    def __init__(self, file: object, *problems: ConfigProblem) -> None:
        super().__init__()
        self.file = str(file)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(problem.line(self.file) for problem in self.problems)


@dataclass(kw_only=True, eq=False)
class ListenerRefused(MetergateError):
    """The gateway cannot listen on {address}: {problem}."""

    reason: ClassVar[str] = "LISTENER_REFUSED"
    address: str
    problem: str


@dataclass(kw_only=True, eq=False)
class CertificateInvalid(MetergateError):
    """{key}: {path} cannot be used for TLS: {problem}."""

    reason: ClassVar[str] = "CERTIFICATE_INVALID"
    key: str  # of the configuration: "listener.tls.key_path"
    path: str
    problem: str


@dataclass(kw_only=True, eq=False)
class CommandRefused(MetergateError):
    """The gateway that serves this store refused: {problem}."""

    reason: ClassVar[str] = "COMMAND_REFUSED"
    problem: str
