"""One Python file out of several modules: what Diffusers can load as remote code, which must be a single file.

`flatten` starts from one module, follows its imports inside our packages, and writes the modules one behind the other,
each as it stands: comments, docstrings and formatting stay. What changes is what a single file cannot keep:

- imports of our own modules go, those of other libraries move to the top;
- a top-level name that two modules define is renamed in all but the module nearest to the start (`shape_of` of
  `checks.py` becomes `checks_shape_of`);
- an own module that is imported under a guard (`try ... except ImportError`, `suppress(ImportError)`) is left out, and
  the file does what the guarded code does without it;
- a class of ours that only annotations name is not brought along: there its nearest foreign base stands in for it.

Where that cannot be done right it raises, naming the line, instead of writing a file that means something else.
"""

import ast
import builtins
import hashlib
import re
import sys
from collections.abc import Iterator
from functools import lru_cache

from .source_modules import Foreign, Module, Target, bindings, error, global_names, read_module, resolve

LINE_LENGTH = 119
FIRST = "FIRST_DEFINITIONS"
ALWAYS_THERE = {*dir(builtins), "__name__", "__file__", FIRST}
FOOTER = """# Diffusers runs this file again for every checkpoint in a folder, always in one namespace. What was
# defined first stays, so that the U-Nets and prompt states of several checkpoints know each other.
{first} = globals().get("{first}", {{}})
globals().update({first}.setdefault("{digest}", dict(globals())))
"""
HEADER = '''"""{title}

Generated from {package} {version}, to be loaded without it; do not edit. Diffusers loads this file with
`trust_remote_code=True`. With `pip install diffusers-crosswkv` and `import diffusers_crosswkv` no remote code is
needed, and GPUs run Triton kernels, which are not in this file. Licence: Apache-2.0.
"""
'''
Definition = tuple[str, str]  # module and name of a top-level definition of ours
Entity = Definition | Foreign


@lru_cache
def flatten(root: str) -> str:
    """The source of one file with all that the module `root` defines.

    Raises:
        ValueError: a construct cannot be put into one file faithfully; the message names its place.
    """
    modules = in_order(root)
    stand_ins = find_stand_ins(modules)
    flat_names = choose_names(modules, stand_ins)
    parts = [header(read_module(root)), import_block(modules, stand_ins, flat_names)]
    parts += [stand_in_block(stand_ins, flat_names)] if stand_ins else []
    parts += [emit(module, flat_names) for module in modules]
    parts += bases_block(modules, flat_names)
    text = "\n\n".join(part.strip("\n") + "\n" for part in parts)
    check_complete(text, root)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text}\n\n{FOOTER.format(first=FIRST, digest=digest)}"


# Choosing


def targets_of(module: Module, annotations: bool) -> Iterator[Target]:
    """What of ours a module uses, in its code or, with `annotations`, anywhere: attributes of modules resolved."""
    attributes = attribute_of_modules(module)
    for name, in_annotation, *_ in module.names:
        if name.id in module.own and (annotations or not in_annotation):
            target = resolve(*module.own[name.id])
            yield resolve(target.module, attributes[id(name)].attr) if target.attribute is None else target


