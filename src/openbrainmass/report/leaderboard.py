"""`write_leaderboard`: results folders of anybody as one page, ranked only where people, labels and folds are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from openbrainmass.durable import write_text, write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.metrics import HEADLINE
from openbrainmass.evaluation.protocols import few_shot_size
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.statistics import compare, holm
from openbrainmass.report.long_table import LONG_COLUMNS, Entry, long_table, read_entries
from openbrainmass.report.rendering import environment
from openbrainmass.report.tables import Estimate, Fact, Forest, forest
from openbrainmass.report.verdict import ALPHA, PROTOCOLS, SCALES, protocol_words, role
from openbrainmass.report.wording import DASH, count, interval, listing, number, short_p

RANK_COLUMNS = (
    "task",
    "dataset",
    "protocol",
    "folds",
    "model",
    "results",
    "standing",
    "rank",
    "against",
    "p_corrected",
)
"""Columns of ``leaderboard_ranks.tsv``: ``rank`` is missing where ``standing`` is not ``ranked``; ``against`` is the
first row of the rank, and ``p_corrected`` of the paired test of both."""

RANKED, SAW, CONTROL = "ranked", "saw test people", "control"
"""How a row stands: only the first has a rank."""

_SCALES = {scale.metric: scale for scale in SCALES.values()}
# The paired test of few-shot resamples people; more samples would not change on which side of 0.05 a p is.
_N_RESAMPLES = 1000


@dataclass(frozen=True)
class Row:
    """One model of a board.

    Attributes
    ----------
    label, results : str
        The model's name, unique on the board, and the folder it is from.
    value, low, high : float
        Of the board's metric.
    role : {"own", "baseline", "control"}
    standing : str
        `RANKED`, `SAW` or `CONTROL`.
    rank : int or None
        1 is the best; rows of one rank are not told apart by the paired test.
    against : str
        First row of the same rank; empty for that row itself and where there is no rank.
    p : float
        Of the paired test with that row, corrected; NaN where there is none.
    """

    label: str
    results: str
    value: float
    low: float
    high: float
    role: str
    standing: str
    rank: int | None = None
    against: str = ""
    p: float = float("nan")


@dataclass(frozen=True)
class Board:
    """Models that were tested on the same people, labels and folds.

    Attributes
    ----------
    task, title, dataset, protocol, metric, folds : str
    n_people : int
    n_positive : float
        NaN for a regression.
    rows : tuple of Row
        Ranked ones first, the best first.
    copies : tuple of str
        Remarks on models that stand in several folders with the same predictions, and are shown once.
    """

    task: str
    title: str
    dataset: str
    protocol: str
    metric: str
    folds: str
    n_people: int
    n_positive: float
    rows: tuple[Row, ...]
    copies: tuple[str, ...]


@dataclass(frozen=True)
class BoardView:
    """A board as the page draws it.

    Attributes
    ----------
    marks, standings : tuple of str
        Of each row: its rank as written, and how it stands.
    apart : str
        Warning that the same task was done on other folds, too.
    folded : bool
        Whether the page shows it only when asked: one of many points of a few-shot curve.
    """

    title: str
    facts: str
    sentence: str
    forest: Forest
    marks: tuple[str, ...]
    standings: tuple[str, ...]
    apart: str
    copies: tuple[str, ...]
    saw: bool
    folded: bool


def write_leaderboard(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write one self-contained page that ranks the models of results folders, and its tables beside it.

    Models are ranked within a board: one task, dataset, protocol and set of folds. A model starts a new rank when it
    is significantly worse (paired test, p < 0.05 after Holm's correction) than the first model of the rank above, so
    models of one rank are tied. What had met test people, or may have, is shown without a rank.

    Parameters
    ----------
    folders : sequence of path
        What `Results.save` wrote, of any number of groups.
    out : path
        The HTML file. ``<name>.tsv`` (see `long_table`) and ``<name>_ranks.tsv`` (`RANK_COLUMNS`) are written beside
        it; older ones are replaced.

    Returns
    -------
    Path
        The HTML file.

    Raises
    ------
    OpenBrainMassError
        If a folder is not a results folder or its metrics do not follow from its predictions, or `out` is a folder.
    """
    out = Path(out)
    if out.is_dir() or out.suffix == ".tsv":
        raise OpenBrainMassError(
            f"{out} is {'a folder' if out.is_dir() else 'a name of a table'}; a leaderboard is one page with tables "
            f"beside it. Name the page, e.g. {out / 'leaderboard.html' if out.is_dir() else out.with_suffix('.html')}."
        )
    entries = read_entries(folders)
    table = long_table(entries)
    boards = make_boards(entries, table)
    write_text(out, render(boards, len(entries)))
    write_tsv(out.with_suffix(".tsv"), table)
    write_tsv(out.with_name(f"{out.stem}_ranks.tsv"), rank_table(boards))
    return out


