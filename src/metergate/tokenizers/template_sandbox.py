"""Runs chat templates within bounds: of steps, of what they make in memory, of processor time.

A template is a program that came with a model's files: untrusted code. Jinja's sandbox keeps it from what is none of
its business; it does not keep it from taking all time and memory. So a template may use only what chat templates use
(statements, filters, tests, functions, attributes and methods: what is not listed is refused), and all of it is charged
to a budget before it is done.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from types import BuiltinMethodType
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from metergate.tokenizers.template_budget import used
from metergate.tokenizers.template_filters import FILTERS, FUNCTIONS, TESTS, compared
from metergate.tokenizers.template_texts import METHODS, charge_formatting
from metergate.tokenizers.template_values import (
    ENTRY_BYTES,
    PLACE_BYTES,
    VALUE_BYTES,
    Containers,
    joined,
    key,
    look,
    text_bytes,
    text_of,
)

# The longest template known has some 30,000.
TEMPLATE_CHARACTERS_MAX = 256 * 1024
# Templates multiply to indent and to pad, some to make places for images; none needs more than a line.
_PRODUCT_MAX = 65_536
# Dividing takes the product of both lengths; no number of a template or of a request's tools is wider.
_NUMBER_BITS_MAX = 256
# No macro or method takes so many.
_ARGUMENTS_MAX = 255
# What escaping makes of a quotation mark: adding to a Markup escapes.
_ESCAPED_CHARACTERS_MAX = len("&quot;")

_STATEMENTS = (
    *(nodes.Assign, nodes.AssignBlock, nodes.Break, nodes.CallBlock, nodes.Continue, nodes.FilterBlock, nodes.For),
    *(nodes.If, nodes.Macro, nodes.Output, nodes.With),
)
_ATTRIBUTES: Mapping[type, frozenset[str]] = {
    str: frozenset({*METHODS, "format"}),
    dict: frozenset({"get", "items", "keys", "values"}),
    LoopContext: frozenset(
        {"cycle", "first", "index", "index0", "last", "length", "nextitem", "previtem", "revindex", "revindex0"}
    ),
}


class SandboxedTemplates(ImmutableSandboxedEnvironment):
    """The sandbox with bounds. What is rendered in it must be within ``budget``."""

    intercepted_binops = frozenset({"*", "**", "%", "+", "-", "/", "//"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols], finalize=_written)
        self.filters = {**FILTERS, **_TURNED}
        self.tests = dict(TESTS)
        self.globals = dict(FUNCTIONS)

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a block or a macro wrote, charged."""
        return joined(pieces)

    def compiled(self, text: str) -> jinja2.Template:
        """The template, with all that it does charged; TemplateError if it does not compile."""
        if len(text) > TEMPLATE_CHARACTERS_MAX:
            raise TemplateSyntaxError("it is too long", 1)
        tree = _Charged().visit(self.parse(text))
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Calculate within bounds; SecurityError beyond."""
        used().step()
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"a template may not use {operator}")
        if operator == "*":
            _charge_product(left, right)
        elif operator == "+":
            _charge_sum(left, right)
        for value in (left, right):
            if isinstance(value, int) and value.bit_length() > _NUMBER_BITS_MAX:
                raise SecurityError("a template may not use so large a number")
        return super().call_binop(context, operator, left, right)

    def getitem(self, obj: Any, argument: Any) -> Any:  # noqa: ANN401
        """An element; SecurityError for a key that is none."""
        used().step()
        return super().getitem(obj, key(argument))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ANN401
        """Whether templates use it of such an object."""
        if isinstance(obj, Namespace):
            return super().is_safe_attribute(obj, attr, value)
        return attr in _ATTRIBUTES.get(type(obj), ())

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: ANN401
        """Jinja's stand-in for a text's method of formatting, charged."""
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None or value.__name__ != "format" else _Formatting(value.__self__, wrapped)

    # Jinja's own names, so that no keyword of a template's call can be taken for them.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, N805
        """Call what templates call, within bounds; SecurityError for anything else."""
        used().step(1 + len(args) + len(kwargs))
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, BuiltinMethodType) and type(owner) is str:
            __obj, args = METHODS[__obj.__name__], (owner, *args)
        elif isinstance(__obj, BuiltinMethodType) and type(owner) is dict:
            args = (*map(key, args[:1]), *args[1:])
        elif not (
            isinstance(__obj, (Macro, Undefined, _Formatting))
            or isinstance(owner, LoopContext)
            or any(__obj is function for function in FUNCTIONS.values())
        ):
            raise SecurityError(f"a template may not call a {type(__obj).__name__}")
        return super().call(__context, __obj, *args, **kwargs)


class _Formatting:
    """A text's method of formatting, charged."""

    def __init__(self, form: str, wrapped: Callable[..., str]) -> None:
        self._form = form
        self._wrapped = wrapped

    def __call__(self, *arguments: Any, **named: Any) -> str:  # noqa: ANN401
        """The formatted text; SecurityError if it could pad."""
        if ":" in self._form:
            raise SecurityError("a template may not pad so far")
        charge_formatting(self._form, "{", (arguments, named))
        return self._wrapped(*arguments, **named)


