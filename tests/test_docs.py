"""The pages under docs/: their Python runs, their links lead somewhere, and the messages they explain exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
GAP = "…"


def page_id(path):
    return path.stem


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text(encoding="utf-8")], ids=page_id)
def test_the_examples_run(page, make_pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pipeline().save_pretrained("runs/quickstart/pipeline")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, page, "exec"), names)


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert not link.startswith("http"), "pages link to this repository only"
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.name == "README.md" or f"]({page.name})" in index


def messages():
    """Every string of the library, what is filled in replaced by a gap."""
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)


def quoted():
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r'^(?:### |\*\*[\w ]+\.\*\* )"(.*?)"', text, re.MULTILINE)


@pytest.mark.parametrize("message", quoted())
def test_explained_messages_are_those_of_the_library(message):
    pattern = re.compile(".*".join(map(re.escape, message.split(GAP))), re.DOTALL)
    assert any(pattern.search(known) for known in messages()), message


def test_messages_are_explained():
    assert len(quoted()) > 10
