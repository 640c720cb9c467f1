"""``metergate serve``: the gateway's process."""

import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvloop
from rich.console import Console
from rich.logging import RichHandler

from metergate.app import Gateway
from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile
from metergate.config import Config, load_config

logger = logging.getLogger(__name__)


def serve(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Serve apps until SIGTERM or Ctrl-C; then admit nothing more, end what runs, and exit with 0."""
    _log_to_stderr()
    uvloop.run(_serve(load_config(config), config))


async def _serve(config: Config, file: Path) -> None:
    # Before the port listens: whoever found it open may tell the process to stop, and it stops in good order.
    told_to_stop = _stop_signals()
    async with await Gateway.open(config) as gateway:
        host = config.listener.address.rpartition(":")[0]
        models = ", ".join(config.models)
        logger.info("serving %s on %s:%d (configuration %s)", models, host, gateway.port, file)
        await told_to_stop.wait()
        logger.info("draining, for at most %g s", config.limits.drain_seconds_max)
        await gateway.drain()
    logger.info("stopped")


def _stop_signals() -> asyncio.Event:
    """Set by the first SIGTERM or Ctrl-C. The second ends the process at once; recovery settles what it leaves."""
    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        told_to_stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, stop)
    return told_to_stop


def _log_to_stderr() -> None:
    """Coloured columns for a person, one plain line an event for everything else."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="%X"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
