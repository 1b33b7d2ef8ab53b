"""Attributions of a decision value to edges: integrated gradients through scaler, probe and encoder.

A fitted scikit-learn probe is written again in torch, checked against the original on the data it is used for, and
differentiated together with what turns FC into its features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from captum.attr import IntegratedGradients
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.connectivity import fisher_z, vectorize
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Connectome
from openbrainmass.evaluation.probes import PrototypeProbe, SupportVectorProbe
from openbrainmass.model.checkpoint import open_checkpoint
from openbrainmass.model.embedder import Embedder, check_atlas, fc_batches

Differentiable = Callable[[torch.Tensor], torch.Tensor]
"""Features (n, n_features) to decision values (n,), or one step of that."""

_BATCH = 32
_LARGEST_MISMATCH = 1e-3


class Front(Protocol):
    """What turns FC into features, and a gradient with respect to its input into edges."""

    is_linear_in_inputs: bool
    n_steps: int
    """Points on the path that integrate a gradient well enough at a bearable cost."""

    def inputs(self, cohort: Cohort) -> torch.Tensor:
        """What is attributed to, one row a recording."""
        ...

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features (n, n_features) of inputs; differentiable."""
        ...

    def edges(self, attributions: torch.Tensor) -> torch.Tensor:
        """Attributions to the inputs as (n, n_edges)."""
        ...

    def correlations(self, inputs: torch.Tensor) -> torch.Tensor:
        """The inputs themselves as (n, n_edges) correlations."""
        ...


