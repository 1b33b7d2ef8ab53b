"""Rebuild the weights that come with the package: one command, from stores made by `openbrainmass cohort`.

    OMP_NUM_THREADS=1 python benchmarks/quality/build_weights.py STORE [STORE ...] --out FOLDER

The stores are those of ABIDE I (`--dataset abide1`) and CNI (`--dataset cni-tlc`), both with the atlas CC200. FOLDER receives
``card.json`` and ``weights.safetensors``; MODEL_CARD.md is written by hand, from benchmarks/quality/study.py.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from openbrainmass.cohort.store import load_cohort
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.settings import preset

FACTS = {
    "name": "openbrainmass-cc200",
    "licence": "CC BY-NC 4.0",
    "preprocessing": "C-PAC (ABIDE I: no band-pass, no global-signal regression; CNI: 0.01-0.1 Hz), CC200 parcel means",
}


def main() -> None:
    """Learn the encoder and write it with what must be known of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as run:
        checkpoint = pretrain([load_cohort(store) for store in options.stores], preset("tangent"), Path(run) / "run")
        replace(checkpoint, facts={**checkpoint.facts, **FACTS}).save(options.out)
    print(checkpoint, "->", options.out)


if __name__ == "__main__":
    main()
