"""Frozen settings: a TOML file, `a.b=c` overrides, and an error for every key nobody knows."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from openbrainmass.durable import read_json
from openbrainmass.errors import OpenBrainMassError


class Settings(BaseModel):
    """Base of every settings class: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, file: str | Path | None = None, overrides: Iterable[str] = ()) -> Self:
        """Read settings from a TOML file, then apply ``a.b=c`` overrides.

        Parameters
        ----------
        file : path, optional
            A TOML file, or the ``settings.json`` of an earlier run; without it the defaults hold.
        overrides : iterable of str
            Each ``key=value`` or ``section.key=value``; the value is read as TOML, else as text.

        Raises
        ------
        OpenBrainMassError
            If the file is missing or is not TOML, or a key or value is not allowed.
        """
        return cls.checked(read_values(file, overrides), source=str(file) if file is not None else "the settings")

    @classmethod
    def checked(cls, values: dict[str, Any], source: str) -> Self:
        """Validate a mapping, turning pydantic's report into one readable paragraph."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(_problem(cls, item) for item in error.errors())
            raise OpenBrainMassError(f"{source} cannot be used: {problems}.") from error


def read_values(file: str | Path | None = None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The nested keys and values of a TOML or JSON file and of ``a.b=c`` overrides, not yet checked."""
    values = _read_file(Path(file)) if file is not None else {}
    for override in overrides:
        _apply(values, override)
    return values


def _read_file(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        values = read_json(path)
        if not isinstance(values, dict):
            raise OpenBrainMassError(f"{path} holds no settings: a JSON object was expected. Give another file.")
        return values
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OpenBrainMassError(f"{path} does not exist; a TOML settings file was expected.") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OpenBrainMassError(f"{path} is not readable TOML ({error}). Mend that line.") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise OpenBrainMassError(f"--set {override} has no value; write it as --set section.key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise OpenBrainMassError(f"--set {override}: {section} is a value, not a section of settings.")
    values[last] = value


def _problem(cls: type[Settings], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        told = (
            item["msg"].replace("a valid tuple", 'a list, such as ["a", "b"]').replace("a valid dictionary", "a table")
        )
        return f"{where}: {told} (found {item['input']!r})"
    known: Any = cls
    for part in item["loc"][:-1]:
        known = known.model_fields[part].annotation if hasattr(known, "model_fields") else None
    names = ", ".join(known.model_fields) if hasattr(known, "model_fields") else "those in the documentation"
    return f"unknown setting {where}; known here are {names}"
