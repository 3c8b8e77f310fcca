"""Several modules as one file that means the same."""

import ast
import importlib
import sys

import pytest

from diffusers_crosswkv.remote_code import flatten, source_modules

count = iter(range(1000))


@pytest.fixture
def make_package(tmp_path, monkeypatch):
    """Write a package of our own with a name that no other test has, and return that name."""

    def make(**files):
        name = f"flat_test_{next(count)}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("__version__ = '1.2'\n")
        for stem, text in files.items():
            (tmp_path / name / f"{stem}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(source_modules, "PACKAGES", (name,))
        return name

    yield make
    for module in [module for module in sys.modules if module.startswith("flat_test_")]:
        del sys.modules[module]


def run_flat(module):
    """The namespace of the flat file, executed where none of its sources can be imported."""
    text = flatten(module)
    for name in [name for name in sys.modules if name.startswith("flat_test_")]:
        del sys.modules[name]
    namespace = {"__name__": "flat"}
    exec(compile(text, "flat.py", "exec"), namespace)
    return namespace, text


def test_modules_stand_behind_each_other_as_they_are_written(make_package):
    name = make_package(
        low='"""Low things."""\n\nimport math\n\n\ndef half(x):  # a comment\n    """Half of it."""\n'
        "    return math.fabs(x) / 2\n",
        high='"""High things.\n\nMore."""\n\nimport math\n\nfrom .low import half\n\n\n'
        "def f(x):\n    return half(math.floor(x))\n",
    )
    flat, text = run_flat(f"{name}.high")
    assert flat["f"](5.5) == 2.5
    assert text.count("import math\n") == 1
    assert 'def half(x):  # a comment\n    """Half of it."""' in text
    assert text.index("Low things.") < text.index("def half") < text.index("def f")
    assert ast.get_docstring(ast.parse(text)).startswith(f"High things.\n\nGenerated from {name} 1.2")


def test_names_that_two_modules_define_are_told_apart(make_package):
    low = (
        "SCALE = 2\n\n\ndef f(x, SCALE=SCALE):\n    def g(f):\n        return f * SCALE\n\n    return g(x)\n\n\n"
        "def twice(x):\n    global CALLS\n    CALLS = [f(x) for f in (f, f)]\n    return CALLS\n\n\n"
        "class Low:\n    SCALE = 3\n\n    def f(self) -> int:\n        return f(SCALE)\n"
    )
    high = (
        "from . import low\nfrom .low import f as low_f, Low, twice as pair\n\nSCALE = 10\n\n\ndef g(pair):\n"
        "    return pair\n\n\ndef f(x):\n"
        "    return [SCALE, low.f(x), low_f(x, SCALE=3), low.SCALE, Low.SCALE, Low().f(), pair(4), g(1)]\n"
    )
    name = make_package(low=low, high=high)
    expected = importlib.import_module(f"{name}.high").f(5)
    flat, text = run_flat(f"{name}.high")
    assert flat["f"](5) == expected == [10, 10, 15, 2, 3, 4, [8, 8], 1]
    assert "def low_f(x, SCALE=low_SCALE):" in text
    assert "low_f(x, SCALE=3)" in text  # a keyword keeps its name
    assert flat["Low"].SCALE == 3


def test_imports_through_packages_with_aliases_and_in_functions(make_package):
    name = make_package(
        a="def one():\n    return 1\n",
        b="from .a import one as uno\n\n\ndef two():\n    return uno() + uno()\n",
        c="def lazy():\n    from .b import two as zwei\n\n    return zwei()\n",
    )
    init = sys.path[0] + f"/{name}/__init__.py"
    with open(init, "a") as file:
        file.write("from .b import two\n")
    with open(init.replace("__init__", "d"), "w") as file:
        file.write(
            f"from {name} import two as deux\nfrom .c import lazy\n\n\ndef four():\n    return deux() + lazy()\n"
        )
    flat, text = run_flat(f"{name}.d")
    assert flat["four"]() == 4
    assert "uno" not in text.replace("one as uno", "") and "deux" not in text and "zwei" not in text


@pytest.mark.parametrize(
    "guarded",
    [
        "from contextlib import suppress\n\nwith suppress(ImportError):  # may be missing\n    from . import fast\n",
        "try:\n    from . import fast\nexcept ImportError:  # may be missing\n    fast = None\n",
    ],
)
def test_guarded_imports_are_left_out(make_package, guarded):
    name = make_package(
        fast="def f():\n    return 'fast'\n", top=guarded + "\n\ndef f():\n    return fast and fast.f()\n"
    )
    flat, text = run_flat(f"{name}.top")
    assert flat["f"]() is None
    assert "'fast'" not in text and "suppress" not in text


def test_a_guard_in_a_function_leaves_what_its_handler_does(make_package):
    top = (
        "def f(x):\n    try:\n        from .fast import g\n    except ImportError:\n        # the slow way\n"
        "        y = x + 1\n        return y\n    else:\n        return g(x)\n"
    )
    name = make_package(fast="def g(x):\n    return 0\n", top=top)
    flat, text = run_flat(f"{name}.top")
    assert flat["f"](1) == 2
    assert "try" not in text


def test_what_only_annotations_name_is_not_brought_along(make_package):
    name = make_package(
        model="from fractions import Fraction\n\n\nclass Model(Fraction):\n    pass\n\n\nclass State:\n    pass\n",
        use="from .model import Model, State\n\n\n"
        "def f(x: Model | None, y: 'State | None' = None) -> list[State]:\n    return [x, y]\n",
    )
    flat, text = run_flat(f"{name}.use")
    assert flat["f"](1) == [1, None]
    assert "class Model" not in text
    assert "Model = Fraction\nState = object\n" in text


def test_run_again_in_one_namespace_it_defines_nothing_new(make_package):
    name = make_package(top="class C:\n    def make(self):\n        return C()\n")
    flat, text = run_flat(f"{name}.top")
    first = flat["C"]
    exec(compile(text, "flat.py", "exec"), flat)
    assert flat["C"] is first
    other = make_package(top="class C:\n    pass\n")
    exec(compile(flatten(f"{other}.top"), "flat.py", "exec"), flat)
    assert flat["C"] is not first  # another file is another thing


def test_only_the_start_defines_what_can_be_found(make_package):
    name = make_package(
        low="class Base:\n    def f(self):\n        return 'low'\n\n\nclass Other:\n    pass\n",
        middle="from .low import Base, Other\n\n\nclass Middle(Base):\n    other = Other\n",
        top="from .middle import Middle\n\n\nclass Top(Middle):\n    def f(self):\n"
        "        return super().f() + self.g()\n\n    def g(self):\n        return 'top'\n",
    )
    flat, _ = run_flat(f"{name}.top")
    assert flat["Top"]().f() == "lowtop"
    assert {key for key, value in flat.items() if isinstance(value, type)} == {"Top", "Other"}


def test_imports_of_one_name_from_two_libraries(make_package):
    name = make_package(
        low="import os.path\nfrom math import floor as cut\n\n\ndef f(x):\n    return cut(x), os.path.sep\n",
        high="import os\nfrom math import ceil as cut\n\nfrom .low import f\n\n\n"
        "def g(x):\n    return f(x), cut(x), os.sep\n",
    )
    expected = importlib.import_module(f"{name}.high").g(1.5)
    assert run_flat(f"{name}.high")[0]["g"](1.5) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"top": "from .low import *\n", "low": "x = 1\n"}, "top, line 1: must name what it imports"),
        ({"top": "from . import low\nprint(low)\n", "low": "x = 1\n"}, "top, line 2: uses the module `low` itself"),
        ({"top": "from .low import gone\n\ny = gone\n", "low": "x = 1\n"}, "`gone` must be defined in"),
        ({"top": "y = x\n"}, r"leaves \['x'\]"),
        ({"top": "print = 1\n"}, r"differ from each other and from built-in ones, \['print'\]"),
        ({"top": "x = 1; from .low import y\nz = y\n", "low": "y = 1\n"}, "must stand on lines of its own"),
        (
            {"top": "from .low import f as g\n\n\ndef h(f):\n    return g(f)\n", "low": "def f(x):\n    return x\n"},
            "must not call something local `f`, as `g` is called in one file",
        ),
        (
            {"top": "from .low import C\n\nx = 1\ny = C\n", "low": "x = 2\n\n\nclass C:\n    y: 'x' = x\n"},
            "`x` must be `low_x` in one file, but stands in a string",
        ),
        (
            {"top": "from .low import f\n\nx = f\n", "low": "x = 2\n\n\ndef f():\n    global x\n    x = 3\n"},
            r"`global` must not name \['x'\]",
        ),
        ({"top": "from .low import x\n\nx = x\n", "low": "x = 2\n"}, r"mean one thing each, \['x'\]"),
        (
            {
                "top": "from .low import C\n\n\nclass D(C):\n    pass\n",
                "low": "class C:\n    def f(self):\n        C\n",
            },
            r"must leave nothing undefined, but leaves \['C'\]",
        ),
        (
            {"top": "from .low import C\n\nx = C\n", "low": "x = 2\n\n\nclass C:\n    x = x + 1\n"},
            "must not use `x` in a class that has one too",
        ),
    ],
)
def test_what_cannot_be_one_file_is_refused(make_package, files, message):
    name = make_package(**files)
    with pytest.raises(ValueError, match=message):
        flatten(f"{name}.top")
