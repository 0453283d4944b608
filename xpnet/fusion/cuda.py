"""Write CUDA C++ kernels from graphs: one for an optimizer's update, two for an activation.

The code is compiled after `kernels/cuda/helpers.cu`, which defines the types (A is the model's dtype, N the dtype
to which a derivative is rounded) and the functions called here. The code depends only on the structure of the
graphs, not on `Graph.constants`: constants are arguments of the kernel, in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .trace import Graph

__all__ = ["activation_source", "derivative_source", "update_source"]

OPERATIONS = {
    "negative": "-{0}", "abs": "fabs({0})", "sign": "sign({0})", "sqrt": "sqrt({0})", "exp": "exp({0})",
    "expm1": "expm1({0})", "log": "log({0})", "log1p": "log1p({0})", "cos": "cos({0})", "tanh": "tanh({0})",
    "erf": "erf({0})",
    "floor": "floor({0})",
    "add": "{0} + {1}", "subtract": "{0} - {1}", "multiply": "{0} * {1}", "divide": "{0} / {1}",
    "pow": "pow({0}, {1})", "maximum": "larger({0}, {1})", "minimum": "smaller({0}, {1})",
    "greater": "{0} > {1}", "greater_equal": "{0} >= {1}", "less": "{0} < {1}", "less_equal": "{0} <= {1}",
    "equal": "{0} == {1}", "not_equal": "{0} != {1}", "logical_and": "{0} && {1}", "logical_or": "{0} || {1}",
    "logical_not": "!{0}", "where": "{0} ? {1} : {2}", "astype": "A({0})",
}  # fmt: skip


def activation_source(forward: Graph) -> str:
    """Return the source of kernel `bias_act(z, bias, y, *constants, rows, units)`: y = f(z + bias).

    Args:
        forward: the graph of f, of one array.
    """
    numbers, steps, (result,) = _statements(forward, ["z_i"])
    parameters = ["A* z", "const A* __restrict__ bias", "A* y", *_constants(forward), "int rows", "int units"]
    call = "activate(z, bias, y, rows, units, [=](A z_i) -> A {"
    return _kernel("bias_act", parameters, [call, *numbers, *steps, f"return {result};", "});"])


def derivative_source(backward: Graph) -> str:
    """Return the source of kernel `act_backward(dy, z, y, dz, sums, *constants, rows, units)`: dz = f'(z) dy.

    Args:
        backward: the graph of dz, of three arrays: dy, z and y. Arrays that it does not read may be null.
    """
    arrays = ["dy", "z", "y"]
    numbers, steps, (result,) = _statements(backward, [f"{a}_i" for a in arrays])
    parameters = [*(f"const A* __restrict__ {a}" for a in arrays), "N* __restrict__ dz", "A* __restrict__ sums"]
    lines = ["__shared__ A part[ROWS][LANES];", "pull_back(dz, sums, rows, units, part, [=](i64 i) -> A {"]
    lines += [*(f"const A {a}_i = {a}[i];" for a in arrays), *numbers, *steps, f"return {result};", "});"]
    return _kernel("act_backward", [*parameters, *_constants(backward), "int rows", "int units"], lines)


def update_source(graph: Graph, in_place: bool) -> str:
    """Return the source of kernel `update`, an optimizer's update, which writes nothing if *ok is false.

    Its arguments are w, g, *slots; unless `in_place`, arrays for the new w and slots; the pointers lr, age and
    factor, which may be null if the graph does not read them; the constants; the pointer ok, which may be null; n.

    Args:
        graph: see `update_graph`. in_place: whether new weights and slots overwrite the old ones.
    """
    arrays = ["w", "g", *(f"s{k}" for k in range(graph.arrays - 2))]
    places = [a if in_place else f"new_{a}" for a in arrays if a != "g"]
    numbers = ["lr", "age", "factor"]
    head, body, results = _statements(graph, [f"{a}_i" for a in arrays], [f"{a}_0" for a in numbers])
    parameters = [f"{'' if a in places else 'const '}A* __restrict__ {a}" for a in arrays]
    parameters += [f"A* __restrict__ {a}" for a in places if a not in arrays]
    parameters += [*(f"const A* {a}" for a in numbers), *_constants(graph), "const bool* ok", "i64 n"]
    lines = ["if (ok && !*ok) return;", *(f"const A {a}_0 = *{a};" for a in numbers), *head, "for (EACH(i, n)) {"]
    lines += [*(f"const A {a}_i = {a}[i];" for a in arrays), *body]
    lines += [*(f"{a}[i] = {result};" for a, result in zip(places, results)), "}"]
    return _kernel("update", parameters, lines)


def _constants(graph: Graph) -> list[str]:
    return [f"A c{k}" for k in range(sum(node.op == "constant" for node in graph.nodes))]


def _statements(
    graph: Graph, arrays: Sequence[str], numbers: Sequence[str] = ()
) -> tuple[list[str], list[str], list[str]]:
    """Return the statements computed once, those for each element, and the names of the results.

    Args:
        arrays, numbers: the names of the inputs.
    """
    names: list[str] = []
    lines: tuple[list[str], list[str]] = ([], [])
    inputs = {"array": arrays, "number": numbers}
    for i, node in enumerate(graph.nodes):
        if node.op == "constant":
            names.append(f"c{node.args[0]}")
        elif node.op in inputs:
            names.append(inputs[node.op][node.args[0]])
        else:
            names.append(f"t{i}")
            code = OPERATIONS[node.op].format(*(names[k] for k in node.args))
            lines[node.rank].append(f"const {'bool' if node.boolean else 'A'} {names[i]} = {code};")
    return *lines, [names[i] for i in graph.outputs]


def _kernel(name: str, parameters: Sequence[str], lines: Sequence[str]) -> str:
    """Return the source of a kernel, without constants that are never read."""
    kept: list[str] = []
    read: set[str] = set()
    for line in reversed(lines):
        defined = re.match(r"const (?:A|bool) (\w+) =", line)
        if defined is None or defined[1] in read:
            kept.append(line)
            read.update(re.findall(r"\w+", line))
    unread = [f"(void){word};" for word in (p.split()[-1] for p in parameters) if word not in read]
    body = "".join(f"    {line}\n" for line in (*unread, *reversed(kept)))
    return f'extern "C" __global__ void {name}({", ".join(parameters)}) {{\n{body}}}\n'
