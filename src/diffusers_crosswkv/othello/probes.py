"""Whether the board can be read, by one linear map, from what a model holds: residual stream or matrix state.

Three classes per square, seen by the side to move: empty, mine, theirs, as in Nanda et al. (arXiv:2309.00941). The
same probe on a model with its random first weights is the control: a random state keeps much of what was played.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..evaluation.alignment import Mean, bootstrap
from . import rules
from .games import Games, random_games
from .lessons import PROBED, tokens_of
from .rules import MOST_MOVES, NONE
from .training import MoveModel

CLASSES = 3
POSITIONS = 8  # of each game, at random
BATCH = 32
PROBE_BATCH, PROBE_EPOCHS, PROBE_RATE = 512, 30, 5e-3
PROBE_DECAYS, PROBE_VALIDATED = (0.01, 1.0, 10.0), 0.2  # of the weights; share of the games that chooses among them
NO_PROBE = "majority"


@dataclass(frozen=True)
class Positions:
    """`POSITIONS` moments of each game.

    Args:
        games: the games' moves.
        when: `[N, POSITIONS]`, the number of moves made.
        labels: `[N, POSITIONS, 64]`: 0 empty, 1 of the side to move, 2 of the other.
    """

    games: Games
    when: np.ndarray
    labels: torch.Tensor


@dataclass(frozen=True)
class Reading:
    """Accuracy on positions of other games: over all squares, and over squares with a disc."""

    squares: Mean
    discs: Mean


def positions(count: int, part: int) -> Positions:
    """Of `count` games of random play; each `part` has games of its own."""
    games = random_games(count, (PROBED, part))
    length = (games.moves != NONE).sum(axis=1)
    rng = np.random.default_rng((PROBED, part, 1))
    when = (rng.random((count, POSITIONS)) * length[:, None]).astype(int)  # something is still to be played
    boards = np.stack([rules.unpack(b.own) + 2 * rules.unpack(b.other) for b in games.boards], axis=1)
    labels = np.take_along_axis(boards, when[..., None], axis=1)
    return Positions(games, when, torch.from_numpy(labels).long())


def features(model: MoveModel, where: Positions) -> dict[str, torch.Tensor]:
    """Float16 `[N * POSITIONS, features]` by the name of the place."""
    parts: dict[str, list[torch.Tensor]] = {}
    tokens, when = tokens_of(where.games.moves), torch.from_numpy(where.when)
    for i in range(0, len(tokens), BATCH):
        chosen = when[i : i + BATCH]
        trace = model.trace(tokens[i : i + BATCH].to(model.device))
        game = torch.arange(len(chosen))[:, None]
        places = {f"layer {n}": x for n, x in enumerate(trace.hidden)}
        places |= {f"state {n}": x for n, x in enumerate(trace.states, start=1)}
        for name, x in places.items():
            parts.setdefault(name, []).append(x[game, chosen].flatten(0, 1).flatten(1).half().cpu())
    return {name: torch.cat(x) for name, x in parts.items()}


def read_boards(model: MoveModel, train: Positions, test: Positions, seed: int = 0) -> dict[str, Reading]:
    """A probe per place, fitted on the positions of `train`, measured on those of `test`."""
    known, asked = features(model, train), features(model, test)
    return {name: reading(fit_probe(known[name], train.labels, asked[name], seed), test) for name in known}


def fit_probe(known: torch.Tensor, labels: torch.Tensor, asked: torch.Tensor, seed: int) -> torch.Tensor:
    """Logistic regression on standardised features; returns the classes of `asked`, `[N * POSITIONS, 64]`.

    Its weight decay is the one that reads the discs of the last games of `known` best, fitted on the others.
    """
    mean, scale = known.float().mean(0), known.float().std(0) + 1e-3
    x, new = ((of.float() - mean) / scale for of in (known, asked))
    classes = labels.flatten(0, 1)
    count = len(x) - max(round(PROBE_VALIDATED * len(labels)), 1) * POSITIONS
    there = classes[count:] > 0

    def right(decay: float) -> float:
        guessed = logistic_regression(x[:count], classes[:count], decay, seed)(x[count:])
        return (guessed == classes[count:])[there].double().mean().item()

    return logistic_regression(x, classes, max(PROBE_DECAYS, key=right), seed)(new)


def logistic_regression(
    x: torch.Tensor, classes: torch.Tensor, decay: float, seed: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """From features `[N, F]` to classes `[N, 64]`; AdamW."""
    generator = torch.Generator().manual_seed(seed)
    probe = torch.nn.Linear(x.shape[1], rules.SQUARES * CLASSES)
    torch.nn.init.zeros_(probe.weight)
    torch.nn.init.zeros_(probe.bias)
    groups = [{"params": [probe.weight], "weight_decay": decay}, {"params": [probe.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, PROBE_RATE)
    steps = PROBE_EPOCHS * -(-len(x) // PROBE_BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(PROBE_EPOCHS):
        for chosen in torch.randperm(len(x), generator=generator).split(PROBE_BATCH):
            logits = probe(x[chosen]).unflatten(-1, (rules.SQUARES, CLASSES))
            optimizer.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), classes[chosen].flatten()).backward()
            optimizer.step()
            schedule.step()
    return lambda new: probe(new).detach().unflatten(-1, (rules.SQUARES, CLASSES)).argmax(-1)


def majority(train: Positions, test: Positions) -> Reading:
    """The class that each square has most often after as many moves; of a square with a disc, the colour."""
    counts = torch.zeros(MOST_MOVES, rules.SQUARES, CLASSES)
    when = torch.from_numpy(train.when).flatten()
    counts.index_add_(0, when, F.one_hot(train.labels.flatten(0, 1), CLASSES).float())
    counts = counts[torch.from_numpy(test.when).flatten()]
    return reading(counts.argmax(-1), test, counts[..., 1:].argmax(-1) + 1)


def reading(guessed: torch.Tensor, test: Positions, colours: torch.Tensor | None = None) -> Reading:
    """Of classes `[N * POSITIONS, 64]`, and of others where there is a disc, if a guess knows that there is one."""
    right, coloured = (
        (x.view_as(test.labels) == test.labels).double() for x in (guessed, guessed if colours is None else colours)
    )
    discs = test.labels > 0
    of_games = right.mean((1, 2)), (coloured * discs).sum((1, 2)) / discs.sum((1, 2))
    squares, on_discs = (bootstrap([x.tolist()]) for x in of_games)
    assert squares is not None and on_discs is not None
    return Reading(squares, on_discs)
