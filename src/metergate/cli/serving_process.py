"""The gateway's process."""

import asyncio
import gc
import logging
import signal
from pathlib import Path
from typing import NoReturn

import uvloop

from metergate.app import Gateway
from metergate.config import Config, load_config
from metergate.core.errors import MetergateError
from metergate.telemetry.log_lines import log_lines, report_loop_error

logger = logging.getLogger(__name__)


def serve_until_told(file: Path) -> None:
    """Serve by a configuration file until SIGTERM or Ctrl-C."""
    loaded = load_config(file)
    with log_lines(loaded.logs.format, loaded.logs.level):
        uvloop.run(_serve(loaded, file))


async def _serve(config: Config, file: Path) -> None:
    # Before the port listens: whoever found it open may tell the process to stop, and it stops in good order.
    told_to_stop, told_to_reload = _stop_signals(), _reload_signal()
    asyncio.get_running_loop().set_exception_handler(report_loop_error)
    async with await Gateway.open(config) as gateway:
        host = config.listener.address.rpartition(":")[0]
        models = ", ".join(config.models)
        if gateway.metrics_port is not None:
            watched = (config.metrics.address or "").rpartition(":")[0]
            logger.info("metrics on http://%s:%d/metrics, and /livez, /readyz", watched, gateway.metrics_port)
        logger.info("serving %s on %s:%d (configuration %s)", models, host, gateway.port, file)
        reloading = asyncio.create_task(_reload_when_told(gateway, file, told_to_reload))
        # What is there now stays: looking through it for garbage again and again was a sixth of a request's settlement.
        gc.freeze()
        await told_to_stop.wait()
        reloading.cancel()
        logger.info("draining, for at most %g s", config.limits.drain_seconds_max)
        await gateway.drain()
    logger.info("stopped")


async def _reload_when_told(gateway: Gateway, file: Path, told: asyncio.Event) -> NoReturn:
    """A reload that anything is wrong with changes nothing and says why."""
    while True:
        await told.wait()
        told.clear()
        try:
            config = await asyncio.to_thread(load_config, file)
            await gateway.reload(config)
        except MetergateError as exc:
            logger.error("not reloaded, all stays as it was: %s", exc)
        except Exception as exc:
            logger.error("not reloaded, all stays as it was: unexpected %s", type(exc).__name__, exc_info=exc)
        else:
            logger.info("reloaded: serving %s (configuration %s)", ", ".join(config.models), file)


def _reload_signal() -> asyncio.Event:
    """Set by every SIGHUP, from the start: unhandled, it would end the process."""
    told_to_reload = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, told_to_reload.set)
    return told_to_reload


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