def attribute_of_modules(module: Module) -> dict[int, ast.Attribute]:
    """`x.f` for every `x` that is a module of ours, by the identity of the node `x`."""
    found = {id(node.value): node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
    for name, *_ in module.names:
        if name.id in module.own and resolve(*module.own[name.id]).attribute is None and id(name) not in found:
            raise error(module, name, f"uses the module `{name.id}` itself; a flat file has only what is in it")
    return found


def in_order(root: str) -> list[Module]:
    """The modules that `root` needs, each behind those that it needs itself, `root` last."""
    needed = [root]
    for name in needed:
        needed += sorted({target.module for target in targets_of(read_module(name), False)} - set(needed))
    ordered: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in ordered or name in path or name not in needed:
            return
        for target in targets_of(read_module(name), True):
            visit(target.module, (*path, name))
        ordered.append(name)

    visit(root, ())
    return [read_module(name) for name in ordered]


def used_foreign(module: Module) -> list[Foreign]:
    used = {name.node.id for name in module.names}
    return [one for name, one in module.foreign.items() if name in used]


def find_stand_ins(modules: list[Module]) -> dict[Definition, Foreign | None]:
    """For what only annotations name: the foreign base class of a class of ours, None if it has none."""
    present = {module.name for module in modules}
    absent = {target for module in modules for target in targets_of(module, True) if target.module not in present}
    stand_ins: dict[Definition, Foreign | None] = {}
    for name, attribute in sorted(absent):  # type: ignore[type-var]
        assert attribute is not None
        home = read_module(name)
        classes = [node for node in home.tree.body if isinstance(node, ast.ClassDef) and node.name == attribute]
        bases = [ast.unparse(base) for node in classes for base in node.bases]
        stand_ins[name, attribute] = next((home.foreign[base] for base in bases if base in home.foreign), None)
    return stand_ins


def choose_names(modules: list[Module], stand_ins: dict[Definition, Foreign | None]) -> dict[Entity, str]:
    """A name of its own for everything at the top level of the flat file."""
    wanted: dict[str, list[Entity]] = {}
    entities: list[Entity] = [one for one in stand_ins.values() if one is not None] + [*stand_ins]
    for module in modules:
        entities += [*used_foreign(module), *((module.name, name) for name in module.defined)]
    for entity in dict.fromkeys(entities):
        wanted.setdefault(entity[-1], []).append(entity)
    chosen: dict[Entity, str] = {}
    for name, rivals in wanted.items():
        keeps = next((one for one in reversed(rivals) if not isinstance(one, Foreign)), rivals[0])
        for one in rivals:
            chosen[one] = name if one == keeps else f"{one[0].rpartition('.')[2]}_{name}"
    names = [*chosen.values(), *ALWAYS_THERE]
    doubled = sorted({name for name in chosen.values() if names.count(name) > 1})
    if doubled:
        raise ValueError(f"Top-level names must differ from each other and from built-in ones, {doubled} do not.")
    return chosen


# Writing


def header(root: Module) -> str:
    package = read_module(root.name.partition(".")[0])
    versions = [
        node.value.value
        for node in package.tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and bindings([node]) == {"__version__"}
    ]
    title = (ast.get_docstring(root.tree) or root.name).partition("\n\n")[0]
    return HEADER.format(title=title, package=package.name, version=versions[0] if versions else "of unknown version")


def import_block(
    modules: list[Module], stand_ins: dict[Definition, Foreign | None], flat_names: dict[Entity, str]
) -> str:
    """The imports of other libraries: the standard library's, then all others."""
    used = {one for module in modules for one in used_foreign(module)} | {one for one in stand_ins.values() if one}
    lines = {f"import {name}" for module in modules for name in module.submodules}
    members: dict[str, list[str]] = {}
    for one in sorted(used, key=str):
        flat = flat_names[one]
        if one.attribute is None:
            lines.add(f"import {one.module}" + ("" if flat == one.module else f" as {flat}"))
        else:
            alias = "" if flat == one.attribute else f" as {flat}"
            members.setdefault(one.module, []).append(one.attribute + alias)
    lines |= {import_line(module, sorted(names)) for module, names in members.items()}

    def is_standard(line: str) -> bool:
        return line.split()[1].partition(".")[0] in sys.stdlib_module_names

    ordered = sorted(lines, key=lambda line: (line.startswith("from"), line.split()[1], line))
    groups = [[line for line in ordered if is_standard(line) is standard] for standard in (True, False)]
    return "\n\n".join("\n".join(group) for group in groups if group)


def import_line(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    return line if len(line) <= LINE_LENGTH else f"from {module} import (\n    " + ",\n    ".join(names) + ",\n)"


def stand_in_block(stand_ins: dict[Definition, Foreign | None], flat_names: dict[Entity, str]) -> str:
    bases = {definition: "object" if base is None else flat_names[base] for definition, base in stand_ins.items()}
    lines = [f"{flat_names[definition]} = {base}" for definition, base in bases.items()]
    return "\n".join(
        ["# Types that only annotations name: what their classes derive from stands in for them.", *lines]
    )


def emit(module: Module, flat_names: dict[Entity, str]) -> str:
    """A module's text with the names of the flat file, without what does not belong there."""
    lines = renamed(module, flat_names)
    for node, names in module.guarded:
        new_names = [flat_names.get((module.name, name), name) for name in names]
        replacement = without_guarded(module, node, new_names, lines)
        lines[node.lineno - 1 : node.end_lineno] = replacement + [None] * (span(node) - len(replacement))
    documentation = module.tree.body[:1] if ast.get_docstring(module.tree) else []
    for gone in [*documentation, *module.removed]:
        check_alone(module, gone)
        lines[gone.lineno - 1 : gone.end_lineno] = [None] * span(gone)
        end = gone.end_lineno or gone.lineno
        while gone in module.tree.body and end < len(lines) and lines[end] == "":
            lines[end] = None
            end += 1
    body = "\n".join(line for line in lines if line is not None).strip("\n")
    rule = "# " + "-" * (LINE_LENGTH - 2)
    path = module.name.replace(".", "/") + ("/__init__.py" if module.is_package else ".py")
    return "\n".join([rule, f"# From {path}", rule, *about(module), "", "", body])


def about(module: Module) -> list[str]:
    """A module's docstring as a comment."""
    return [f"# {line}".rstrip() for line in (ast.get_docstring(module.tree) or "").splitlines()]


def bases_block(modules: list[Module], flat_names: dict[Entity, str]) -> list[str]:
    """Takes away the classes of other modules that those of the last one derive from.

    Of a file without a class name Diffusers takes the pipeline that it finds, and wants to find one.
    """
    pending = [(modules[-1].name, node) for node in modules[-1].tree.body if isinstance(node, ast.ClassDef)]
    bases: list[str] = []
    for home, node in pending:
        module = read_module(home)
        for base in (ast.unparse(base) for base in node.bases):
            target = resolve(*module.own[base]) if base in module.own else Target(home, base)
            found = [one for one in read_module(target.module).tree.body if isinstance(one, ast.ClassDef)]
            pending += [(target.module, one) for one in found if one.name == target.attribute]
            if target.module != modules[-1].name and target in flat_names:
                bases.append(flat_names[target])  # type: ignore[index]
    names = sorted(set(bases))
    return (
        [f"# Only bases here: Diffusers looks for the one pipeline of a file.\ndel {', '.join(names)}"]
        if names
        else []
    )


def check_alone(module: Module, node: ast.stmt) -> None:
    lines = module.source.encode().split(b"\n")
    around = lines[node.lineno - 1][: node.col_offset] + lines[(node.end_lineno or 0) - 1][node.end_col_offset or 0 :]
    if around.partition(b"#")[0].strip():
        raise error(module, node, "must stand on lines of its own, for it is taken out")


def span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def without_guarded(
    module: Module, node: ast.With | ast.Try, names: list[str], lines: list[str | None]
) -> list[str | None]:
    """What a guarded import does where the module is missing: what its handler says, or nothing."""
    if isinstance(node, ast.With):
        lines_instead = [
            "# Left out of this file; nothing below is reached that needs them.",
            f"{' = '.join(names)} = None",
        ]
        return [" " * node.col_offset + line for line in lines_instead]
    if node.finalbody:
        raise error(module, node, "must have no `finally`")
    first, last = node.handlers[0].body[0], node.handlers[0].body[-1]
    indent = first.col_offset - node.col_offset
    kept = lines[first.lineno - 1 : last.end_lineno]
    if any(line and line[:indent].strip() for line in kept):
        raise error(module, first, "must hold no string that goes over several lines")
    return [line and line[indent:] for line in kept]


def renamed(module: Module, flat_names: dict[Entity, str]) -> list[str | None]:
    """The module's lines with every global name replaced by that of the flat file."""
    lines = [line.encode() for line in module.source.split("\n")]
    edits = [*edits_of_names(module, flat_names), *edits_of_definitions(module, lines, flat_names)]
    for line, column, old, new in sorted(edits, reverse=True):
        text, length = lines[line - 1], len(old.encode())
        if text[column : column + length] != old.encode():
            raise ValueError(
                f"{module.name}, line {line}: `{old}` must be `{new}` in one file, but stands in a string."
            )
        lines[line - 1] = text[:column] + new.encode() + text[column + length :]
    shared = {name for node in ast.walk(module.tree) if isinstance(node, ast.Global) for name in node.names}
    moved = sorted(name for name in shared if flat_names.get((module.name, name), name) != name)
    if moved:
        raise ValueError(f"{module.name}: `global` must not name {moved}, which need other names in one file.")
    return [line.decode() for line in lines]


def edits_of_names(module: Module, flat_names: dict[Entity, str]) -> Iterator[tuple[int, int, str, str]]:
    """Line, column, old and new text of every global name that changes."""
    attributes = attribute_of_modules(module)
    for name, _, hidden, in_class in module.names:
        node: ast.expr = name
        entity: Entity = (module.name, name.id)
        if name.id in module.own:
            target = resolve(*module.own[name.id])
            if target.attribute is None:
                node = attributes[id(name)]
                target = resolve(target.module, attributes[id(name)].attr)
            entity = target  # type: ignore[assignment]
        elif name.id in module.foreign:
            entity = module.foreign[name.id]
        old = ast.unparse(node)
        new = flat_names.get(entity, old)
        if new != old and in_class:
            raise error(module, name, f"must not use `{old}` in a class that has one too: in one file it is `{new}`")
        if new != old and new in hidden:
            raise error(module, name, f"must not call something local `{new}`, as `{old}` is called in one file")
        if new != old:
            yield node.lineno, node.col_offset, old, new


def edits_of_definitions(
    module: Module, lines: list[bytes], flat_names: dict[Entity, str]
) -> Iterator[tuple[int, int, str, str]]:
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            before = re.match(rb".*?\b(def|class)\s+", lines[node.lineno - 1])
            new = flat_names[module.name, node.name]
            if before is not None and new != node.name:
                yield node.lineno, before.end(), node.name, new


def check_complete(text: str, root: str) -> None:
    """Nothing undefined, and nothing that Diffusers would take for a second file."""
    tree = ast.parse(text)
    shared = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    used = {name.node.id for name in global_names(tree, set()) if not name.in_class}
    missing = sorted(used - bindings(tree.body) - shared - ALWAYS_THERE)
    deleted = bindings([node for node in tree.body if isinstance(node, ast.Delete)])
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {node.id for body in bodies for part in body for node in ast.walk(part) if isinstance(node, ast.Name)}
    missing += sorted(deleted & late)
    if missing:
        raise ValueError(f"Flattening {root} must leave nothing undefined, but leaves {missing}.")
    relative = re.findall(r"^\s*(?:import\s+|from\s+)\.\S*", text, flags=re.MULTILINE)
    if relative:
        raise ValueError(f"A flat file must import nothing relatively, but {root} has {relative[0].strip()!r}.")
