"""``metergate serve``."""

from metergate.cli.parameters import DEFAULT_CONFIG, ConfigFile


def serve(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Serve apps until SIGTERM or Ctrl-C; then admit nothing more, end what runs, and exit with 0.

    SIGHUP reloads models, backends and rate cards; what runs goes on as it began.
    """
    # All of the gateway: every other command starts in half the time without it.
    from metergate.cli.serving_process import serve_until_told

    serve_until_told(config)
