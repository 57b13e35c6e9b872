"""Holds a graph against what its execution provider has kernels for, before a package is written.

A provider leaves a node that it has no kernel for to the CPU, or refuses the graph, and some kernels compute wrongly
what they take. So each node's operator, version, attributes and types are looked up in the tables of the provider's
kernels, for the oldest and the newest ONNX Runtime that there are tables of, and then in a list of known cases.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from ...configs import Phi3OnnxError
from ..sources.problems import summarize
from .kernel_tables import Alternative, Argument, KernelTable, Operator, kernel_tables
from .rules import LAST_OPSETS, RULES

_CPU, _WEBGPU = "CPUExecutionProvider", "WebGpuExecutionProvider"
Types = dict[ir.Value, str]
"""The type of each value as it becomes known, such as `float16`."""


class LintError(Phi3OnnxError):
    """A graph that its provider would refuse, or compute wrongly."""


def check_graph(model: ir.Model, provider: str) -> None:
    """Refuse a graph that its provider would not run as it is.

    Raises:
        LintError: one line with what is wrong, where, and what to do.

    """
    if problems := find_problems(model, provider):
        raise LintError(f"the graph does not suit {provider}: {summarize(problems)}")


def find_problems(model: ir.Model, provider: str) -> list[str]:
    """Return what a provider (`cpu`, `cuda`, `dml`) would refuse of a graph, or compute wrongly; a line each.

    Milliseconds: no weights are read. A provider without a table is judged by the known cases alone.
    """
    problems = list(_broken_rules(model, provider))
    for table in kernel_tables(provider):
        types: Types = {}
        found = ((node.name, _problem(node, model.graph.opset_imports, table, types)) for node in model.graph)
        problems += [f"{name}: {problem}" for name, problem in found if problem is not None]
    return problems


def _broken_rules(model: ir.Model, provider: str) -> Iterator[str]:
    last, opset = LAST_OPSETS.get(provider), model.graph.opset_imports.get("", 1)
    if last is not None and opset > last:
        yield f"opset {opset} is newer than {last}, the last that {provider} has; set opset = {last} in the target"
    for rule in RULES:
        if rule.provider == provider:
            yield from (f"{node.name}: {rule.name}; {rule.remedy}" for node in model.graph if rule.applies(node))


def _problem(node: ir.Node, opsets: Mapping[str, int], table: KernelTable, types: Types) -> str | None:
    operator = table.operator(node.domain, node.op_type) or _onnx_operator(node, opsets.get(node.domain, 1))
    if operator is None:
        return f"{table} does not know an operator {_full_name(node)}; express it by others"
    if unknown := node.attributes.keys() - operator.attributes.keys():
        return f"{table} knows no attribute {min(unknown)!r} of {node.op_type}; leave it out"
    if missing := [name for name, required in operator.attributes.items() if required and name not in node.attributes]:
        return f"{node.op_type} lacks the attribute {missing[0]!r}"
    bound, clash = _bind(node, operator, types)
    if clash:
        return f"{node.op_type} has {clash}, and its definition wants one type for both"
    if table.provider == _WEBGPU and not any(kind.startswith(("float", "double")) for kind in bound.values()):
        table = kernel_tables("cpu")[-1]  # lengths and positions: it has few kernels for integers, and needs none
    alternatives = table.alternatives(node.domain, node.op_type, operator.since)
    if alternatives is None:
        if _inlined(node, operator, table):
            return None
        return f"{table} has no kernel for {_full_name(node)} of version {operator.since}; express it by others"
    if not any(_takes(alternative, bound, table.provider) for alternative in alternatives):
        given = ", ".join(f"{name} {kind}" for name, kind in sorted(bound.items()))
        return f"{table} has no kernel for {node.op_type} with {given}; its kernels take {_spelled(alternatives)}"
    return None


def _full_name(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _inlined(node: ir.Node, operator: Operator, table: KernelTable) -> bool:
    """Whether ONNX Runtime replaces a node by others that the provider has kernels for, as ONNX defines it by them."""
    if node.domain:
        return False
    schema: Any = onnx.defs.get_schema(node.op_type, operator.since, node.domain)
    if schema.has_context_dependent_function:
        return True  # which ones depends on the types, such as CastLike's Cast
    return schema.has_function and all(f"::{part.op_type}" in table.kernels for part in schema.function_body.node)


def _onnx_operator(node: ir.Node, opset: int) -> Operator | None:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    inputs, outputs = (
        [Argument(one.name, _short(one.type_str), one.option != single) for one in arguments]
        for arguments in (schema.inputs, schema.outputs)
    )
    attributes = {name: attribute.required for name, attribute in schema.attributes.items()}
    return Operator(inputs, outputs, attributes, schema.since_version)


def _bind(node: ir.Node, operator: Operator, types: Types) -> tuple[dict[str, str], str | None]:
    """Return the types of a node's arguments, by type parameter and by argument, and note those of its outputs.

    The second value says which arguments of one type parameter have two types; None where all is well.
    """
    bound: dict[str, str] = {}
    for argument, value in _pairs(operator.inputs, node.inputs):
        if value is not None and (kind := types.get(value) or _type_of(value)):
            if bound.setdefault(argument.kind, kind) != kind:
                return bound, f"{argument.name} of {kind} beside {argument.kind} of {bound[argument.kind]}"
            bound[argument.name] = kind
    for argument, value in _pairs(operator.outputs, node.outputs):
        if value is None or value.name == "":
            continue
        kind = _type_of(value) or bound.get(argument.kind)
        if kind is not None:
            types[value] = bound[argument.name] = kind
            bound.setdefault(argument.kind, kind)
    return bound, None


def _pairs(
    arguments: Sequence[Argument], values: Sequence[ir.Value | None]
) -> Iterator[tuple[Argument, ir.Value | None]]:
    """Pair values with the arguments that they are given for; the last argument takes all that are left."""
    for index, value in enumerate(values):
        yield arguments[min(index, len(arguments) - 1)], value


def _type_of(value: ir.Value) -> str | None:
    if value.dtype is None:
        return None
    return _NAMES.get(value.dtype, value.dtype.name.lower())


_NAMES = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}


def _short(kind: str) -> str:
    return kind.removeprefix("tensor(").removesuffix(")")


def _takes(alternative: Alternative, bound: Mapping[str, str], provider: str) -> bool:
    # A name that is not bound belongs to an argument that was left out.
    return all(_allowed(bound[name], kinds, provider) for name, kinds in alternative.items() if name in bound)


def _allowed(kind: str, kinds: Sequence[str], provider: str) -> bool:
    # ONNX Runtime computes float16 in float32 where the CPU has no kernel for it, with a Cast before and after.
    return kind in kinds or (kind == "float16" and provider == _CPU and "float" in kinds)


def _spelled(alternatives: Sequence[Alternative]) -> str:
    shown = [", ".join(f"{name} {'/'.join(kinds)}" for name, kinds in sorted(one.items())) for one in alternatives]
    return " or ".join(shown[:3]) + (" or others" if len(shown) > 3 else "")
