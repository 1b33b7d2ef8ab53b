"""Do the shipped weights tell who was in the pretraining? Homer's attack (2008) on encoders learnt from some of the people.

    OMP_NUM_THREADS=1 python benchmarks/quality/membership.py ABIDE CNI

Both are stores made by `openbrainmass cohort`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from openbrainmass.cohort.store import load_cohort
from openbrainmass.connectivity import correlation
from openbrainmass.model.settings import preset
from openbrainmass.model.tangent import LEAST_RECORDINGS, TangentEncoder, between_sites, whitening

ENCODER = preset("tangent").encoder


def membership(stores: list[Path]) -> None:
    """Homer's attack (2008): is a person nearer to what the weights say of the mean than to the mean of other people?

    The attacker has the person's FC and site, the weights, and the FC and sites of 110 other people, none of whom
    pretrained, from whom the same weights are made. 115 more are the non-members. The more people pretrain, the less each of
    them shows.
    """
    cohorts = [load_cohort(path) for path in stores]
    fc = torch.from_numpy(np.stack([correlation(bold) for cohort in cohorts for bold in cohort]))
    sites = np.concatenate([cohort.table["site"].to_numpy(str) for cohort in cohorts])
    encoder, rows = TangentEncoder(fc.shape[1], ENCODER), []
    encoder.whitener = whitening(encoder.shrunk(fc.mean(0)[None])[0], ENCODER.modes).float()
    tokens = torch.cat([encoder.logarithms(some.float()) for some in fc.split(64)])
    n_rois, shrunk = fc.shape[1], encoder.shrunk(fc)
    for n_members, modes, site_modes in (
        *((n, ENCODER.modes, ENCODER.site_modes) for n in (200, 400, 800)),
        *((400, 1, 0), (400, 3, 0), (400, 10, 0), (400, n_rois, 0), (400, 1, 8), (800, 1, 0), (800, 1, 8)),
    ):
        for seed in range(10):
            order = np.random.default_rng(seed).permutation(len(fc))
            member, known, stranger = np.split(order[: n_members + 225], [n_members, n_members + 110])
            asked = np.r_[member, stranger]
            attacks = attacks_on_modes(shrunk, member, known, asked, modes)
            if site_modes:
                attacks += attacks_on_sites(tokens, sites, member, known, asked, site_modes)
            truth = np.arange(len(asked)) < n_members
            best = max(roc_auc_score(y_true=truth, y_score=attack.numpy()) for attack in attacks)
            kept = {"modes": "all" if modes == n_rois else modes, "site modes": site_modes}
            rows.append({"members": n_members, **kept, "auc": best})
    found = (
        pd.DataFrame(rows).groupby(["members", "modes", "site modes"], sort=False)["auc"].agg(["mean", "std", "max"])
    )
    print(f"115 others; the strongest attack, ten draws\n{found.round(3).to_string()}")


def attacks_on_modes(
    shrunk: torch.Tensor, member: np.ndarray, known: np.ndarray, asked: np.ndarray, modes: int
) -> list[torch.Tensor]:
    """What the whitener gives away of the mean FC, compared with a person's FC as it is and whitened."""
    means = [shrunk[group].mean(0).double() for group in (member, known)]
    told = [torch.linalg.inv(torch.linalg.matrix_power(whitening(mean, modes), 2)) for mean in means]
    difference, apart = told[0] - told[1], shrunk[asked].double() - means[1]
    full = whitening(means[1], shrunk.shape[1])
    return [(apart * difference).sum((1, 2)), ((full @ apart @ full) * (full @ difference @ full)).sum((1, 2))]


def attacks_on_sites(
    tokens: torch.Tensor, sites: np.ndarray, member: np.ndarray, known: np.ndarray, asked: np.ndarray, n_modes: int
) -> list[torch.Tensor]:
    """How much of a person lies along the site modes: as it is, within the site, and beyond one's own modes."""
    told, own = (site_modes_of(tokens[group], sites[group])[:n_modes] for group in (member, known))
    apart = tokens - tokens[known].mean(0)
    length = (apart**2).sum((1, 2))
    share = torch.einsum("nij,kij->nk", apart, told).square().sum(1) / length
    by_own = torch.einsum("nij,kij->nk", apart, own).square().sum(1) / length
    usual = {name: share[known[sites[known] == name]].mean() for name in np.unique(sites[known])}
    within = share - torch.stack([usual.get(name, share[known].mean()) for name in sites])
    return [share[asked], within[asked], (share - by_own)[asked]]


def site_modes_of(tokens: torch.Tensor, sites: np.ndarray) -> torch.Tensor:
    """Site modes of people, as `learn_tangent` has them."""
    names, counts = np.unique(sites, return_counts=True)
    names, counts = names[counts >= LEAST_RECORDINGS], counts[counts >= LEAST_RECORDINGS]
    sums = torch.stack([tokens[sites == name].sum(0) for name in names])
    return between_sites(sums, torch.from_numpy(counts))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+")
    torch.set_num_threads(1)
    membership(parser.parse_args().stores)


if __name__ == "__main__":
    main()
