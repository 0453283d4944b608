"""Run a formula once on symbols, and return the graph of its operations.

A formula is written in the Python array API standard: `make(xp)` returns `at(*arrays, *numbers)`, which returns
new arrays (or numbers). If it uses only elementwise functions, one run with symbols instead of arrays records all
its operations. `calls`, `loops` and `cuda` generate code from the graph.

The structure of a graph does not depend on any number: each constant is a separate node, and its value is in
`Graph.constants`. Generated code takes constants as arguments, so a new value requires no compilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple, NoReturn

__all__ = ["Graph", "Node", "NotElementwise", "rewritten", "trace"]

# The operations, under the names of the standard (and erf, see `core.special`): real -> real, real -> Boolean,
# Boolean -> Boolean. Others are made of these: isnan(x) is x != x, isfinite(x) is |x| < inf, square(x) is x x.
UNARY = {"negative", "abs", "sign", "sqrt", "exp", "expm1", "log", "log1p", "cos", "tanh", "erf", "floor"}
BINARY = {"add", "subtract", "multiply", "divide", "pow", "maximum", "minimum"}
COMPARISONS = {"greater", "greater_equal", "less", "less_equal", "equal", "not_equal"}
LOGIC = {"logical_and", "logical_or", "logical_not"}
# and "where" (Boolean, real, real) -> real; "astype" (Boolean) -> real: 1 or 0
BOOLEAN = COMPARISONS | LOGIC
ARITY = {
    **dict.fromkeys(UNARY | {"logical_not", "astype"}, 1),
    **dict.fromkeys(BINARY | COMPARISONS | {"logical_and", "logical_or"}, 2),
    "where": 3,
}


class NotElementwise(Exception):
    """The formula uses something that is not an elementwise function; it then runs on arrays, not fused."""


class Node(NamedTuple):
    """A value in a formula.

    Attributes:
        op: "array", "number" or "constant"; or an operation, by its name in the array API standard.
        args: the indices of the operands' nodes; for an input or a constant its own index, as in (0,).
        rank: 1 if there is a value for each element, 0 if there is one for all elements.
        boolean: whether the value is a Boolean, such as the result of a comparison.
    """

    op: str
    args: tuple[int, ...]
    rank: int
    boolean: bool

    @property
    def is_operation(self) -> bool:
        """Whether it is computed, that is, neither an input nor a constant."""
        return self.op not in ("array", "number", "constant")


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, which is fast; `key` is the structure
class Graph:
    """The operations of a formula.

    Attributes:
        nodes: each after its operands; only those that an output needs.
        outputs: indices of the results' nodes. A result may be an input or a constant.
        arrays, numbers: how many arrays and numbers the formula takes.
        constants: the values of the constants. `Node("constant", (k,), ...)` is the k-th.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    arrays: int
    numbers: int
    constants: tuple[float, ...]

    @cached_property
    def key(self) -> tuple[tuple[Node, ...], tuple[int, ...], int, int]:
        """The structure, hashable: equal for two formulas that differ only in the values of constants."""
        return self.nodes, self.outputs, self.arrays, self.numbers

    @cached_property
    def reads(self) -> frozenset[int]:
        """The indices of the arrays that are read; the memory of the others may be reused."""
        return frozenset(node.args[0] for node in self.nodes if node.op == "array")


def trace(make: Callable[[Any], Callable[..., Any]], arrays: int, numbers: int = 0) -> Graph:
    """Return the graph of a formula.

    Args:
        make: `make(xp)` returns the formula `at(*arrays, *numbers)`, which returns an array or a tuple of arrays;
            Python numbers are also accepted as results.
        arrays, numbers: how many arrays (a value for each element) and numbers (one value for all) it takes.

    Raises:
        NotElementwise: it uses something that is not an elementwise function of real arrays.

    >>> def make(xp):
    ...     return lambda w, g, lr: w - lr * g / (xp.abs(g) + 0.5)
    >>> graph = trace(make, 2, 1)
    >>> [node.op for node in graph.nodes]
    ['array', 'number', 'array', 'multiply', 'abs', 'constant', 'add', 'divide', 'subtract']
    >>> graph.outputs, graph.constants
    ((8,), (0.5,))
    """
    tracer = _Tracer()
    given = [tracer.symbol("array", (i,), 1) for i in range(arrays)]
    given += [tracer.symbol("number", (i,), 0) for i in range(numbers)]
    try:
        results = make(_Namespace(tracer))(*given)
    except NotElementwise:
        raise
    except Exception as error:
        raise NotElementwise(f"the formula raises on symbols; got {error!r}") from error
    outputs = [tracer.real(r) for r in (results if isinstance(results, (tuple, list)) else (results,))]
    return tracer.graph(outputs, arrays, numbers)


