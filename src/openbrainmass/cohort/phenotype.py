"""The table of a dataset's people, in its own codes, turned into ours; and the tables that users write themselves."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from openbrainmass.cohort.catalogue import Column, DatasetCard, Phenotype
from openbrainmass.durable import MISSING, TEXT_COLUMNS
from openbrainmass.errors import OpenBrainMassError

MISSING_TEXTS = frozenset({"", "n/a", "na", "nan", "none", "null", "#n/a", "n.a.", ".", "`", "pending"})
"""Spellings of a missing value in phenotype tables, in small letters."""

MISSING_NUMBERS = frozenset({-9999.0, -999.0})
"""Numbers that stand for a missing value in phenotype tables."""

# A person's own table says what is missing in the BIDS way; -9999 could be a measurement there.
_BIDS_MISSING = frozenset({"", MISSING, "na", "nan"})
_SEPARATORS = {"tab": "\t", ",": ",", ";": ";"}
_OLDEST = 120.0
_LEVELS_UP = 4
_SHOWN = 5


def find_phenotype(folder: str | Path, card: DatasetCard) -> Path | None:
    """Find the phenotype table of a dataset in a folder or above it.

    Downloads put the table up to four levels above the recordings. A ``participants.tsv``, which every dataset has, is
    only looked for in the folder itself and the one above.

    Parameters
    ----------
    folder : path
        Where the recordings are.
    card : DatasetCard
        The dataset.

    Returns
    -------
    Path or None
        None where no file has one of the card's names.

    Raises
    ------
    OpenBrainMassError
        If several files in one folder fit the same of the card's names, so that nobody knows which is meant.
    """
    folder = Path(folder).resolve()
    for level, place in enumerate([folder, *folder.parents][: _LEVELS_UP + 1]):
        for pattern in card.phenotype.files if card.phenotype else ():
            found = sorted(path for path in place.glob(pattern) if path.is_file())
            if level > 1:
                found = [path for path in found if not path.name.startswith("participants")]
            if len(found) > 1:
                names = ", ".join(path.name for path in found[:_SHOWN])
                raise OpenBrainMassError(
                    f"{place} has {len(found)} tables that could be the people of {card.name} ({names}). Say which "
                    "with --participants FILE, or put them together into one."
                )
            if found:
                return found[0]
    return None


def fits_card(path: str | Path, card: DatasetCard) -> bool:
    """Whether a table has the columns that the card of a dataset describes, so that its codes can be read.

    A ``participants.tsv`` can be the dataset's own (with its codes) or one that somebody wrote.

    Raises
    ------
    OpenBrainMassError
        If the file cannot be read.
    """
    if card.phenotype is None:
        return False
    header = set(_read(Path(path), _SEPARATORS[card.phenotype.separator], 1).columns)
    needed = [column.names for column in card.phenotype.columns.values() if not column.optional]
    return all(any(name.strip() in header for name in names) for names in [card.phenotype.id_names, *needed])


def read_phenotype(path: str | Path, card: DatasetCard) -> pd.DataFrame:
    """Read the phenotype table of a dataset, in the codes that its card explains.

    Only the columns that the card describes are taken over.

    Parameters
    ----------
    path : path
        The table.
    card : DatasetCard
        The dataset.

    Returns
    -------
    DataFrame
        ``participant_id`` (``sub-...``), then the card's columns: ``dx``, ``sex`` (F or M), ``age`` (years) and so on,
        NaN where missing.

    Raises
    ------
    OpenBrainMassError
        If the card has no table; if the file is no such table or lacks a column; if an id is missing or repeated; if
        a value is not among the card's codes, or is not a number where it should be.
    """
    path = Path(path)
    layout = card.phenotype
    if layout is None:
        raise OpenBrainMassError(
            f"The card of {card.name} describes no phenotype table, so the codes of {path} are not known. Make a "
            "participants.tsv (participant_id, dx, sex, age, site) and give it with --participants."
        )
    table = _chosen_rows(_read(path, _SEPARATORS[layout.separator], layout.header_lines), layout, path)
    ids = _column(table, layout.id_names, path, "whose rows they are")
    _check_present(ids, path)
    result = pd.DataFrame({"participant_id": [_label(text, layout, path, line) for line, text in ids.items()]})
    missing = MISSING_TEXTS | {text.lower() for text in layout.missing}
    for name, column in layout.columns.items():
        if column.optional and not any(header.strip() in table.columns for header in column.names):
            continue
        if column.flags:
            result[name] = _flagged(name, table, column, missing, path)
            continue
        cells = _column(table, column.names, path, f"the {name} of {card.name}")
        result[name] = _translated(name, cells, column, missing, path)
    _check_unique(result["participant_id"], table.index, path)
    return result


def read_people(path: str | Path) -> pd.DataFrame:
    """Read a table of people that somebody wrote: ``participant_id`` and anything else, BIDS style.

    Parameters
    ----------
    path : path
        A ``.tsv`` or ``.csv`` (comma or semicolon) with a header line; ``n/a`` or nothing where a value is missing.

    Returns
    -------
    DataFrame
        ``participant_id`` (text, as it is spelt) and the other columns; numbers where every value is one.

    Raises
    ------
    OpenBrainMassError
        If the file is no such table, a column is there twice, or an id is missing or repeated.
    """
    path = Path(path)
    table = _read(path, None, 1)
    people = pd.DataFrame(
        {"participant_id": _column(table, ("participant_id",), path, "whose rows they are").str.strip()}
    )
    _check_present(people["participant_id"], path)
    _check_unique(people["participant_id"], table.index, path)
    for name in dict.fromkeys(table.columns):
        if name == "participant_id":
            continue
        values = _column(table, (name,), path, "").str.strip()
        values = values.where(~values.str.lower().isin(_BIDS_MISSING))
        numbers = pd.to_numeric(values, errors="coerce")
        whole = name not in TEXT_COLUMNS and values.notna().any() and bool((numbers.notna() | values.isna()).all())
        people[name] = numbers if whole else values
    return people.reset_index(drop=True)


def _read(path: Path, separator: str | None, header_lines: int) -> pd.DataFrame:
    """All cells as text; the index is the line of the file on which a row begins."""
    text = _text_of(path)
    header = text.split("\n", 1)[0]
    if separator is None or separator not in header:
        separator = "\t" if "\t" in header else max(",;", key=header.count)
    lines, rows, begin = [], [], 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for row in reader:
            lines.append(begin)
            rows.append(row)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise OpenBrainMassError(
            f"{path} line {begin} is not readable as a table ({error}). Save it again as CSV or TSV with a header line."
        ) from error
    names = [name.strip() for name in rows[0]] if rows else []
    body = [(line, row) for line, row in zip(lines, rows, strict=True) if any(cell.strip() for cell in row)]
    body = [(line, _fitted(row, names, path, line)) for line, row in body[header_lines:]]
    if not body:
        raise OpenBrainMassError(f"{path} has a header but no people. One row a person was expected.")
    return pd.DataFrame([row for _, row in body], columns=names, index=[line for line, _ in body])


def _text_of(path: Path) -> str:
    if path.suffix.lower() in {".xlsx", ".xls", ".ods"}:
        raise OpenBrainMassError(
            f"{path} is a spreadsheet, which is not read. Save each sheet that holds people as CSV (one table with all "
            "of them), and name that file."
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise OpenBrainMassError(f"{path} does not exist; a table of people was expected. Check the path.") from error
    except OSError as error:
        raise OpenBrainMassError(
            f"{path} cannot be read ({error.strerror or error}). Check its permissions."
        ) from error
    if b"\0" in data:
        raise OpenBrainMassError(f"{path} is no text table; a CSV or TSV file with a header line was expected.")
    # Where it is not UTF-8, it comes from an old Western spreadsheet; in latin-1 no byte is wrong.
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _fitted(row: list[str], names: list[str], path: Path, line: int) -> list[str]:
    """A row as long as the header: separators at its end that nothing follows do no harm."""
    extra = row[len(names) :]
    if len(row) < len(names) or any(cell.strip() for cell in extra):
        raise OpenBrainMassError(
            f"{path} line {line} has {len(row)} cells but the header has {len(names)}, so values would slip into other "
            "columns. Correct that line (a separator within a value needs quotes)."
        )
    return row[: len(names)]


def _chosen_rows(table: pd.DataFrame, layout: Phenotype, path: Path) -> pd.DataFrame:
    for header, value in layout.only.items():
        table = table[_column(table, (header,), path, "which rows count").str.strip() == value]
        if table.empty:
            raise OpenBrainMassError(
                f"{path} has no row whose {header} is {value}, and only those count. Is it the table of another visit?"
            )
    return _first_rows(table, layout, path) if layout.first in table.columns else table


def _first_rows(table: pd.DataFrame, layout: Phenotype, path: Path) -> pd.DataFrame:
    """Of each person the row with the smallest number in the column that tells the order."""
    cells = _column(table, (layout.first,), path, "which row of a person is the first")
    numbers = pd.to_numeric(cells.str.strip(), errors="coerce")
    wrong = cells.index[numbers.isna()]
    if len(wrong):
        raise OpenBrainMassError(
            f"{path} line {wrong[0]}: {layout.first} is {cells[wrong[0]]!r}, but it is a number, of which a person's "
            "smallest counts. Correct it there, or take the row out."
        )
    people = _column(table, layout.id_names, path, "whose rows they are").str.strip()
    return table[numbers == numbers.groupby(people).transform("min")]


def _column(table: pd.DataFrame, names: Iterable[str], path: Path, purpose: str) -> pd.Series:
    wanted = [name.strip() for name in names]
    found = next((name for name in wanted if name in table.columns), None)
    if found is None:
        shown = " ".join((", ".join(table.columns[:12]) + (" ..." if len(table.columns) > 12 else "")).split())
        raise OpenBrainMassError(
            f"{path} has no column {' or '.join(map(repr, wanted))}, which says {purpose}; it has {shown}. Is it another "
            "release, or saved with another separator?"
        )
    cells = table[found]
    if isinstance(cells, pd.DataFrame):
        raise OpenBrainMassError(f"{path} has the column {found!r} {cells.shape[1]} times. Keep the one that is right.")
    return cells


def _label(text: str, layout: Phenotype, path: Path, line: object) -> str:
    """An id as the files spell it: ``sub-`` and the label."""
    label = text.strip().strip("'").removeprefix("sub-")
    # Spreadsheets turn an id into a decimal number where a neighbour is missing.
    label = re.sub(r"^(\d+)\.0+$", r"\1", label)
    if layout.id_pattern is not None:
        match = re.search(layout.id_pattern, label)
        if match is None:
            raise OpenBrainMassError(
                f"{path} line {line}: the id {text!r} is not of the form {layout.id_pattern} that this dataset uses. "
                "Correct it or take that row out."
            )
        label = match[1]
    label = label.translate({ord(character): None for character in layout.id_remove})
    return f"sub-{label.zfill(layout.id_width) if label.isdigit() else label}"


def _translated(name: str, cells: pd.Series, column: Column, missing: frozenset[str], path: Path) -> list[str | float]:
    """A column in our spelling; each text is translated where it is met first."""
    known: dict[str, str | float] = {}
    for line, text in cells.items():
        if text not in known:
            known[text] = _value(name, text.strip(), column, missing, f"{path} line {line}: {cells.name}")
    return [known[text] for text in cells]


def _flagged(name: str, table: pd.DataFrame, column: Column, missing: frozenset[str], path: Path) -> list[str | float]:
    """A column that is made of columns of 0 and 1; the first that is 1 says what it is."""
    found: list[str | float] = [np.nan] * len(table)
    for header, meaning in reversed(column.flags.items()):
        one = Column(column=header, codes={"1": meaning, "0": ""})
        values = _translated(header, _column(table, (header,), path, f"the {name}"), one, missing, path)
        found = [value if isinstance(value, str) else before for value, before in zip(values, found, strict=True)]
    return found


def _value(name: str, text: str, column: Column, missing: frozenset[str], where: str) -> str | float:
    """One value in our spelling, NaN where missing; ``where`` names file, line and column for messages."""
    code = _canonical(text.strip("'\""))
    if code not in column.codes:
        if text.lower() in missing or _is_missing_number(code):
            return np.nan
        code = _part(name, text, column, where)
    if code in column.codes:
        return column.codes[code] or np.nan
    if column.unit is not None or column.number:
        return _number(name, code, column, where)
    if column.codes:
        known = ", ".join(f"{one} = {meaning or 'missing'}" for one, meaning in column.codes.items())
        raise OpenBrainMassError(
            f"{where} is {code!r}, which is no code of {name}; known are {known}. Correct it there, or mark it as n/a."
        )
    return code


def _part(name: str, text: str, column: Column, where: str) -> str:
    """The part of a text that counts."""
    if column.pattern is None:
        return _canonical(text.strip("'\""))
    match = re.search(column.pattern, text)
    if match is None:
        raise OpenBrainMassError(
            f"{where} is {text!r}, from which no {name} can be told (expected {column.pattern}). Correct it there, or "
            "mark it as n/a."
        )
    return _canonical(match[1])


def _number(name: str, code: str, column: Column, where: str) -> float:
    try:
        value = float(code)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise OpenBrainMassError(f"{where} is {code!r}, but {name} is a number. Correct it there, or mark it as n/a.")
    if column.unit is None:
        return value
    years = value / 12 if column.unit == "months" else value
    if not 0 <= years <= _OLDEST:
        raise OpenBrainMassError(
            f"{where} is {code}, which is no age in {column.unit} (0 to {_OLDEST:g} years was expected). Correct it "
            "there, or mark it as n/a."
        )
    return years


def _canonical(text: str) -> str:
    """A code without the decimals that spreadsheets add: ``1.0`` is ``1``."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def _is_missing_number(text: str) -> bool:
    try:
        return float(text) in MISSING_NUMBERS
    except ValueError:
        return False


def _check_present(ids: pd.Series, path: Path) -> None:
    empty = ids.index[ids.str.strip().str.lower().isin(_BIDS_MISSING)]
    if len(empty):
        raise OpenBrainMassError(
            f"{path} line {empty[0]} has nothing in {str(ids.name) or 'its first column'}, so nobody knows whose row it "
            "is. Give the id or take the row out."
        )


def _check_unique(ids: pd.Series, lines: pd.Index, path: Path) -> None:
    repeated = ids[ids.duplicated(keep=False).to_numpy()]
    if len(repeated):
        first = repeated.iloc[0]
        at = [str(line) for line, one in zip(lines, ids, strict=True) if one == first]
        raise OpenBrainMassError(
            f"{path} names {first!r} in lines {', '.join(at[:_SHOWN])}, and {ids.duplicated().sum()} row(s) repeat a "
            "person; one row a person was expected. Keep the row that belongs to the scan."
        )
