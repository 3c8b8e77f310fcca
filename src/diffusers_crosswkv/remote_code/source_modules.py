"""Modules of ours as text: what they import, what they define, and which of their names mean something global."""

import ast
import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

PACKAGES = ("diffusers_crosswkv", "crosswkv_kernels")
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


class Target(NamedTuple):
    """What an import of ours names: an attribute of a module; once resolved, None stands for the module itself."""

    module: str
    attribute: str | None


class Foreign(NamedTuple):
    """What another library gives: a module, or an attribute of one, and its name where it is imported."""

    module: str
    attribute: str | None
    name: str


class GlobalName(NamedTuple):
    """A name that stands for something of the module's top level."""

    node: ast.Name
    in_annotation: bool
    hidden: frozenset[str]  # names that mean something local at this place
    in_class: bool = False  # the class body around binds the name too: which is meant depends on the order


@dataclass
class Module:
    """A module of ours, read but not run."""

    name: str
    is_package: bool
    source: str
    tree: ast.Module
    own: dict[str, Target] = field(default_factory=dict)  # local name -> where it is imported from
    foreign: dict[str, Foreign] = field(default_factory=dict)
    submodules: list[str] = field(default_factory=list)  # of `import a.b`, which binds `a`
    defined: list[str] = field(default_factory=list)
    removed: list[ast.stmt] = field(default_factory=list)
    guarded: list[tuple[ast.With | ast.Try, list[str]]] = field(default_factory=list)
    names: list[GlobalName] = field(default_factory=list)


@lru_cache
def read_module(name: str) -> Module:
    """Read a module's source and sort out its statements.

    Raises:
        ValueError: there is no source, or it does what a flat file cannot.
    """
    spec = importlib.util.find_spec(name)
    source = spec.loader.get_source(name) if spec and spec.loader else None  # type: ignore[attr-defined]
    if spec is None or source is None:
        raise ValueError(f"The source of {name} must be at hand, and is not: is the package installed from a wheel?")
    module = Module(name, spec.submodule_search_locations is not None, source, ast.parse(source))
    for statement in module.tree.body:
        read_statement(module, statement)
    nested = [node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom | ast.With | ast.Try)]
    for node in nested:
        if isinstance(node, ast.With | ast.Try) and node not in module.tree.body:
            read_guard(module, node)
    kept_out = {id(inner) for node, _ in module.guarded for part in left_out_parts(node) for inner in ast.walk(part)}
    for node in nested:
        if isinstance(node, ast.ImportFrom) and id(node) not in kept_out and node not in module.removed:
            read_import(module, node)
    shared = [name for node in ast.walk(module.tree) if isinstance(node, ast.Global) for name in node.names]
    module.defined += [name for name in dict.fromkeys(shared) if name not in module.defined]
    kept_out |= {id(inner) for node in module.removed for inner in ast.walk(node)}
    module.names = [one for one in global_names(module.tree, set(module.own)) if id(one.node) not in kept_out]
    twice = sorted(
        module.own.keys() & {*module.defined, *module.foreign} | module.foreign.keys() & set(module.defined)
    )
    if twice:
        raise ValueError(f"{name}: top-level names must mean one thing each, {twice} are imported and defined.")
    return module