def make_boards(entries: Sequence[Entry], table: pd.DataFrame) -> list[Board]:
    """Rank what may be ranked together.

    Parameters
    ----------
    entries : sequence of Entry
    table : DataFrame
        Their `long_table`.

    Returns
    -------
    list of Board
        By task and dataset, the protocols that say most about new people first.
    """
    by_name = {entry.name: entry for entry in entries}
    headline = [HEADLINE[by_name[name].results.kind] for name in table["results"]]
    scored = table[table["metric"] == np.array(headline)]
    boards = [
        _board(rows, by_name)
        for _, rows in scored.groupby(["task", "dataset", "protocol", "folds"], sort=False, dropna=False)
    ]
    order = {name: place for place, name in enumerate(PROTOCOLS)}
    return sorted(boards, key=lambda board: (board.task, board.dataset, order.get(board.protocol, len(order))))


def rank_table(boards: Iterable[Board]) -> pd.DataFrame:
    """Every row of every board, with `RANK_COLUMNS`."""
    rows = [
        (b.task, b.dataset, b.protocol, b.folds, r.label, r.results, r.standing, r.rank, r.against, r.p)
        for b in boards
        for r in b.rows
    ]
    return pd.DataFrame(rows, columns=list(RANK_COLUMNS)).astype({"rank": "Int64"})


def _board(rows: pd.DataFrame, entries: dict[str, Entry]) -> Board:
    first = rows.iloc[0]
    shown, predictions, copies = _without_copies(rows, entries)
    ranked = [row for row in shown if row.standing == RANKED]
    others = sorted((row for row in shown if row.standing != RANKED), key=lambda row: (row.standing, -row.value))
    kind = entries[first["results"]].results.kind
    return Board(
        task=str(first["task"]),
        title=entries[first["results"]].title(str(first["protocol"])),
        dataset=str(first["dataset"]),
        protocol=str(first["protocol"]),
        metric=str(first["metric"]),
        folds=str(first["folds"]),
        n_people=int(first["n_people"]),
        n_positive=float(first["n_positive"]),
        rows=(*_ranked(ranked, predictions, kind), *others),
        copies=tuple(copies),
    )


def _without_copies(
    rows: pd.DataFrame, entries: dict[str, Entry]
) -> tuple[list[Row], dict[str, pd.DataFrame], list[str]]:
    """Rows of a board with their predictions; the same predictions under the same name count once."""
    shown: list[Row] = []
    predictions: dict[str, pd.DataFrame] = {}
    again: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        model, source = str(row["model"]), str(row["results"])
        told = _predictions(entries[source], str(row["protocol"]), model)
        label = model
        if model in predictions:
            if np.array_equal(predictions[model]["y_score"], told["y_score"]):
                again.setdefault(source, []).append(model)
                continue
            label = f"{model} [{source}]"
        kind = role(model)
        standing = CONTROL if kind == "control" else SAW if row["saw_test_people"] else RANKED
        shown.append(Row(label, source, row["value"], row["low"], row["high"], kind, standing))
        predictions[label] = told.assign(model=label)
    copies = [f"In {source} too, with the same predictions: {listing(names)}." for source, names in again.items()]
    return shown, predictions, copies


