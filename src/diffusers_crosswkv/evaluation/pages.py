"""What the pages of all benchmarks have in common: when and from which commit, and what was not run."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .tables import NOT_RUN


def when_and_where_from(rows: Iterable[Mapping[str, Any]]) -> str:
    """First and last date of the rows, and their commits."""
    rows = list(rows)
    dates = sorted({row["date"] for row in rows})
    commits = ", ".join(sorted({row["commit"] or "unknown" for row in rows}))
    return f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}; commit {commits}"


def not_run_sections(commands: Mapping[str, str], paths: Iterable[Path]) -> list[str]:
    """One per device without a file of rows among `paths`; `commands` by device."""
    present = {path.stem for path in paths}
    return [
        f"## {device}\n\n**{NOT_RUN}**. Command: `{command}`."
        for device, command in commands.items()
        if device not in present
    ]


def write_page(folder: Path, parts: Iterable[str]) -> str:
    """Write `README.md` into `folder`; returns it."""
    page = "\n\n".join(parts) + "\n"
    (folder / "README.md").write_text(page, encoding="utf-8")
    return page
