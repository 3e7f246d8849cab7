"""The reference of the Python interface, from signatures and docstrings; nothing is imported."""

import ast
import textwrap
from pathlib import Path

from plain import paragraphs

ROOT = Path(__file__).parents[2]
LINE = 88  # characters of a signature on one line


def source(module: str) -> Path:
    """The file of a module."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def signature(node: ast.FunctionDef, name: str) -> str:
    """The call of a function or method, as it is written in the source."""
    arguments = node.args
    bound = [*arguments.posonlyargs, *arguments.args]
    if bound and bound[0].arg in ("self", "cls"):
        arguments = ast.arguments(
            [], bound[1:], arguments.vararg, arguments.kwonlyargs, arguments.kw_defaults,
            arguments.kwarg, arguments.defaults,
        )  # fmt: skip
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({ast.unparse(arguments)}){returns}"
    if len(line) <= LINE:
        return line
    parts = [ast.unparse(ast.arguments([], [a], None, [], [], None, [])) for a in arguments.args]
    first = len(parts) - len(arguments.defaults)
    for place, default in enumerate(arguments.defaults, first):
        parts[place] += f" = {ast.unparse(default)}"
    if arguments.vararg:
        parts.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        parts.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parts.append(ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else ""))
    if arguments.kwarg:
        parts.append(f"**{ast.unparse(arguments.kwarg)}")
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def fields(node: ast.ClassDef) -> list[str]:
    """The fields of a dataclass, in its own words."""
    data = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return [ast.unparse(line) for line in node.body if data and isinstance(line, ast.AnnAssign)]


def documented(nodes: list[ast.stmt]) -> list[ast.FunctionDef]:
    """The public functions with a docstring."""
    return [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node)
    ]


def function(node: ast.FunctionDef) -> str:
    """The section of a function."""
    text = paragraphs(ast.get_docstring(node) or "")
    return f"### {node.name}\n\n```python\n{signature(node, node.name)}\n```\n\n{text}"


def method(node: ast.FunctionDef) -> str:
    """The entry of a method or property in the list of its class."""
    is_property = any("property" in ast.unparse(mark) for mark in node.decorator_list)
    call = " ".join(signature(node, node.name).split()).replace("( ", "(").replace(", )", ")")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    term = f"{node.name}{returns}" if is_property else call
    text = textwrap.indent(paragraphs(ast.get_docstring(node) or ""), "  ").lstrip()
    return f"`{term}`\n: {text}"


def klass(node: ast.ClassDef) -> str:
    """The section of a class: how it is made, what it is, and its methods."""
    made = next(
        (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    head = [f"class {node.name}({bases})" if bases else f"class {node.name}"]
    if made:
        head.append(signature(made, node.name).removesuffix(" -> None"))
    head += fields(node)
    calls = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__call__"]
    parts = [f"### {node.name}", "```python\n" + "\n".join(head) + "\n```"]
    parts.append(paragraphs(ast.get_docstring(node) or ""))
    parts += [method(n) for n in calls if ast.get_docstring(n)]
    parts += [method(n) for n in documented(node.body)]
    return "\n\n".join(part for part in parts if part)


def module(name: str) -> str:
    """The section of a module: its docstring, then its public classes and functions."""
    body = ast.parse(source(name).read_text("utf-8"))
    parts = [f"## {name}", paragraphs(ast.get_docstring(body) or "")]
    for node in body.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            parts.append(klass(node))
        elif node in documented(body.body) and isinstance(node, ast.FunctionDef):
            parts.append(function(node))
    return "\n\n".join(parts)
