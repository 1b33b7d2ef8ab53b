"""The weights that come with the package, each a folder in ``weights/``: a checkpoint and what must be known of it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from openbrainmass.durable import read_json
from openbrainmass.errors import OpenBrainMassError

_FOLDER = Path(str(resources.files("openbrainmass.model"))) / "weights"


def pretrained_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/card.json"))


def pretrained_folder(name: str) -> Path | None:
    """Where the weights of that name are; None where nothing is called so."""
    return _FOLDER / name if name in pretrained_names() else None


def pretrained_line(name: str) -> str:
    """One line about weights: atlas, whom they were learnt from, licence."""
    card = read_json(_FOLDER / name / "card.json")
    facts = card["facts"]
    return (
        f"{name}: {card['atlas']['name']} ({card['n_rois']} ROIs), {facts['n_recordings']:,} recordings of "
        f"{facts['n_people']:,} people ({', '.join(facts['datasets'])}), {facts['licence']}"
    )


def model_card(name: str) -> str:
    """The model card: data, preprocessing, measured quality, intended and forbidden use, licence.

    Raises
    ------
    OpenBrainMassError
        If no weights of that name come with the package.
    """
    folder = pretrained_folder(name)
    if folder is None:
        raise OpenBrainMassError(
            f"No weights called {name!r} come with this package; it has {', '.join(pretrained_names())}. Name one of "
            "those, or give the folder of a run to --checkpoint."
        )
    return (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
