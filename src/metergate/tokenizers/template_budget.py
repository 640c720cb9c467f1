"""What one rendering of a chat template may use: steps, memory, processor time.

Whatever a template does is charged before it is done, and takes no more than in proportion to its charge.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from jinja2.exceptions import SecurityError

# Turns of loops, calls, operations, and elements gone through. A request has at most 1,024 messages: templates that
# look back over all of them from each take half a million, others some dozens a message.
STEPS_MAX = 1_000_000
# Bytes of all that is made on the way, whether or not it is still there: the largest request that is accepted (4 MiB)
# over ten times; the longest templates known copy a message five times.
MADE_BYTES_MAX = 64 * 1024 * 1024
# What steps alone do not bound: comparing and searching long texts over and over. The longest known templates render a
# megabyte in a tenth of this.
CPU_SECONDS_MAX = 1.0
# Reading the clock takes as long as a step: one reading for so many steps taken one by one.
_STEPS_PER_LOOK = 16
# Going through so many characters of a text takes about as long as a step.
_CHARACTERS_PER_STEP = 1_024


class Budget:
    """What one rendering may still use."""

    __slots__ = ("_deadline", "_made_left", "_steps_left")

    def __init__(self) -> None:
        self._steps_left = STEPS_MAX
        self._made_left = MADE_BYTES_MAX
        self._deadline = time.thread_time() + CPU_SECONDS_MAX

    def step(self, steps: int = 1) -> None:
        """Take steps; SecurityError beyond the bound."""
        self._steps_left -= steps
        if self._steps_left < 0:
            raise SecurityError("a template may not take so many steps")
        if (steps > 1 or not self._steps_left % _STEPS_PER_LOOK) and time.thread_time() > self._deadline:
            raise SecurityError("a template may not take so long")

    def go_through(self, characters: int) -> None:
        """Take the steps of searching or comparing so long a text."""
        self.step(1 + characters // _CHARACTERS_PER_STEP)

    def fits(self, size_bytes: int) -> None:
        """SecurityError if so large a value may not be made."""
        if size_bytes > self._made_left:
            raise SecurityError("a template may not make so large a value")

    def make(self, size_bytes: int) -> None:
        """Make a value of that size; SecurityError beyond the bound."""
        self.fits(size_bytes)
        self._made_left -= size_bytes


_budget: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def budget() -> Iterator[Budget]:
    """Render within a new budget."""
    mine = Budget()
    token = _budget.set(mine)
    try:
        yield mine
    finally:
        _budget.reset(token)


def used() -> Budget:
    """The budget of this rendering; LookupError outside of one, as when constants are folded while compiling."""
    return _budget.get()