def _predictions(entry: Entry, protocol: str, model: str) -> pd.DataFrame:
    rows = entry.results.predictions
    rows = rows[(rows["protocol"] == protocol) & (rows["model"] == model)]
    return rows.sort_values(["repeat", "fold", "participant_id"], ignore_index=True)


def _ranked(rows: list[Row], predictions: dict[str, pd.DataFrame], kind: str) -> Iterator[Row]:
    """Rows from the best to the worst; those that the paired test does not tell from the first of a rank share it."""
    left = sorted(rows, key=lambda row: -row.value)
    place = 1
    while left:
        leader = left[0]
        p = _tested(leader.label, [row.label for row in left[1:]], predictions, kind)
        worse = next((i for i, row in enumerate(left[1:], 1) if p[row.label] < ALPHA), len(left))
        yield replace(leader, rank=place)
        for row in left[1:worse]:
            yield replace(row, rank=place, against=leader.label, p=p[row.label])
        place += worse
        left = left[worse:]


def _tested(leader: str, others: list[str], predictions: dict[str, pd.DataFrame], kind: str) -> dict[str, float]:
    """Corrected p of each model against the leader; one that cannot be tested has none, which is no difference."""
    if not others:
        return {}
    together = pd.concat([predictions[name] for name in (leader, *others)], ignore_index=True)
    results = Results(together, {"task": {"kind": kind}})
    table = compare(results, reference=leader, n_resamples=_N_RESAMPLES)
    return dict(zip(table["model"], holm(table["p"].to_numpy(float)), strict=True))


def render(boards: Sequence[Board], n_folders: int) -> str:
    """The page as HTML text.

    Parameters
    ----------
    boards : sequence of Board
    n_folders : int
        How many results folders they are from.
    """
    package = version("openbrainmass")
    tasks = [
        (f"task-{place}", heading, [_view(board, boards) for board in of_task])
        for place, (heading, of_task) in enumerate(_sections(boards))
    ]
    return (
        environment()
        .get_template("leaderboard.html.j2")
        .render(
            version=package,
            sections=[("summary", "Summary"), *((key, title) for key, title, _ in tasks), ("reading", "How to read")],
            facts=_facts(boards, n_folders),
            sentence=_sentence(boards),
            tasks=tasks,
            columns=LONG_COLUMNS,
        )
    )


def _sections(boards: Sequence[Board]) -> list[tuple[str, list[Board]]]:
    """The boards of each task under its title; tasks of one title are told apart by cohort, else by name."""
    of_task: dict[tuple[str, str], list[Board]] = {}
    for board in boards:
        of_task.setdefault((board.task, board.title), []).append(board)
    headings = [title for _, title in of_task]
    # The training cohort alone: who was tested stands above each board.
    cohorts = [listing(list(dict.fromkeys(b.dataset.partition(" > ")[0] for b in group))) for group in of_task.values()]
    for further in (cohorts, [task for task, _ in of_task]):
        times = Counter(headings)
        headings = [
            f"{heading} ({more})" if times[heading] > 1 and more else heading
            for heading, more in zip(headings, further, strict=True)
        ]
    return list(zip(headings, of_task.values(), strict=True))


def _facts(boards: Sequence[Board], n_folders: int) -> list[Fact]:
    entered = {row.label for board in boards for row in board.rows if row.role == "own"}
    floors = {row.label for board in boards for row in board.rows if row.role != "own"}
    return [
        Fact("results folders", f"{n_folders:,}"),
        Fact("tasks", f"{len({board.task for board in boards}):,}"),
        Fact("boards", f"{len(boards):,}"),
        Fact("models entered", f"{len(entered):,}"),
        Fact("floors and controls", f"{len(floors):,}"),
    ]


