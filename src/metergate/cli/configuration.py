"""``metergate config``: what is wrong with a configuration, and what is in effect."""

import asyncio
import json
from enum import StrEnum
from typing import Annotated, Any

import tomlkit
import typer
from tomlkit.container import Container
from tomlkit.items import AoT, Table

from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile
from metergate.cli.terminal import explain
from metergate.config import Setting, load_config, settings_in_effect

app = typer.Typer(help="Check the configuration, and show what is in effect.", no_args_is_help=True)

REFUSED = 2


class Format(StrEnum):
    """How the values are shown."""

    TOML = "toml"
    JSON = "json"


@app.command(epilog="Example: metergate config check --config metergate.toml")
def check(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Name everything that `serve` would refuse, short of taking its ports; exits with 2 if there is anything.

    Safe while a gateway serves: nothing is written.
    """
    from metergate.app import start_problems  # all of the gateway, which no other command here needs

    problems = asyncio.run(start_problems(load_config(config)))
    for problem in problems:
        explain(f"error: {problem}")
    if problems:
        raise typer.Exit(REFUSED)
    typer.echo(f"{config}: nothing is wrong.")


@app.command(epilog="Example: metergate config show --format json")
def show(
    config: ConfigFile = DEFAULT_CONFIG,
    shown_as: Annotated[Format, typer.Option("--format", help="TOML that can be used again, or JSON.")] = Format.TOML,
) -> None:
    """Show every value in effect and where it came from: the file, a variable of the environment, or the default.

    Secrets are not shown: a backend's key is named by its variable.
    """
    settings = settings_in_effect(config)
    text = _toml(settings) if shown_as is Format.TOML else json.dumps(_tree(settings), indent=2, default=str) + "\n"
    typer.echo(text, nl=False)


def _tree(settings: list[Setting]) -> dict[str, Any]:
    """The settings as nested objects; lists of tables as objects by index."""
    tree: dict[str, Any] = {}
    for setting in settings:
        here = tree
        for part in setting.key[:-1]:
            here = here.setdefault(str(part), {})
        here[str(setting.key[-1])] = {"value": setting.value, "source": setting.source}
    return tree


def _toml(settings: list[Setting]) -> str:
    document = tomlkit.document()
    for setting in settings:
        table = _table(document, setting.key[:-1])
        name = str(setting.key[-1])
        if setting.value is None:
            table.add(tomlkit.comment(f"{name} is not set ({setting.source})"))
        else:
            table.add(name, tomlkit.item(setting.value).comment(setting.source))
    return tomlkit.dumps(document)


def _table(document: Container, key: tuple[str | int, ...]) -> Table:
    """The table of this key, made where it is not there yet."""
    here: Any = document
    for part, following in zip(key, (*key[1:], None), strict=True):
        if isinstance(part, int):
            if part == len(here):
                here.append(tomlkit.table())
        elif part not in here:
            child: AoT | Table = tomlkit.aot() if isinstance(following, int) else tomlkit.table()
            here.add(part, child)
        here = here[part]
    assert isinstance(here, Table)
    return here
