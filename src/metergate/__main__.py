"""``python -m metergate`` and the console script ``metergate``."""

from metergate.cli.main import main

if __name__ == "__main__":
    main()
