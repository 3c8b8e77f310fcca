"""Who may import whom: the order of the rooms, read from the imports themselves."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/diffusers_crosswkv"
FLOORS = {
    "files": 0,
    "host_memory": 0,
    "remote_code": 0,
    "presets": 1,
    "data": 1,
    "environment": 1,
    "models": 2,
    "pipelines": 3,
    "training": 3,
    "conversion": 3,
    "evaluation": 3,
    "sequences": 3,
    "hub": 4,
    "othello": 4,
    "generation": 4,
    "app": 5,
    "alignment": 4,
    "state_tracking": 4,
    "efficiency": 4,
    "quickstart": 5,
    "finetuning": 5,
    "robustness": 6,
    "registration": 4,
}


def imports(path):
    """Absolute names of what a file of the package imports."""
    package = ("diffusers_crosswkv", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(name):
    return name.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_downwards(path):
    if path == PACKAGE / "__init__.py":
        return
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        assert not name.startswith(("scripts", "tests"))
        if name.startswith("diffusers_crosswkv."):
            other = room_of(name)
            assert other == room or FLOORS[other] < FLOORS[room], f"{room} imports {name}"


def test_kernels_import_torch_and_triton_only():
    allowed = {"torch", "triton", *sys.stdlib_module_names}  # what a Triton kernel of the Kernel Hub may import
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed


def test_kernels_folder_does_not_shadow_the_kernels_library():
    assert not (ROOT / "kernels/__init__.py").exists()
    assert not list((ROOT / "kernels").glob("*.py"))


def test_nobody_imports_scripts():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        assert "import scripts" not in path.read_text(encoding="utf-8")


def test_no_pickle():
    """A third party's weights may come in torch's format: then with weights_only=True, which builds tensors alone."""
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        unsafe = r"\bpickle\b|(?<!safetensors\.)\btorch\.(save|load)\((?!.*\bweights_only=True\))"
        assert not re.search(unsafe, text), path