class EdgeFront:
    """Fisher-z edges. For a linear probe the attribution is exact: weight times difference in Fisher z."""

    is_linear_in_inputs = True
    n_steps = 24

    def __init__(self, connectome: Connectome) -> None:
        self.connectome = connectome

    def inputs(self, cohort: Cohort) -> torch.Tensor:
        """Edges (n, n_edges), as correlations."""
        return torch.from_numpy(np.stack([vectorize(self.connectome.matrices([bold])[0]) for bold in cohort]))

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Fisher z of the edges."""
        return fisher_z(inputs)

    def edges(self, attributions: torch.Tensor) -> torch.Tensor:
        """Unchanged: the inputs are the edges."""
        return attributions

    def correlations(self, inputs: torch.Tensor) -> torch.Tensor:
        """Unchanged."""
        return inputs


class EncoderFront:
    """The frozen encoder of a checkpoint."""

    is_linear_in_inputs = False

    def __init__(self, embedder: Embedder) -> None:
        self.checkpoint = open_checkpoint(embedder.checkpoint)
        # Along the way from the mean FC a transformer of logarithms bends more: with 8 steps 5 % would be missing.
        self.n_steps = 24 if self.checkpoint.settings.encoder.input == "logarithm" else 8
        self.device = torch.device(embedder.device)
        self.encoder = self.checkpoint.encoder().requires_grad_(False).to(self.device)

    def inputs(self, cohort: Cohort) -> torch.Tensor:
        """FC (n, n_rois, n_rois) by the checkpoint's own estimator."""
        check_atlas(cohort, self.checkpoint.atlas)
        return torch.from_numpy(np.concatenate(list(fc_batches(cohort, self.checkpoint, _BATCH))))

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Embeddings."""
        return self.encoder(inputs.to(self.device)).to(inputs.device)

    def edges(self, attributions: torch.Tensor) -> torch.Tensor:
        """An edge stands in the FC twice; its attribution is that of both places."""
        return vectorize(attributions + attributions.transpose(-1, -2))

    def correlations(self, inputs: torch.Tensor) -> torch.Tensor:
        """Upper triangles."""
        return vectorize(inputs)


def front_of(step: Any) -> Front:
    """The front of a pipeline's first step.

    Raises
    ------
    OpenBrainMassError
        If the step makes features that no edge can be held responsible for.
    """
    if isinstance(step, Embedder):
        return EncoderFront(step)
    if isinstance(step, Connectome) and step.kind == "fisher-z":
        return EdgeFront(step)
    raise OpenBrainMassError(
        f"A model that starts with {step!r} cannot be explained edge by edge; the first step must be "
        "Embedder(checkpoint) or Connectome('fisher-z'). Explain the pipeline with one of those."
    )


def flat_steps(estimator: Any) -> list[Any]:
    """Steps of a pipeline, pipelines within it laid open, in order."""
    if not isinstance(estimator, Pipeline):
        return [] if estimator in (None, "passthrough") else [estimator]
    return [step for _, own in estimator.steps for step in flat_steps(own)]


class Decision:
    """The decision value of fitted scalers and a probe, in torch.

    Parameters
    ----------
    steps : sequence of fitted estimators
        Transformers, then a two-class classifier.

    Attributes
    ----------
    is_linear : bool
        Whether the decision value is a linear function of the features.

    Raises
    ------
    OpenBrainMassError
        If a step cannot be differentiated.
    """

    def __init__(self, steps: Sequence[Any]) -> None:
        self.transforms = [_transform(step) for step in steps[:-1]]
        self.value, self.is_linear = _classifier(steps[-1])

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Features (n, n_features) to decision values (n,)."""
        for transform in self.transforms:
            features = transform(features)
        return self.value(features)

    def weights(self, n_features: int) -> torch.Tensor:
        """Gradient (n_features,) of a linear decision value."""
        origin = torch.zeros(1, n_features, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(self(origin).sum(), origin)[0][0]


def checked_decision(fitted: Pipeline, features: np.ndarray) -> Decision:
    """Write a fitted pipeline in torch, and make sure that it says the same as the original.

    Raises
    ------
    OpenBrainMassError
        If a step cannot be differentiated, or the decision values differ.
    """
    decision = Decision(flat_steps(fitted))
    original = np.asarray(fitted.decision_function(features), dtype=float).reshape(-1)
    with torch.no_grad():
        ours = decision(torch.from_numpy(np.asarray(features, dtype=np.float64))).numpy()
    if np.abs(ours - original).max() > _LARGEST_MISMATCH * max(1.0, float(np.abs(original).max())):
        raise OpenBrainMassError(
            f"The decision values of {type(flat_steps(fitted)[-1]).__name__} could not be reproduced from its fitted "
            "attributes, so their gradients would be wrong. Use a probe of PROBES, or another linear classifier or SVC."
        )
    return decision


def attributions(
    front: Front, decision: Decision, inputs: torch.Tensor, baseline: torch.Tensor, n_steps: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield attributions (n, n_edges) of the decision values of inputs, a batch of recordings at a time.

    Parameters
    ----------
    front : Front
    decision : Decision
    inputs : Tensor (n_recordings, ...)
        From `Front.inputs`.
    baseline : Tensor (...)
        Where every path starts: the mean input of the training people.
    n_steps : int
        Points of the Gauss-Legendre rule on the straight path.

    Yields
    ------
    slice, ndarray (n, n_edges)
        Which recordings, and each edge's part of ``decision(input) - decision(baseline)``.

    References
    ----------
    Sundararajan et al., 2017, "Axiomatic attribution for deep networks".
    """
    if front.is_linear_in_inputs and decision.is_linear:
        weights = decision.weights(front.features(baseline[None]).shape[1])
        origin = front.features(baseline[None])
        for start in range(0, len(inputs), _BATCH):
            part = slice(start, start + _BATCH)
            yield part, (weights * (front.features(inputs[part]) - origin)).numpy()
        return
    method = IntegratedGradients(lambda fc: decision(front.features(fc)), multiply_by_inputs=True)
    for start in range(0, len(inputs), _BATCH):
        part = slice(start, start + _BATCH)
        found = method.attribute(
            inputs[part], baseline[None], n_steps=n_steps, method="gausslegendre", internal_batch_size=2 * _BATCH
        )
        yield part, front.edges(found).detach().numpy().astype(np.float64)


def _transform(step: BaseEstimator) -> Differentiable:
    if isinstance(step, StandardScaler):
        mean = _tensor(step.mean_ if step.with_mean else 0.0)
        scale = _tensor(step.scale_ if step.with_std else 1.0)
        return lambda features: (features - mean.to(features)) / scale.to(features)
    if isinstance(step, PCA):
        mean, axes = _tensor(step.mean_), _tensor(step.components_.T)
        axes = axes / _tensor(np.sqrt(step.explained_variance_)) if step.whiten else axes
        return lambda features: (features - mean.to(features)) @ axes.to(features)
    raise OpenBrainMassError(
        f"{type(step).__name__} stands between the features and the probe and cannot be differentiated here. Use "
        "StandardScaler or PCA there, or leave the step out."
    )


def _classifier(probe: BaseEstimator) -> tuple[Differentiable, bool]:
    if isinstance(probe, PrototypeProbe):
        return _prototype(probe), False
    if isinstance(probe, SupportVectorProbe):
        return _kernel_expansion(probe, probe.gamma_), False
    if isinstance(probe, SVC) and probe.kernel == "rbf":
        # scikit-learn keeps the width that gamma="scale" came to under a private name only.
        return _kernel_expansion(probe, probe._gamma), False
    coef = getattr(probe, "coef_", None)
    if coef is None or not hasattr(probe, "decision_function"):
        raise OpenBrainMassError(
            f"{type(probe).__name__} cannot be differentiated: it has neither linear weights (coef_) nor an RBF kernel "
            "expansion. Explain a probe of PROBES, another linear classifier, or SVC."
        )
    weights, intercept = _tensor(np.asarray(coef).reshape(-1)), _tensor(np.asarray(probe.intercept_).reshape(-1))
    return (lambda features: features @ weights.to(features) + intercept.to(features)), True


def _kernel_expansion(probe: Any, gamma: float) -> Differentiable:
    vectors, dual = _tensor(probe.support_vectors_), _tensor(np.asarray(probe.dual_coef_).reshape(-1))
    intercept = _tensor(np.asarray(probe.intercept_).reshape(-1))

    def value(features: torch.Tensor) -> torch.Tensor:
        own = vectors.to(features)
        squared = (features**2).sum(1, keepdim=True) + (own**2).sum(1) - 2 * features @ own.T
        return torch.exp(-gamma * squared) @ dual.to(features) + intercept.to(features)

    return value


def _prototype(probe: PrototypeProbe) -> Differentiable:
    prototypes = _tensor(probe.prototypes_)

    def value(features: torch.Tensor) -> torch.Tensor:
        own = prototypes.to(features)
        if probe.metric == "cosine":
            similarity = torch.nn.functional.normalize(features, dim=1) @ torch.nn.functional.normalize(own, dim=1).T
        else:
            similarity = -torch.linalg.vector_norm(features[:, None] - own, dim=2)
        return similarity[:, 1] - similarity[:, 0]

    return value


def _tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))
