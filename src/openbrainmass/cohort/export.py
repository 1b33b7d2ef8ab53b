"""A cohort as a folder of BIDS derivatives that other tools, and this one, can read."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass import __version__
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.staging import unfinished
from openbrainmass.connectivity import correlation
from openbrainmass.durable import MISSING, new_folder, write_json, write_text, write_tsv
from openbrainmass.errors import OpenBrainMassError

_BIDS_ID = re.compile(r"sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9]+)*")
_URL = "https://bids-specification.readthedocs.io/en/stable/common-principles.html"


def export_cohort(cohort: Cohort, out: str | Path) -> Path:
    """Write a cohort as tables: time series, FC, sidecars, people and atlas.

    ``sub-*/[ses-*/]func/*_atlas-<A>_timeseries.tsv`` has one line of ROI names and one line a volume;
    ``*_meas-PearsonCorrelation_relmat.tsv`` the Pearson correlation of every pair of ROIs. Nine digits are written, so
    float16 and float32 values come back exactly. An ROI that is missing is ``n/a`` in both. ``participants.tsv``,
    ``recordings.tsv`` (column ``file``) and ``atlas.tsv`` make the folder one that `openbrainmass cohort` reads.

    Parameters
    ----------
    cohort : Cohort
        What to write.
    out : path
        A folder that does not exist yet; it appears only when everything is written.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OpenBrainMassError
        If the folder exists, is being built or cannot be written, or two recordings would have one name.
    """
    if sentence := unfinished(Path(out)):
        raise OpenBrainMassError(f"{sentence} Or name another output.")
    label = re.sub(r"[^A-Za-z0-9]", "", cohort.atlas.name) or "unnamed"
    recordings = cohort.recordings
    stems = _stems(recordings, label)
    with new_folder(out) as folder:
        for index, (stem, row) in enumerate(zip(stems, recordings.to_dict("records"), strict=True)):
            _write_recording(folder / stem, np.asarray(cohort.bold(index), dtype=np.float32), row, cohort)
        recordings["file"] = [f"{stem}_timeseries.tsv" for stem in stems]
        write_tsv(folder / "recordings.tsv", recordings)
        write_tsv(folder / "participants.tsv", cohort.participants)
        write_tsv(folder / "atlas.tsv", cohort.atlas.table())
        write_tsv(folder / "exclusions.tsv", cohort.exclusions)
        write_json(folder / "dataset_description.json", _description(cohort))
        write_json(folder / f"atlas-{label}_meas-PearsonCorrelation_relmat.json", _MEASURE)
        write_text(folder / ".bidsignore", "recordings.tsv\natlas.tsv\nexclusions.tsv\n*_relmat.*\n")
    return Path(out)


_MEASURE = {
    "Measure": "Pearson correlation",
    "MeasureDescription": "Pearson correlation of the time series of every pair of ROIs, in the order of the header",
    "Weighted": True,
    "Directed": False,
    "ValidDiagonal": True,
    "StorageFormat": "Full",
    "NonNegative": False,
}


def _description(cohort: Cohort) -> dict[str, Any]:
    return {
        "Name": cohort.name,
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "openbrainmass",
                "Version": __version__,
                "Description": f"Parcellated time series with the atlas {cohort.atlas.name} ({cohort.atlas.n_rois} ROIs)",
            }
        ],
        "ReferencesAndLinks": [_URL],
    }


def _stems(recordings: pd.DataFrame, label: str) -> list[str]:
    """Path of each recording's files without their endings."""
    stems = []
    for row in recordings.to_dict("records"):
        name = _name(str(row["recording_id"]), str(row["participant_id"]))
        folders = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
        stems.append("/".join([*folders, "func", f"{name}_atlas-{label}"]))
    repeated = sorted({stem for stem in stems if stems.count(stem) > 1}) if len(set(stems)) < len(stems) else []
    if repeated:
        raise OpenBrainMassError(
            f"Two recordings would both be written to {repeated[0]}_timeseries.tsv, because names of files may have "
            "letters and digits only. Rename recording_id so that they differ in these."
        )
    return stems


def _name(recording_id: str, participant_id: str) -> str:
    """BIDS entities of a recording; an id that is none becomes the entity rec."""
    if _BIDS_ID.fullmatch(recording_id):
        return recording_id
    person = re.sub(r"[^A-Za-z0-9]", "", participant_id.removeprefix("sub-"))
    return f"sub-{person}_rec-{re.sub(r'[^A-Za-z0-9]', '', recording_id)}"


def _write_recording(stem: Path, bold: np.ndarray, row: Mapping[Any, Any], cohort: Cohort) -> None:
    names = list(cohort.atlas.roi_names)
    missing = np.atleast_1d(np.isnan(bold).all(axis=0))
    write_text(stem.with_name(f"{stem.name}_timeseries.tsv"), _table(bold, names))
    sidecar: dict[str, Any] = {"NumberOfVolumes": len(bold), "Atlas": cohort.atlas.name}
    if pd.notna(row.get("tr")):
        sidecar |= {"RepetitionTime": float(row["tr"]), "SamplingFrequency": 1 / float(row["tr"])}
    if missing.any():
        sidecar["MissingROIs"] = [name for name, lost in zip(names, missing, strict=True) if lost]
    if isinstance(row.get("steps"), str):
        sidecar["Steps"] = row["steps"]
    write_json(stem.with_name(f"{stem.name}_timeseries.json"), sidecar)
    fc = np.array(correlation(bold))
    fc[missing] = fc[:, missing] = np.nan
    write_text(stem.with_name(f"{stem.name}_meas-PearsonCorrelation_relmat.tsv"), _table(fc, names))


def _table(values: np.ndarray, names: list[str]) -> str:
    header = io.StringIO()
    csv.writer(header, delimiter="\t", lineterminator="\n").writerow(names)
    # Nine digits tell every float32 from its neighbours.
    line = "\t".join(["%.9g"] * len(names))
    rows = "\n".join(line % tuple(row) for row in values.tolist())
    return f"{header.getvalue()}{rows.replace('nan', MISSING)}\n"
