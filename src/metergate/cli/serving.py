"""``metergate serve``: the gateway's process."""

import asyncio
import logging
import signal
from pathlib import Path

import uvloop

from metergate.app import Gateway
from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile
from metergate.config import Config, load_config
from metergate.telemetry.log_lines import log_lines, report_loop_error

logger = logging.getLogger(__name__)


def serve(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Serve apps until SIGTERM or Ctrl-C; then admit nothing more, end what runs, and exit with 0."""
    loaded = load_config(config)
    with log_lines(loaded.logs.format, loaded.logs.level):
        uvloop.run(_serve(loaded, config))


async def _serve(config: Config, file: Path) -> None:
    # Before the port listens: whoever found it open may tell the process to stop, and it stops in good order.
    told_to_stop = _stop_signals()
    asyncio.get_running_loop().set_exception_handler(report_loop_error)
    async with await Gateway.open(config) as gateway:
        host = config.listener.address.rpartition(":")[0]
        models = ", ".join(config.models)
        if gateway.metrics_port is not None:
            watched = (config.metrics.address or "").rpartition(":")[0]
            logger.info("metrics on http://%s:%d/metrics, and /livez, /readyz", watched, gateway.metrics_port)
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
