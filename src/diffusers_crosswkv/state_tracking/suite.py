"""All trainings of the state tracking benchmark, which of them are done, and how to run the others."""

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..files import read_json_lines, write_json_lines
from .automata import TASKS
from .cells import ARMS, Cell, Row, Setup, run_cell, setup_of

LAYERS = (1, 2, 4)
SEEDS = (0, 1, 2)
ROWS = "rows.jsonl"
ONE_UPDATE = ("s5_swaps", "parity", "even_pairs")  # a rotation is two reflections


def cells_of(
    tasks: Sequence[str] = tuple(TASKS),
    arms: Sequence[str] = tuple(ARMS),
    layers: Sequence[int] = LAYERS,
    seeds: Sequence[int] = SEEDS,
) -> list[Cell]:
    """Every combination; all arms of a task come before the next task, all tasks of a seed before the next seed.

    Several updates per token are left out where a token swaps two things at most, or forgets.
    """
    cells = [Cell(t, a, n, seed) for seed in seeds for t in tasks for n in layers for a in arms]
    return [cell for cell in cells if cell.task not in ONE_UPDATE or "updates" not in ARMS[cell.arm]]


def run_suite(
    path: Path, cells: Sequence[Cell], jobs: int = 1, setup_of: Callable[[Cell], Setup] = setup_of
) -> list[Row]:
    """Run the cells that have no row in `path` yet, `jobs` at a time, one CPU thread each; returns all rows of `path`.

    Every finished cell is written at once: an interrupted run loses the trainings under way, and goes on with them.

    Raises:
        ValueError: `jobs` is below 1.
        FloatingPointError: a loss is no longer finite.
    """
    if jobs < 1:
        raise ValueError(f"`jobs` must be at least 1, got {jobs}.")
    rows = read_json_lines(path)
    missing = [(cell, setup_of(cell)) for cell in cells if not is_done(rows, cell, setup_of(cell))]
    with tqdm(total=len(cells), initial=len(cells) - len(missing), desc="trainings", unit="training") as bar:
        for row in finished(missing, jobs):
            rows = put(path, row)
            bar.update()
    return rows


def finished(cells: Sequence[tuple[Cell, Setup]], jobs: int) -> Iterator[Row]:
    """The rows of the cells, as they come."""
    if jobs == 1:
        yield from (run_cell(cell, setup) for cell, setup in cells)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of torch's threads
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            waiting = [pool.submit(run_cell, cell, setup, progress=False) for cell, setup in cells]
            yield from (done.result() for done in as_completed(waiting))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def is_done(rows: Sequence[Row], cell: Cell, setup: Setup) -> bool:
    """Whether a row was made by this cell with the same setup."""
    return any(cell_of(row) == cell and row["setup"] == dataclasses.asdict(setup) for row in rows)


def cell_of(row: Row) -> Cell:
    return Cell(**{field.name: row[field.name] for field in dataclasses.fields(Cell)})


def put(path: Path, row: Row) -> list[Row]:
    """Add a row, in the place of an older one of the same cell; the file is written whole. Returns all rows."""
    rows = [other for other in read_json_lines(path) if cell_of(other) != cell_of(row)] + [row]
    write_json_lines(path, rows)
    return rows
