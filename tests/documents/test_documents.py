"""What the documents say exists: commands with their options, files, headings, keys of the configuration."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import typer.main

from metergate.cli.main import app
from metergate.config import load_config

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
USAGE_ERROR = typer.BadParameter.__mro__[1]  # of which every refusal of options and arguments is a kind
SHELL_ENDS = {"&&", "&", ";", "|", ">", ">>", "2>", "2>&1"}


def blocks(document: Path, language: str) -> list[str]:
    return [text for name, text in CODE.findall(document.read_text()) if name == language]


def metergate_commands(shell: str) -> Iterator[list[str]]:
    """The arguments of every call of metergate in a block."""
    for line in shell.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"\w*=?\$\(([^()]*)\)", r" ; \1 ; ", line), comments=True)
        for is_end, group in groupby(words, SHELL_ENDS.__contains__):
            program, *arguments = group
            if not is_end and program.rpartition("/")[2] == "metergate":
                yield arguments


COMMANDS = [
    (document.name, arguments)
    for document in DOCUMENTS
    for block in blocks(document, "sh")
    for arguments in metergate_commands(block)
]
NAMED = [
    (document.name, shlex.split(call))
    for document in DOCUMENTS
    for call in re.findall(r"`metergate ([a-z][^`]*)`", CODE.sub("", document.read_text()))
]


def check(arguments: list[str]) -> None:
    """Raise if there is no such command, an option is unknown or has no value, or an argument is too many."""
    command: Any = typer.main.get_command(app)
    names = list(arguments)
    while commands := getattr(command, "commands", {}):
        assert names, "only a group of commands is named"
        if names == ["--version"]:
            return
        command = commands[names.pop(0)]
    context = command.context_class(command, info_name=command.name)
    _, left_over, _ = command.make_parser(context).parse_args(args=names)
    assert not left_over


@pytest.mark.parametrize(
    "arguments", [["wallet"], ["wallet", "sow"], ["wallet", "show", "alice", "--nope"], ["wallet", "show", "a", "b"]]
)
def test_a_command_that_is_none_is_found(arguments: list[str]) -> None:
    with pytest.raises((AssertionError, KeyError, USAGE_ERROR)):
        check(arguments)


def test_a_command_is_found_wherever_a_line_has_one() -> None:
    lines = "KEY=$(metergate key issue alice)  # x\nmetergate a && .venv/bin/metergate b \\\n  c | grep metergate"
    assert list(metergate_commands(lines)) == [["key", "issue", "alice"], ["a"], ["b", "c"]]


@pytest.mark.parametrize(("document", "arguments"), [*COMMANDS, *NAMED], ids=str)
def test_a_command_that_is_shown_is_one(document: str, arguments: list[str]) -> None:
    check(arguments)


def test_most_commands_are_shown() -> None:
    shown = {tuple(arguments[:2]) for _, arguments in COMMANDS}
    assert {("subscriber", "create"), ("key", "issue"), ("ledger", "backup"), ("charge", "refund")} <= shown


def headings(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    text = CODE.sub("", document.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_link_leads_somewhere(document: Path) -> None:
    for link in LINK.findall(CODE.sub("", document.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        assert target.exists(), f"{document.name}: {link}"
        assert not anchor or anchor in headings(target), f"{document.name}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_file_that_is_named_is_there(document: Path) -> None:
    text = CODE.sub("", document.read_text())
    for name in re.findall(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|proto|toml|sql|md))`", text):
        places = (ROOT, ROOT / "src" / "metergate", ROOT / "tests", document.parent)
        assert any((place / name).exists() for place in places), f"{document.name}: {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_toml_that_is_shown_is_toml(document: Path) -> None:
    for block in blocks(document, "toml"):
        tomllib.loads(block)


def test_the_configuration_of_the_readme_loads_as_it_is(tmp_path: Path) -> None:
    [block] = blocks(ROOT / "README.md", "toml")
    (tmp_path / "model.gguf").touch()
    (tmp_path / "metergate.toml").write_text(block)
    assert list(load_config(tmp_path / "metergate.toml").models) == ["smollm2-135m"]
