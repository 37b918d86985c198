"""The code that a result depends on, so that data are made anew when it changes, and only then."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from types import ModuleType


def reached_code(starts: Iterable[str], modules: Iterable[ModuleType]) -> str:
    """Everything at the top of some modules that functions mention, directly or through others.

    Comments, docstrings, annotations, layout, and what is raised are left out: they change no result. A name
    counts wherever it stands, so the code may be too much and is never too little, as long as all modules
    that compute are given.

    Args:
        starts: names of functions.
        modules: where they and what they use are defined; names are taken to mean the same in all.
    """
    known: dict[str, list[ast.AST]] = {}
    for module in modules:
        for node in ast.parse(inspect.getsource(module)).body:
            for name in _defined(node):
                known.setdefault(name, []).append(_Bare().visit(node))
    reached: dict[str, str] = {}
    todo = list(starts)
    while todo:
        name = todo.pop()
        if name not in reached and name in known:
            reached[name] = "\n".join(map(ast.unparse, known[name]))
            todo += [mentioned for node in known[name] for mentioned in _mentioned(node)]
    return "\n".join(reached[name] for name in sorted(reached))


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname for alias in node.names if alias.asname)
    else:
        yield from (part.id for part in ast.walk(node) if isinstance(part, ast.Name))


def _mentioned(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.alias):
            yield part.name


class _Bare(ast.NodeTransformer):
    """Takes away what changes no result."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            argument.annotation = None
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._without_docstring(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()

    def _without_docstring(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)