def read_statement(module: Module, statement: ast.stmt) -> None:
    """What a top-level statement binds, and whether it stays."""
    if isinstance(statement, ast.Import):
        module.removed.append(statement)
        for alias in statement.names:
            imported = alias.name if alias.asname else alias.name.partition(".")[0]
            local = alias.asname or imported
            module.foreign[local] = Foreign(imported, None, local)
            module.submodules += [alias.name] if alias.name != imported else []
    elif isinstance(statement, ast.ImportFrom):
        read_import(module, statement, at_top=True)
    elif isinstance(statement, ast.With | ast.Try) and read_guard(module, statement):
        pass
    elif isinstance(statement, ast.If) and ast.unparse(statement.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for inner in statement.body:
            read_statement(module, inner)
        module.removed.append(statement)
    else:
        bound = [name for name in bindings([statement]) if name != "__all__"]
        module.defined += [name for name in bound if name not in module.defined]
        if bindings([statement]) == {"__all__"}:
            module.removed.append(statement)


def read_import(module: Module, statement: ast.ImportFrom, at_top: bool = False) -> None:
    """`from ... import ...`, at the top or, of our own, in a function."""
    source = absolute(module, statement)
    own = source.partition(".")[0] in PACKAGES
    if not own and not at_top:
        return
    if any(alias.name == "*" for alias in statement.names) or source == "__future__":
        raise error(module, statement, "must name what it imports, from a module that a flat file can import")
    module.removed.append(statement)
    for alias in statement.names:
        local = alias.asname or alias.name
        if not own:
            module.foreign[local] = Foreign(source, alias.name, local)
            continue
        target = Target(source, alias.name)
        if module.own.setdefault(local, target) != target or (not at_top and local in module.defined):
            raise error(module, statement, f"must not give `{local}` a second meaning; choose another name")


def read_guard(module: Module, node: ast.With | ast.Try) -> bool:
    """Whether `node` guards imports of ours against ImportError, and nothing else."""
    imports = [stmt for stmt in node.body if isinstance(stmt, ast.ImportFrom)]
    own = [stmt for stmt in imports if absolute(module, stmt).partition(".")[0] in PACKAGES]
    if isinstance(node, ast.With):
        guard = [ast.unparse(item.context_expr) for item in node.items] == ["suppress(ImportError)"]
    else:
        guard = [ast.unparse(h.type) if h.type else "" for h in node.handlers] == ["ImportError"]
    if not own or not guard:
        return False
    if own != node.body:
        raise error(module, node, "must guard imports of our own modules alone")
    names = [alias.asname or alias.name for stmt in own for alias in stmt.names]
    module.guarded.append((node, names))
    if node in module.tree.body:
        module.defined += names
    return True


def left_out_parts(node: ast.With | ast.Try) -> list[ast.AST]:
    """All of a guarded import but what its handler does, which stays."""
    if isinstance(node, ast.With):
        return [node]
    return [*node.body, *node.orelse, *(handler.type for handler in node.handlers if handler.type)]


def absolute(module: Module, statement: ast.ImportFrom) -> str:
    package = module.name.split(".")
    if statement.level:
        package = package[: len(package) + module.is_package - statement.level]
        return ".".join([*package, statement.module] if statement.module else package)
    return statement.module or ""


def resolve(module_name: str, attribute: str | None) -> Target:
    """Where `from module_name import attribute` comes from, through the packages that pass it on."""
    module = read_module(module_name)
    if attribute in module.own:
        return resolve(*module.own[attribute])
    if attribute in module.defined:
        return Target(module_name, attribute)
    if module.is_package and importlib.util.find_spec(f"{module_name}.{attribute}"):
        return Target(f"{module_name}.{attribute}", None)
    raise ValueError(f"`{attribute}` must be defined in {module_name} or imported there from a module of ours.")


def bindings(nodes: list[ast.stmt]) -> set[str]:
    """Names that statements bind in their own scope, not in functions, classes and comprehensions inside."""
    found: set[str] = set()
    pending: list[ast.AST] = list(nodes)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
        if isinstance(node, Comprehension):
            pending += [part.target for part in ast.walk(node) if isinstance(part, ast.NamedExpr)]
        elif not isinstance(node, ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return found


def global_names(tree: ast.Module, own: set[str]) -> list[GlobalName]:
    """All names that mean something of the top level, those in quoted annotations too.

    Names in `own` do, even if a function imports them itself.
    """
    found: list[GlobalName] = []

    def walk(node: ast.AST, outer: frozenset[str], inner: frozenset[str], annotation: bool = False) -> None:
        # outer: local names of the functions around; inner: those and the names of the class body around, if any
        if isinstance(node, ast.Name):
            in_class = node.id in inner - outer
            if node.id not in inner or (in_class and isinstance(node.ctx, ast.Load)):
                found.append(GlobalName(node, annotation, inner, in_class))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and annotation:
            found.extend(GlobalName(name, True, inner) for name in quoted_names(node))
        elif isinstance(node, Function):
            body = node.body if isinstance(node.body, list) else [node.body]
            for child in ast.iter_child_nodes(node):
                if child not in body and child is not node.args:
                    walk(child, outer, inner, child is getattr(node, "returns", None))
            for part in ast.iter_child_nodes(node.args):
                walk(part, outer, inner)
            bound = outer - shared_names(node) | local_names(node, own)
            for child in body:
                walk(child, bound, bound)
        elif isinstance(node, ast.ClassDef):
            for child in ast.iter_child_nodes(node):
                walk(child, outer, outer | bindings(node.body) if child in node.body else inner)
        elif isinstance(node, Comprehension):
            targets, first = target_names(node), node.generators[0]
            walk(first.iter, outer, inner)  # in the scope around
            inside = [child for child in ast.iter_child_nodes(node) if child is not first]
            for child in [*inside, first.target, *first.ifs]:
                walk(child, outer | targets, inner | targets)
        else:
            of_annotation = getattr(node, "annotation", None)
            literal = isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal")
            for child in ast.iter_child_nodes(node):
                walk(child, outer, inner, (annotation or child is of_annotation) and not literal)

    walk(tree, frozenset(), frozenset())
    return found


def target_names(comprehension: Comprehension) -> set[str]:
    parts = [part for generator in comprehension.generators for part in ast.walk(generator.target)]
    return {part.id for part in parts if isinstance(part, ast.Name)}


def local_names(function: Function, own: set[str]) -> set[str]:
    """Arguments and what the body binds, but not what it imports of ours."""
    arguments = {part.arg for part in ast.iter_child_nodes(function.args) if isinstance(part, ast.arg)}
    imports = [part for part in ast.walk(function) if isinstance(part, ast.ImportFrom)]
    imported = {alias.asname or alias.name for part in imports for alias in part.names} & own
    body = bindings(function.body) if isinstance(function.body, list) else set()
    return (arguments | body - imported) - shared_names(function)


def shared_names(function: Function) -> set[str]:
    """Names that a function declares global."""
    return {name for part in ast.walk(function) if isinstance(part, ast.Global) for name in part.names}


def quoted_names(quoted: ast.Constant) -> list[ast.Name]:
    """The names in an annotation like `"PromptState | None"`, as if each began where the string does."""
    try:
        names = [node for node in ast.walk(ast.parse(str(quoted.value))) if isinstance(node, ast.Name)]
    except SyntaxError:
        return []
    return [ast.copy_location(name, quoted) for name in names]


def error(module: Module, node: ast.AST, requirement: str) -> ValueError:
    return ValueError(f"{module.name}, line {getattr(node, 'lineno', '?')}: {requirement}.")
