"""The weights in the package open by name, are unharmed, say what they are, and beat the edges where real data is at hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from typer.testing import CliRunner

from openbrainmass.atlas import numbered_atlas
from openbrainmass.cli import app
from openbrainmass.cohort.build import build_store
from openbrainmass.cohort.layouts.read import read_source
from openbrainmass.cohort.store import load_cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Connectome
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.tasks import Task
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder
from openbrainmass.model.pretrained import model_card, pretrained_folder, pretrained_line, pretrained_names

NAME = "openbrainmass-cc200"
LARGEST_MIB = 25
REFERENCE = (-0.53003, -0.03536, 0.0053, -0.44829)
"""Some values of the embedding of a random walk: pretrained weights must not change under their name."""


@pytest.mark.parametrize("name", pretrained_names())
def test_weights_open_by_name_and_say_what_they_are(name):
    checkpoint = Checkpoint.load(name)
    assert checkpoint.seen_identities
    assert checkpoint.facts["licence"] == "CC BY-NC 4.0"
    assert checkpoint.atlas.coords_mm is not None
    assert name in pretrained_line(name)
    card = model_card(name)
    for heading in ("Data", "Preprocessing", "Results", "Membership", "Intended use", "Not for", "Licence", "Rebuild"):
        assert f"## {heading}" in card
    size = sum(path.stat().st_size for path in pretrained_folder(name).iterdir())
    assert size < LARGEST_MIB * 2**20


def test_the_card_holds_no_persons_name_or_number():
    text = (pretrained_folder(NAME) / "card.json").read_text()
    assert "sub-" not in text
    assert all(set(identity) <= set("0123456789abcdef") for identity in Checkpoint.load(NAME).identities)


def test_the_reference_embedding_has_not_changed():
    bold = np.random.default_rng(0).normal(size=(120, 200)).cumsum(axis=0)
    embedding = Embedder.from_pretrained(NAME).transform([bold])[0]
    assert embedding.shape == (20100,)
    np.testing.assert_allclose(embedding[[0, 1, 5000, 20099]], REFERENCE, atol=2e-4)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(OpenBrainMassError, match=f"weights that come with the package \\({NAME}\\)"):
        Checkpoint.load("openbrainmass-cc400")
    with pytest.raises(OpenBrainMassError, match=f"it has {NAME}"):
        model_card("nothing")


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    own = Checkpoint.untrained(numbered_atlas("Mine", 6), Checkpoint.load(NAME).settings)
    own.save(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert Checkpoint.load(NAME).atlas.name == "Mine"


def test_the_verb_lists_them_and_shows_a_card():
    listed = CliRunner().invoke(app, ["weights"])
    assert listed.exit_code == 0 and NAME in listed.stdout
    shown = CliRunner().invoke(app, ["weights", NAME])
    assert shown.exit_code == 0 and "## Intended use" in shown.stdout


@pytest.mark.data
@pytest.mark.slow
def test_sex_is_told_better_than_by_edges_in_children_of_another_scanner(data_dir, tmp_path):
    build_store(read_source(data_dir / "cni_cc200", atlas="CC200"), tmp_path / "cni")
    cohort = load_cohort(tmp_path / "cni")
    models = {
        "ours": make_pipeline(Embedder.from_pretrained(NAME), make_probe("ridge")),
        "edges": make_pipeline(Connectome("fisher-z"), make_probe("ridge")),
    }
    results = evaluate(models, cohort, Task.load("sex"), protocols=("k-fold",), n_repeats=2)
    auc = results.metrics().query("metric == 'auc'").set_index("model")["value"]
    assert auc["ours"] > auc["edges"] + 0.05