def rewritten(graph: Graph, op: str, formula: Callable[..., Any]) -> Graph:
    """Return the graph with `formula(xp, *operands)` in place of each operation `op` on arrays."""
    tracer = _Tracer()
    xp, values = _Namespace(tracer), list[Symbol]()
    for node in graph.nodes:
        if node.op == "constant":
            value = tracer.take(graph.constants[node.args[0]])
        elif not node.is_operation:
            value = tracer.symbol(*node)
        elif node.op == op and node.rank:
            value = formula(xp, *(values[k] for k in node.args))
        else:
            value = tracer.apply(node.op, *(values[k] for k in node.args))
        values.append(value)
    return tracer.graph([values[k] for k in graph.outputs], graph.arrays, graph.numbers)


class _Tracer:
    """The nodes so far. Equal operations on the same operands share a node; each constant is a separate node."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: list[float] = []
        self.known: dict[Node, int] = {}

    def symbol(self, op: str, args: tuple[int, ...], rank: int, boolean: bool = False) -> Symbol:
        node = Node(op, args, rank, boolean)
        place = self.known.setdefault(node, len(self.nodes))
        if place == len(self.nodes):
            self.nodes.append(node)
        return Symbol(self, place)

    def take(self, value: Any) -> Symbol:
        """Return an operand as a symbol: a symbol of this formula unchanged, a number as a constant."""
        if isinstance(value, Symbol) and value._tracer is self:
            return value
        if isinstance(value, bool) or not isinstance(value, Real):
            raise NotElementwise(
                f"an operand that is neither an argument of the formula nor a number; got {value!r}"
            )
        self.constants.append(float(value))
        return self.symbol("constant", (len(self.constants) - 1,), 0)

    def real(self, value: Any) -> Symbol:
        symbol = self.take(value)
        if self.nodes[symbol._place].boolean:
            raise NotElementwise("a Boolean where a number is expected")
        return symbol

    def boolean(self, value: Any) -> Symbol:
        if not isinstance(value, Symbol) or not self.nodes[value._place].boolean:
            raise NotElementwise(f"a condition that is not a Boolean of the formula; got {value!r}")
        return self.take(value)

    def apply(self, op: str, *values: Any) -> Symbol:
        """Return the result of an operation."""
        if len(values) != ARITY[op]:
            raise NotElementwise(f"{op} with {len(values)} arguments")
        if op == "where":
            operands = [self.boolean(values[0]), *map(self.real, values[1:])]
        else:
            operands = list(map(self.boolean if op in LOGIC or op == "astype" else self.real, values))
        places = tuple(operand._place for operand in operands)
        rank = max(self.nodes[place].rank for place in places)
        return self.symbol(op, places, rank, op in BOOLEAN)

    def graph(self, outputs: Sequence[Symbol], arrays: int, numbers: int) -> Graph:
        """Return the nodes that the outputs need, each after its operands, in the order of their first use."""
        places: dict[int, int] = {}
        nodes: list[Node] = []
        constants: list[float] = []

        def visit(place: int) -> int:
            if place not in places:
                node = self.nodes[place]
                if node.op == "constant":
                    constants.append(self.constants[node.args[0]])
                    node = node._replace(args=(len(constants) - 1,))
                elif node.is_operation:
                    node = node._replace(args=tuple(visit(arg) for arg in node.args))
                nodes.append(node)
                places[place] = len(nodes) - 1
            return places[place]

        found = tuple(visit(output._place) for output in outputs)
        return Graph(tuple(nodes), found, arrays, numbers, tuple(constants))


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refused(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotElementwise(what)

    return refused


class Symbol:
    """An array or number in a formula; its value is unknown."""

    __slots__ = ("_place", "_tracer")
    __hash__ = object.__hash__

    def __init__(self, tracer: _Tracer, place: int) -> None:
        self._tracer, self._place = tracer, place

    @property
    def dtype(self) -> str:
        """The dtype to pass to `astype`: "real" or "bool"."""
        return "bool" if self._tracer.nodes[self._place].boolean else "real"

    def __getattr__(self, name: str) -> NoReturn:
        raise NotElementwise(f"the attribute {name} of an array")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Symbol:
        """Apply an operation whose left operand is a NumPy number."""
        if method != "__call__" or kwargs or ufunc.__name__ not in ARITY:
            raise NotElementwise(f"numpy.{ufunc.__name__}")
        return self._tracer.apply(ufunc.__name__, *inputs)

    def __pos__(self) -> Symbol:
        return self

    def __pow__(self, other: Any) -> Symbol:
        if type(other) is int and other == 2:  # not for 2.0, which may be a setting: values must not matter
            return self._tracer.apply("multiply", self, self)
        return self._tracer.apply("pow", self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return self._tracer.apply("pow", other, self)

    __bool__ = __float__ = __int__ = __index__ = __complex__ = _refuse("reading a value on the host")
    __getitem__ = __iter__ = __len__ = __contains__ = _refuse("indexing or iterating over an array")
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse("an integer division")
    __matmul__ = __rmatmul__ = _refuse("a matrix product")


def _operator(op: str) -> tuple[Callable[[Symbol, Any], Symbol], Callable[[Symbol, Any], Symbol]]:
    return (lambda a, b: a._tracer.apply(op, a, b)), (lambda a, b: a._tracer.apply(op, b, a))


_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide",
    "and": "logical_and", "or": "logical_or",
    "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "eq": "equal", "ne": "not_equal",
}  # fmt: skip
for _name, _op in _OPERATORS.items():
    _plain, _reflected = _operator(_op)
    setattr(Symbol, f"__{_name}__", _plain)
    if _op not in COMPARISONS:  # Python reflects comparisons itself: 0 < x is x > 0
        setattr(Symbol, f"__r{_name}__", _reflected)
for _name, _op in (("neg", "negative"), ("abs", "abs"), ("invert", "logical_not")):
    setattr(Symbol, f"__{_name}__", lambda a, op=_op: a._tracer.apply(op, a))


_BITWISE = {"bitwise_and": "logical_and", "bitwise_or": "logical_or", "bitwise_invert": "logical_not"}


class _Namespace:
    """The elementwise part of the array API."""

    pi, e, inf, nan = math.pi, math.e, math.inf, math.nan

    def __init__(self, tracer: _Tracer) -> None:
        self._tracer = tracer

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        op = {"bitwise_and": "logical_and", "bitwise_or": "logical_or", "bitwise_invert": "logical_not"}.get(
            name, name
        )
        if op not in ARITY:
            raise NotElementwise(f"{name}, which is not a known elementwise function")
        return lambda *values: self._tracer.apply(op, *values)

    def square(self, x: Any) -> Symbol:
        return self._tracer.apply("multiply", x, x)

    def isnan(self, x: Any) -> Symbol:
        return self._tracer.apply("not_equal", x, x)

    def isfinite(self, x: Any) -> Symbol:
        return self._tracer.apply("less", self._tracer.apply("abs", x), math.inf)

    def positive(self, x: Any) -> Symbol:
        return self._tracer.real(x)

    def astype(self, x: Any, dtype: Any, *, copy: bool = True) -> Symbol:
        if dtype != "real":
            raise NotElementwise(f"a conversion to {dtype!r}")
        return self._tracer.apply("astype", x) if getattr(x, "dtype", None) == "bool" else self._tracer.real(x)

    def full_like(self, x: Any, fill_value: Any) -> Symbol:
        self._tracer.real(x)
        return self._tracer.real(fill_value)

    def zeros_like(self, x: Any) -> Symbol:
        return self.full_like(x, 0.0)

    def ones_like(self, x: Any) -> Symbol:
        return self.full_like(x, 1.0)
