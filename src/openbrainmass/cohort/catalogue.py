"""What is known of public datasets: one card each, read from the TOML files beside this module."""

from __future__ import annotations

import re
import textwrap
from importlib import resources
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.settings import Settings

_LINE_WIDTH = 110
_KEY_WIDTH = 16

ACCESS = {
    "open": "anyone can download it",
    "registration": "after registering or accepting terms",
    "application": "after an application that the owners approve",
    "private": "not given out",
}
"""How a dataset is reached, and what that means."""

VERIFIED = {
    "file": "a table of its people was seen",
    "documentation": "from documents and published code; no table of its people was seen",
}
"""What the facts of a card rest on."""


def _with_one_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"it is no regular expression ({error})") from error
    if groups != 1:
        raise ValueError("it needs exactly one group, the part that counts")
    return pattern


Pattern = Annotated[str, AfterValidator(_with_one_group)]
"""A regular expression with one group: the part of a text that counts."""


class Column(Settings):
    """A column of a dataset's phenotype table, and what it is turned into.

    Attributes
    ----------
    column : str or tuple of str
        Its header as the table spells it (space around it is ignored); several where releases spell it differently.
    codes : dict of str to str
        What each code stands for. An empty meaning is a missing value. Without codes, values stay what they are.
    unit : {"years", "months"}
        Of an age; the result is in years.
    pattern : str
        A regular expression whose first group is the value, where the value is only part of the text.
    number : bool
        Whether every value is a number (an age always is).
    optional : bool
        Whether some releases of the table are without it.
    flags : dict of str to str
        Instead of ``column``: headers of columns of 0 and 1, and what a 1 stands for; where several are 1, the first
        holds, and where none is, the value is missing.
    """

    column: str | tuple[str, ...] = ()
    codes: dict[str, str] = {}
    unit: Literal["years", "months"] | None = None
    pattern: Pattern | None = None
    number: bool = False
    optional: bool = False
    flags: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The headers that are looked for, in turn."""
        if self.flags:
            return tuple(self.flags)
        return (self.column,) if isinstance(self.column, str) else self.column

    @property
    def meanings(self) -> tuple[str, ...]:
        """What its codes or flags can stand for, each once."""
        return tuple(dict.fromkeys(meaning for meaning in (*self.codes.values(), *self.flags.values()) if meaning))

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if bool(self.flags) == bool(self.column):
            raise ValueError("either column or flags has to be given")
        return self


class Phenotype(Settings):
    """The table of a dataset's people.

    Attributes
    ----------
    files : tuple of str
        Globs of its name, in the order in which they are tried; empty where downloads name it differently, so that it
        must be named.
    separator : {",", "tab", ";"}
        Between columns.
    id_column : str or tuple of str
        Header of the column of ids; ``""`` is a first column without one.
    id_width : int
        Ids of digits alone are filled with zeros in front to this length; 0 leaves them as they are.
    id_remove : str
        Characters that the table's ids have and the files' labels have not.
    id_pattern : str
        A regular expression whose first group is the part of an id that the files use.
    missing : tuple of str
        What stands for a missing value, besides blanks, ``n/a``, -9999 and the like (see `cohort.phenotype`).
    header_lines : int
        Lines above the data: 2 where a second line describes the columns.
    only : dict of str to str
        Only rows with these values count (the baseline visit of a table with a row a visit).
    first : str
        Header of a column of numbers, in tables that have it: of a person's rows the one with the smallest counts
        (days of the visits).
    columns : dict of str to Column
        The columns of ours (``dx sex age site ...``) and what they are made of.
    """

    files: tuple[str, ...]
    separator: Literal[",", "tab", ";"] = ","
    id_column: str | tuple[str, ...] = "participant_id"
    id_width: int = 0
    id_remove: str = ""
    id_pattern: Pattern | None = None
    missing: tuple[str, ...] = ()
    header_lines: int = 1
    only: dict[str, str] = {}
    first: str = ""
    columns: dict[str, Column]

    @property
    def id_names(self) -> tuple[str, ...]:
        """The headers of the id column that are looked for, in turn."""
        return (self.id_column,) if isinstance(self.id_column, str) else self.id_column


class Version(Settings):
    """One processed version of a dataset whose files were looked at.

    Attributes
    ----------
    people, recordings, sites : int
        How many it has.
    atlas, volumes, tr, preprocessing : str
        What a recording is (``tr`` in seconds).
    columns : dict of str to str
        Columns of its participants table and what they mean.
    """

    people: int
    recordings: int
    sites: int
    atlas: str
    volumes: str
    tr: str
    preprocessing: str
    columns: dict[str, str]


class Fact(Settings):
    """Where a fact of a card comes from."""

    fact: str
    source: str


class DatasetCard(Settings):
    """Facts of a dataset that somebody who uses it should know; what is not known is left out and named.

    Attributes
    ----------
    name, title : str
        Short name, and what it is in a few words.
    people, recordings, sites : int or None
        How many the whole release has; resting-state runs for ``recordings``.
    access : {"open", "registration", "application", "private"}
        How it is reached.
    terms, source, reference : str
        Terms of use, where it comes from, what to cite.
    layouts : tuple of str
        Layouts of this package in which it is usually found.
    trs : tuple of float
        Seconds between volumes that are known to occur.
    tr_by_site : dict of str to float
        Seconds between volumes at the sites (as in the column ``site``) that have one for all their recordings.
    phenotype : Phenotype or None
        Its table of people.
    tasks : tuple of str
        Tasks of this package that fit.
    fetch : str or None
        The nilearn function with which ``openbrainmass fetch`` downloads it.
    version : Version or None
        A processed version whose files were looked at.
    overlaps : dict of str to str
        Other cards that share people with it, and how.
    traps : tuple of str
        What has misled others.
    verified : {"file", "documentation"}
        Whether a table of its people was seen.
    unknown : tuple of str
        What could not be found out.
    sources : tuple of Fact
        Where the facts come from.
    """

    name: str
    title: str
    people: int | None = Field(default=None, gt=0)
    recordings: int | None = Field(default=None, gt=0)
    sites: int | None = Field(default=None, gt=0)
    access: Literal["open", "registration", "application", "private"]
    terms: str
    source: str
    reference: str
    layouts: tuple[str, ...] = ()
    trs: tuple[float, ...] = ()
    tr_by_site: dict[str, float] = {}
    phenotype: Phenotype | None = None
    tasks: tuple[str, ...] = ()
    fetch: str | None = None
    version: Version | None = None
    overlaps: dict[str, str] = {}
    traps: tuple[str, ...]
    verified: Literal["file", "documentation"]
    unknown: tuple[str, ...] = ()
    sources: tuple[Fact, ...]

    def size(self) -> str:
        """People, recordings and sites of the whole release, those that are known."""
        counts = {"people": self.people, "recordings": self.recordings, "sites": self.sites}
        known = [f"{count:,} {_singular(word, count)}" for word, count in counts.items() if count is not None]
        return ", ".join(known) if known else "size not known"

    def line(self) -> str:
        """Name, title and size in one line."""
        return f"{self.name:<{_KEY_WIDTH}} {self.title} ({self.size()})"

    def text(self) -> str:
        """Lay the card out as text, one fact a line."""
        rows = [
            ("size", f"{self.size()} (the whole release)"),
            ("access", f"{self.access}: {ACCESS[self.access]}"),
            ("terms", self.terms),
            ("source", self.source),
            ("reference", self.reference),
            ("tr", f"{', '.join(f'{tr:g}' for tr in self.trs)} s" if self.trs else ""),
            ("tr by site", ", ".join(f"{site} {tr:g} s" for site, tr in self.tr_by_site.items())),
            ("layouts", ", ".join(self.layouts)),
            ("fetch", f"openbrainmass fetch {self.name} (nilearn's {self.fetch})" if self.fetch else ""),
            ("tasks", ", ".join(self.tasks)),
            *_phenotype_rows(self.phenotype),
            *_version_rows(self.version),
            *(("shares people", f"with {other}: {how}") for other, how in self.overlaps.items()),
            *(("trap", trap) for trap in self.traps),
            ("verified", f"{self.verified}: {VERIFIED[self.verified]}"),
            ("not known", "; ".join(self.unknown)),
            *(("says", f"{fact.fact}: {fact.source}") for fact in self.sources),
        ]
        return "\n".join([self.line(), *(_wrapped(key, value) for key, value in rows if value)])


def _singular(word: str, count: int) -> str:
    return {"people": "person"}.get(word, word[:-1]) if count == 1 else word


def _wrapped(key: str, value: str) -> str:
    wrap = textwrap.TextWrapper(
        width=_LINE_WIDTH, subsequent_indent=" " * _KEY_WIDTH, break_on_hyphens=False, break_long_words=False
    )
    return wrap.fill(f"{key:<{_KEY_WIDTH - 1}} {value}")


def _phenotype_rows(phenotype: Phenotype | None) -> list[tuple[str, str]]:
    if phenotype is None:
        return []
    ids = " or ".join(phenotype.id_names)
    files = ", ".join(phenotype.files) or "no fixed name (give it with --participants)"
    rows = [("table", f"{files}; people in the column {ids or '(the first, without a header)'}")]
    if phenotype.only:
        rows.append(("rows", "; ".join(f"those with {column} {value}" for column, value in phenotype.only.items())))
    if phenotype.first:
        rows.append(("rows", f"of a person's rows that with the smallest {phenotype.first}"))
    return rows + [(name, _column_text(column)) for name, column in phenotype.columns.items()]


def _column_text(column: Column) -> str:
    codes = ", ".join(f"{code} = {meaning or 'missing'}" for code, meaning in column.codes.items())
    if column.flags:
        return ", ".join(f"{header} 1 = {meaning}" for header, meaning in column.flags.items())
    parts = [" or ".join(name.strip() for name in column.names), codes, f"in {column.unit}" if column.unit else ""]
    return "; ".join(part for part in parts if part)


def _version_rows(version: Version | None) -> list[tuple[str, str]]:
    if version is None:
        return []
    size = f"{version.people} people, {version.recordings} recordings, {version.sites} site(s)"
    columns = "; ".join(f"{column}: {meaning}" for column, meaning in version.columns.items())
    return [
        ("version seen", f"{size}; {version.atlas}; {version.volumes} volumes, tr {version.tr} s"),
        ("preprocessing", version.preprocessing),
        ("columns", columns),
    ]


def dataset_table() -> str:
    """All datasets as a Markdown table, one a line (`docs/datasets.md` shows it)."""
    lines = ["| name | what it is | size | access | diagnoses read | TR (s) | layouts | table seen |", "|---" * 8 + "|"]
    for card in map(dataset_card, dataset_names()):
        dx = card.phenotype.columns.get("dx") if card.phenotype else None
        cells = [
            f"`{card.name}`",
            card.title,
            card.size(),
            card.access,
            ", ".join(dx.meanings) if dx else "",
            ", ".join(f"{tr:g}" for tr in card.trs),
            ", ".join(card.layouts),
            "yes" if card.verified == "file" else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def dataset_names() -> list[str]:
    """Names of the datasets that have a card."""
    entries = (resources.files("openbrainmass.cohort") / "catalogue").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def dataset_card(name: str) -> DatasetCard:
    """Card of a dataset.

    Raises
    ------
    OpenBrainMassError
        If the name is not among `dataset_names`.
    """
    if name not in dataset_names():
        raise OpenBrainMassError(
            f"There is no card of a dataset {name!r}; known are {', '.join(dataset_names())}. Any other cohort works "
            "without a card."
        )
    with resources.as_file(resources.files("openbrainmass.cohort") / "catalogue" / f"{name}.toml") as file:
        return DatasetCard.load(file)
