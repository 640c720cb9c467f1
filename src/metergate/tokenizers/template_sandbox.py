"""Runs chat templates within bounds: of steps, of what they make in memory, of processor time.

A template is a program that came with a model's files: untrusted code. Jinja's sandbox keeps it from what is none of
its business; it does not keep it from taking all time and memory. So every loop and call counts as steps, what could
make a large value is bounded before it is made, and only filters that chat templates use are there.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.runtime
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# Repetitions of loops and calls. A message takes some dozens in the longest templates known, and a request has at most
# some thousands of messages: above that, its loop alone is too long.
STEPS_MAX = 300_000
# Characters and elements of all that is made on the way: over any model's context, and over the largest request that is
# accepted several times.
MADE_MAX = 64 * 1024 * 1024
# What steps alone do not bound: comparing and searching long texts over and over. The longest known templates render a
# megabyte in a tenth of this.
CPU_SECONDS_MAX = 1.0
# Templates multiply to indent and to pad; none needs more than a line.
_PRODUCT_MAX = 65_536
# An element of a list takes so much more memory than a character of a text.
_CHARACTERS_PER_ELEMENT = 16

_FILTERS = frozenset(
    {
        "abs",
        "attr",
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "e",
        "escape",
        "first",
        "float",
        "groupby",
        "int",
    }
    | {"items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe"}
    | {"select", "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper"}
)
_GLOBALS = frozenset({"range", "dict", "namespace", "joiner", "cycler"})

# Each can make a text of any length, and no chat template is known to use it.
_METHODS_REFUSED = frozenset({"center", "expandtabs", "format_map", "ljust", "rjust", "translate", "zfill"})


class Budget:
    """What one rendering may still use."""

    __slots__ = ("_deadline", "_made_left", "_steps_left")

    def __init__(self) -> None:
        self._steps_left = STEPS_MAX
        self._made_left = MADE_MAX
        self._deadline = time.thread_time() + CPU_SECONDS_MAX

    def step(self, steps: int = 1) -> None:
        """Take steps; SecurityError beyond the bound."""
        self._steps_left -= steps
        if self._steps_left < 0:
            raise SecurityError("a template may not take so many steps")
        if time.thread_time() > self._deadline:
            raise SecurityError("a template may not take so long")

    def make(self, size: int) -> None:
        """Make a value of so many characters; SecurityError beyond the bound."""
        self._made_left -= size
        if self._made_left < 0:
            raise SecurityError("a template may not make so large a value")


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


class SandboxedTemplates(ImmutableSandboxedEnvironment):
    """The sandbox with bounds. What is rendered in it must be within ``budget``."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
        self.filters = {name: made for name, made in self.filters.items() if name in _FILTERS}
        self.filters |= {
            "_steps": _iterated,
            "_concatenated": _concatenated,
            "format": _formatted,
            "indent": _indented,
            "join": _joined,
            "replace": _replaced,
        }
        self.globals = {name: made for name, made in self.globals.items() if name in _GLOBALS}

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a block or a macro wrote, within bounds."""
        texts = list(pieces)
        used = _budget.get(None)
        if used is not None:  # while a template is compiled, constants are joined
            used.make(sum(map(len, texts)))
        return "".join(texts)

    def compiled(self, text: str) -> jinja2.Template:
        """The template, with its loops counted; TemplateError if it does not compile."""
        tree = _Counted().visit(self.parse(text))
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Calculate within bounds; SecurityError beyond."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"a template may not use {operator}")
        if operator == "*":
            sizes = [len(value) if isinstance(value, (str, list, tuple)) else value for value in (left, right)]
            if abs(sizes[0] * sizes[1]) > _PRODUCT_MAX:
                raise SecurityError("a template may not make so large a value")
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _budget.get().make(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: ANN401
        """Jinja's stand-in for a text's method of formatting; SecurityError if it could pad."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and ":" in str(value.__self__):
            raise SecurityError("a template may not pad so far")
        return wrapped

    # Jinja's own names, so that no keyword of a template's call can be taken for them.
    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, N805
        """Call within bounds."""
        _budget.get().step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = _bounded_arguments(owner, getattr(__obj, "__name__", ""), args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


class _Counted(NodeTransformer):
    """Counts the repetitions of loops, and what ``~`` makes: Jinja's sandbox has no hook for them."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - NodeTransformer's name
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_steps")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - NodeTransformer's name
        self.generic_visit(node)
        values = nodes.List(node.nodes, lineno=node.lineno, environment=node.environment)
        return _filtered(values, "_concatenated")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    # All nodes of a tree share their environment; the parser gave it to this one.
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


def _iterated(values: Any) -> Any:  # noqa: ANN401 - any value that a template loops over
    """The same values. A sized one is counted at once and stays what it is, so that ``loop`` knows its length."""
    if isinstance(values, Sized):
        _budget.get().step(len(values))
        return values
    return _each_counted(values)


def _each_counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _budget.get().step()
        yield value


def _concatenated(values: list[Any]) -> str:
    texts = [str(value) for value in values]
    _budget.get().make(sum(map(len, texts)))
    return "".join(texts)


def _size(value: Sized) -> int:
    return len(value) if isinstance(value, str) else len(value) * _CHARACTERS_PER_ELEMENT


# --- filters and methods --------------------------------------------------------------------------------------------

# A width, or a place for one: with more than three digits it is no column of a text.
_WIDE = re.compile(r"\d{4}|%[^a-zA-Z%]*\*")


def _formatted(form: str, *values: Any, **named: Any) -> str:  # noqa: ANN401 - any values of a template
    if _WIDE.search(form):
        raise SecurityError("a template may not pad so far")
    return jinja2.filters.do_format(form, *values, **named)


def _indented(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = len(width) if isinstance(width, str) else width
    _budget.get().make(len(text) + (text.count("\n") + 1) * max(0, size))
    return jinja2.filters.do_indent(text, width, first, blank)


@jinja2.pass_eval_context
def _joined(
    context: nodes.EvalContext,
    values: Iterable[Any],
    separator: str = "",
    attribute: str | int | None = None,
) -> str:
    values = list(_each_counted(values))
    # Texts that are attributes of the values were made, and counted, before.
    _budget.get().make(len(values) * len(separator) + sum(len(value) for value in values if isinstance(value, str)))
    return str(jinja2.filters.do_join(context, values, separator, attribute))


@jinja2.pass_eval_context
def _replaced(context: nodes.EvalContext, text: Any, old: str, new: str, count: int | None = None) -> str:  # noqa: ANN401
    _charge_replacing(str(text), str(old), str(new))
    return str(jinja2.filters.do_replace(context, str(text), old, new, count))


def _charge_replacing(text: str, old: str, new: str) -> None:
    _budget.get().make(len(text) + text.count(old) * len(new))


def _bounded_arguments(
    text: str, name: str, arguments: tuple[Any, ...], named: Mapping[str, object]
) -> tuple[Any, ...]:
    """The arguments of a text's method; SecurityError if it could make too large a value of them."""
    if name in _METHODS_REFUSED:
        raise SecurityError(f"a template may not use {name} so")
    if name == "replace" and len(arguments) > 1:
        _charge_replacing(text, str(arguments[0]), str(arguments[1]))
    elif name == "join" and arguments:
        values = list(_each_counted(arguments[0]))
        _budget.get().make(sum(len(value) + len(text) for value in values if isinstance(value, str)))
        return (values, *arguments[1:])
    elif name in {"split", "rsplit", "splitlines"}:
        _budget.get().make(len(text) * _CHARACTERS_PER_ELEMENT)
    else:
        _budget.get().make(len(text) + sum(len(value) for value in named.values() if isinstance(value, str)))
    return arguments
