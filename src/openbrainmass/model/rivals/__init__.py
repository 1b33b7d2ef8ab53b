"""Supervised networks of other groups, to compare with on the same folds."""

from __future__ import annotations

from typing import Any

from sklearn.pipeline import make_pipeline

from openbrainmass.evaluation.baselines import Connectome
from openbrainmass.model.rivals.brain_net_cnn import BrainNetCNN
from openbrainmass.model.rivals.brain_network_transformer import BrainNetworkTransformer
from openbrainmass.model.rivals.mean_mlp import MeanMLP
from openbrainmass.model.rivals.training import NetworkClassifier


def rival_networks(seed: int = 0) -> dict[str, Any]:
    """Three supervised networks of the literature, ready for `evaluate`.

    Parameters
    ----------
    seed : int
        Of weights, order, dropout and the inner split.

    Returns
    -------
    dict of str to classifier
        BrainNetCNN and Brain Network Transformer, which share their FC, and meanMLP, which reads the BOLD.
    """
    by_edge = {
        "BrainNetCNN": NetworkClassifier(BrainNetCNN, epochs=3, learning_rate=3e-4, batch_size=4, seed=seed),
        "Brain Network Transformer": NetworkClassifier(
            BrainNetworkTransformer, epochs=2, learning_rate=2e-4, seed=seed
        ),
    }
    by_volume = NetworkClassifier(MeanMLP, epochs=10, learning_rate=5e-3, batch_size=64, seed=seed)
    shared = {name: make_pipeline(Connectome("correlation"), network) for name, network in by_edge.items()}
    return {**shared, "meanMLP": by_volume}