def _best(board: Board, kind: str) -> Row | None:
    return next((row for row in board.rows if row.standing == RANKED and row.role == kind), None)


def _sentence(boards: Sequence[Board]) -> str:
    """On how many boards an entered model is better than every floor."""
    contests = [board for board in boards if _best(board, "own") and _best(board, "baseline")]
    if not contests:
        return (
            "No board has both a model that was entered and a floor, so nothing here says whether a model is worth it."
        )
    won = sum(_beats_floors(board) for board in contests)
    if len(contests) == 1:
        told = "is better than every floor" if won else "is not better than the best floor"
        return f"On the only board that has both, the best model entered {told}."
    where = f"of {count(len(contests), 'board')} with floors"
    return f"A model that was entered is better than every floor on {won or 'none'} {where}."


def _beats_floors(board: Board) -> bool:
    own, floor = _best(board, "own"), _best(board, "baseline")
    return bool(own and floor and own.rank == 1 and floor.rank != 1 and not own.against)


def _view(board: Board, boards: Sequence[Board]) -> BoardView:
    words, unit = protocol_words(board.protocol), _SCALES[board.metric]
    ranks = [row.rank for row in board.rows]
    estimates = [
        Estimate(
            label=row.label, note=_note(row), value=row.value, low=row.low, high=row.high, text=number(row.value, 3),
            between=interval(row.low, row.high, 3), role=row.role, saw=row.standing == SAW,
            more=(short_p(row.p) if row.against else "",),
        )
        for row in board.rows
    ]  # fmt: skip
    caption = f"{unit.title} with 95 % intervals; dashed line: {unit.line}."
    return BoardView(
        title=f"{board.dataset}: {words.title[:1].lower()}{words.title[1:]}" if board.dataset else words.title,
        facts=_board_facts(board),
        sentence=_board_sentence(board),
        forest=forest(
            estimates,
            heading=f"{unit.title} (95 % interval)",
            zero=unit.no_skill,
            caption=caption,
            columns=("p of tie",),
        ),
        marks=tuple(DASH if rank is None else f"{rank}{'=' if ranks.count(rank) > 1 else ''}" for rank in ranks),
        standings=tuple(row.standing.replace(" ", "-") for row in board.rows),
        apart=_apart(board, boards),
        copies=board.copies,
        saw=any(row.standing == SAW for row in board.rows),
        folded=few_shot_size(board.protocol) is not None,
    )


def _note(row: Row) -> str:
    if row.standing == SAW:
        return "not ranked: met test people, or may have"
    return {"baseline": "floor", "control": "control, not ranked"}.get(row.role, "")


def _board_facts(board: Board) -> str:
    people = count(board.n_people, "person", "people")
    if np.isfinite(board.n_positive):
        people += f", {board.n_positive:,.0f} of them positive"
    return f"{people}; folds {board.folds}."


def _board_sentence(board: Board) -> str:
    own, floor = _best(board, "own"), _best(board, "baseline")
    if own is None or floor is None:
        return "No model that could be ranked was entered here." if own is None else "No floor is here to beat."
    gap = f"{number(own.value, 3)} against {number(floor.value, 3)}"
    if _beats_floors(board):
        return f"{own.label} is better than every floor ({gap} of {floor.label})."
    if own.rank == floor.rank:
        return f"{own.label} is not told from the best floor, {floor.label} ({gap})."
    return f"No model entered reaches the best floor, {floor.label} ({gap} for {own.label})."


def _apart(board: Board, boards: Sequence[Board]) -> str:
    """A warning where the same task was done on other folds: those numbers do not compare."""
    same = [
        other
        for other in boards
        if (other.task, other.dataset, other.protocol) == (board.task, board.dataset, board.protocol)
    ]
    if len(same) == 1:
        return ""
    others = count(len(same) - 1, "other board")
    return (
        f"Other people, labels or folds than on {others} of this task, dataset and protocol: never compare across them."
    )
