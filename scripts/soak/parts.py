"""What every part of the soak is given and gives."""

from collections.abc import Callable, Mapping

Step = Callable[[], None]  # called after each seed, kill, ...
Figures = Mapping[str, str]  # what was found, with its unit, by what it is