def _charge_product(left: Any, right: Any) -> None:  # noqa: ANN401
    product = 1
    for value in (left, right):
        product *= len(value) if isinstance(value, Sized) else value
    if abs(product) > _PRODUCT_MAX:
        raise SecurityError("a template may not make so large a value")
    if isinstance(left, Sized) or isinstance(right, Sized):
        used().make(max(0, product) * PLACE_BYTES)


def _charge_sum(left: Any, right: Any) -> None:  # noqa: ANN401
    if isinstance(left, str) and isinstance(right, str):
        escaped = _ESCAPED_CHARACTERS_MAX if isinstance(left, Markup) or isinstance(right, Markup) else 1
        used().make(text_bytes(left, right) * escaped)
    elif isinstance(left, Sized) and isinstance(right, Sized):
        used().make(VALUE_BYTES + (len(left) + len(right)) * PLACE_BYTES)


# --- what the compiler is given instead -------------------------------------------------------------------------------


class _Charged(NodeTransformer):
    """Puts filters in the place, or before, of what Jinja's sandbox has no hook for; refuses other statements."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The charged node; TemplateSyntaxError for a statement that chat templates do not use."""
        if isinstance(node, nodes.Stmt) and not isinstance(node, _STATEMENTS):
            raise TemplateSyntaxError(f"chat templates have no {type(node).__name__}", node.lineno)
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - NodeTransformer's names
        if node.recursive:
            raise TemplateSyntaxError("chat templates have no recursive loops", node.lineno)
        self.generic_visit(node)
        written = sum(len(output.nodes) for output in node.find_all(nodes.Output))
        node.iter = _filtered(_expression(node.iter), "_repeated", nodes.Const(written))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_with_place(nodes.List(node.nodes), node), "_concatenated")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if len(node.ops) == 1:
            return _filtered(node.expr, "_compared", nodes.Const(node.ops[0].op), node.ops[0].expr)
        node.expr = _filtered(node.expr, "_looked")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_looked")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _filtered(node.node, "_sliced", *(bound or nodes.Const(None) for bound in bounds))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_literal")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if node.ctx == "store" else _filtered(node, "_literal")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _filtered(pair.key, "_key")
        return _filtered(node, "_literal")

    def _with_few_arguments(self, node: nodes.Call | nodes.Filter | nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = _filtered(node.dyn_args, "_few")
        if node.dyn_kwargs is not None:
            node.dyn_kwargs = _filtered(node.dyn_kwargs, "_few")
        return node

    visit_Call = visit_Filter = visit_Test = _with_few_arguments  # noqa: N815


def _expression(node: nodes.Node) -> nodes.Expr:
    assert isinstance(node, nodes.Expr)
    return node


def _filtered(node: nodes.Expr, name: str, *arguments: nodes.Expr) -> nodes.Expr:
    placed = [_with_place(argument, node) for argument in arguments]
    return _with_place(nodes.Filter(node, name, placed, [], None, None), node)


def _with_place(node: nodes.Expr, other: nodes.Node) -> nodes.Expr:
    # All nodes of a tree share their environment; the parser gave it to the others.
    if node.environment is None and other.environment is not None:
        node.set_lineno(other.lineno).set_environment(other.environment)
    return node


class _Repeated:
    """What a loop goes through: each turn is charged, with places for what it writes. It keeps its length."""

    def __init__(self, values: Sized, written: int) -> None:
        self._values = values
        self._written = written

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return _each_charged(self._values, self._written)


def _each_charged(values: Any, written: int) -> Iterator[Any]:  # noqa: ANN401
    budget = used()
    for value in values:
        budget.step()
        budget.make(written * PLACE_BYTES)
        yield value


def _repeated(values: Any, written: int) -> Iterable[Any]:  # noqa: ANN401
    return _Repeated(values, written) if isinstance(values, Sized) else _each_charged(values, written)


@jinja2.pass_context
def _written(context: Context, value: Any) -> str:  # noqa: ANN401 - with a context it is not done while compiling
    used().step()
    return text_of(value)


def _concatenated(values: list[Any]) -> str:
    return joined([text_of(value) for value in values])


def _looked(value: Any) -> Any:  # noqa: ANN401
    look(value)
    return value


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:  # noqa: ANN401
    places = slice(start, stop, step)
    if isinstance(value, str):
        used().make(len(range(*places.indices(len(value)))) * (1 if value.isascii() else 4))
    elif isinstance(value, Sized):
        used().make(VALUE_BYTES + len(range(*places.indices(len(value)))) * PLACE_BYTES)
    return value[places]


def _literal(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> Any:  # noqa: ANN401
    used().make(VALUE_BYTES + len(value) * (ENTRY_BYTES if isinstance(value, dict) else PLACE_BYTES))
    return value


def _few(values: Any) -> Any:  # noqa: ANN401
    if not isinstance(values, Containers) or len(values) > _ARGUMENTS_MAX:
        raise SecurityError("a template may not give so many arguments")
    return values


# A template that names one of them gets no more by it than by writing what it stands for.
_TURNED = {
    "_compared": compared,
    "_concatenated": _concatenated,
    "_few": _few,
    "_key": key,
    "_literal": _literal,
    "_looked": _looked,
    "_repeated": _repeated,
    "_sliced": _sliced,
}
