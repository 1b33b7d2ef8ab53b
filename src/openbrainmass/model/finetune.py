"""`FineTuneClassifier`: a pretrained encoder whose weights move for one task, as a scikit-learn classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import nn
from torch.nn import functional

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Recordings, accept_recordings
from openbrainmass.evaluation.tuning import PeopleFolds
from openbrainmass.model.checkpoint import Checkpoint, open_checkpoint
from openbrainmass.model.embedder import (
    check_atlas,
    checked_device,
    checked_recording,
    embed,
    fc_batches,
    is_fc,
    recording_fc,
    recording_names,
)
from openbrainmass.model.encoder import Encoder
from openbrainmass.model.lora import add_updates, merge_updates, updates
from openbrainmass.model.pseudo_fc import pseudo_fc_batch

LAYERS = ("all", "last", "head", "lora")
"""What `FineTuneClassifier` can move."""

HEAD_C = 1e-4
"""Inverse penalty of the logistic regression that the head starts as.

So strong a penalty leaves the training people in doubt, and doubt is the gradient that moves the encoder: with 1e-3 the
held-out AUC of three simulated cohorts was 0.04 lower.
"""

_WEIGHT_DECAY = 1e-2
_LARGEST_GRADIENT = 1.0
_RISING_STEPS = 10
_HEAD_RATE = 0.1
_EMBED_BATCH = 64
_INNER_FOLDS = 5
"""Of which one is held out for early stopping."""


class FineTuneClassifier(ClassifierMixin, BaseEstimator):
    """Classify recordings by an encoder that is trained on for the task.

    The head starts as the logistic regression on the frozen embedding, so that training begins where the frozen
    encoder ends; then head and encoder move together, each recording seen as a fresh pseudo-FC in every epoch.

    Parameters
    ----------
    checkpoint : Checkpoint or path
        Where the encoder starts.
    epochs : int
        Passes over the training recordings.
    learning_rate : float
        Of AdamW for the encoder; a tenth of it for the head unless that moves alone. It falls to zero along a cosine.
    layers : {"all", "last", "head", "lora"}
        What moves: everything; the last transformer layer, the readout and the head; the head alone; or the head and
        low-rank updates of every layer's attention projections and feed-forward matrices (LoRA: Hu et al., ICLR 2022),
        which are added to the weights when training has ended.
    share : float
        Share of the volumes left out of each pseudo-FC; 0 shows every recording whole.
    batch_size : int
        Recordings a step.
    seed : int
        Decides order, views and dropout.
    device : str
        ``"cpu"``, ``"cuda"``...
    rank : int
        Rank of the updates that ``layers="lora"`` learns.
    patience : int, optional
        Stop early: a fifth of the training people, of every class, is held out; when the cross-entropy of their whole
        recordings has not improved for so many epochs, training ends, and the weights of the best epoch are kept. Without
        it everyone is trained on for all epochs.

    Attributes
    ----------
    classes_ : ndarray
        Labels, sorted; for two, positive scores mean the second.
    model_ : Module
        Encoder and head after training, on the CPU.
    checkpoint_ : Checkpoint
        The checkpoint that was trained on.
    fitted_identities_ : frozenset of str
        Hashes of the training people and recordings; empty where `fit` was given arrays without names.
    loss_ : ndarray (epochs,)
        Mean cross-entropy of each epoch that was run.
    validation_loss_ : ndarray (epochs + 1,)
        Mean cross-entropy of the held-out people before training and after each epoch that was run; empty without
        patience.
    n_epochs_ : int
        The epoch whose weights were kept; 0 is the frozen encoder with the head it starts as.
    """

    __metadata_request__fit = {"groups": True}

    def __init__(
        self,
        checkpoint: Checkpoint | str | Path,
        epochs: int = 20,
        learning_rate: float = 1e-3,
        layers: Literal["all", "last", "head", "lora"] = "all",
        share: float = 0.2,
        batch_size: int = 16,
        seed: int = 0,
        device: str = "cpu",
        rank: int = 4,
        patience: int | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.layers = layers
        self.share = share
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.rank = rank
        self.patience = patience

    @property
    def seen_identities(self) -> frozenset[str]:
        """Hashes of whom pretraining saw and, once fitted on a cohort, of whom `fit` saw (see `Cohort.identities`)."""
        return open_checkpoint(self.checkpoint).seen_identities | getattr(self, "fitted_identities_", frozenset())

    def fit(self, X: Recordings, y: np.ndarray, groups: Any = None) -> Self:
        """Train on.

        Parameters
        ----------
        X : Cohort, sequence of ndarray (n_volumes_i, n_rois), or ndarray (n, n_rois, n_rois)
            As for `Embedder.transform`. FC matrices cannot be augmented and are shown as they are.
        y : array (n,)
            Labels of two or more classes.
        groups : array (n,), optional
            The person of each recording, whom patience holds out whole; without it each recording is a person.

        Raises
        ------
        OpenBrainMassError
            If recordings or labels cannot be used, nobody can be held out, or training becomes non-finite.
        """
        self._check_parameters()
        checkpoint = open_checkpoint(self.checkpoint)
        encoder = checkpoint.transformer()
        check_atlas(X, checkpoint.atlas)
        self.classes_, targets = checked_labels(y, len(X))
        device = checked_device(self.device)
        rows, held_out = self._sides(X, targets, groups, checkpoint)
        # A generator of its own, so that training neither follows nor moves the caller's random numbers.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            frozen = embed(X, checkpoint, _EMBED_BATCH, self.device)
            model = self._start(encoder, frozen[rows], targets[rows]).to(device)
            self.loss_ = self._train(model, X, torch.from_numpy(targets), rows, checkpoint, held_out)
        if self.layers == "lora":
            merge_updates(encoder)
        self.n_epochs_ = self.epochs if held_out is None else held_out.best
        self.validation_loss_ = np.array([] if held_out is None else held_out.losses)
        self.model_ = model.cpu().eval()
        self.checkpoint_ = checkpoint
        self.fitted_identities_ = frozenset().union(*X.identities()) if isinstance(X, Cohort) else frozenset()
        return self

    def decision_function(self, X: Recordings) -> np.ndarray:
        """Scores of whole recordings, nothing left out.

        Returns
        -------
        ndarray (n,) for two classes (positive means ``classes_[1]``), else (n, n_classes)
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Recordings) -> np.ndarray:
        """Probability of each class, ``(n, n_classes)``, in the order of ``classes_``; not calibrated."""
        logits = self._logits(X)
        exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponential / exponential.sum(axis=1, keepdims=True)

    def predict(self, X: Recordings) -> np.ndarray:
        """Most probable class of each recording, ``(n,)``."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def _logits(self, X: Recordings) -> np.ndarray:
        check_is_fitted(self)
        check_atlas(X, self.checkpoint_.atlas)
        device = checked_device(self.device)
        model = self.model_.to(device)
        with torch.inference_mode():
            batches = fc_batches(X, self.checkpoint_, _EMBED_BATCH)
            logits = [model(torch.from_numpy(fc).to(device)).cpu().numpy() for fc in batches]
        model.cpu()
        return np.concatenate(logits).astype(np.float64)

    def _check_parameters(self) -> None:
        if self.layers not in LAYERS:
            raise OpenBrainMassError(f"layers is {self.layers!r}; choose one of {', '.join(LAYERS)}.")
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise OpenBrainMassError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, learning_rate={self.learning_rate} cannot train; "
                "epochs and batch_size must be at least 1 and learning_rate above 0."
            )
        if self.rank < 1 or (self.patience is not None and self.patience < 1):
            raise OpenBrainMassError(
                f"rank={self.rank}, patience={self.patience} cannot be used; give a rank of at least 1, and a patience of "
                "at least 1 epoch or None."
            )

    def _sides(
        self, X: Recordings, targets: np.ndarray, groups: Any, checkpoint: Checkpoint
    ) -> tuple[np.ndarray, _HeldOut | None]:
        """Rows to train on, (n_rows,), and what is held out of the others."""
        if self.patience is None:
            return np.arange(len(targets)), None
        rows, others = _divide_people(self.classes_, targets, groups, self.seed)
        names = recording_names(X)
        fc = np.stack([recording_fc(X[row], names[row], checkpoint) for row in others.tolist()])
        return rows, _HeldOut(torch.from_numpy(fc), torch.from_numpy(targets[others]))

    def _start(self, encoder: Encoder, frozen: np.ndarray, targets: np.ndarray) -> _Classifier:
        """Encoder and head before training, from embeddings (n, embedding_size) and class numbers (n,)."""
        head = _Head(frozen, targets, len(self.classes_))
        if self.layers == "lora":
            add_updates(encoder, self.rank)
        return _Classifier(encoder, head)

    def _train(
        self,
        model: _Classifier,
        X: Recordings,
        targets: torch.Tensor,
        rows: np.ndarray,
        checkpoint: Checkpoint,
        held_out: _HeldOut | None,
    ) -> np.ndarray:
        moving = _choose_layers(model, self.layers)
        optimiser = self._optimiser(model)
        n_steps = self.epochs * math.ceil(len(rows) / self.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, n_steps))
        losses: list[float] = []
        if held_out is not None:
            held_out.judge(model)
        model.train()
        for epoch in range(self.epochs):
            losses.append(0.0)
            for batch in self._batches(rows, epoch):
                loss = self._loss(model, X, targets, batch, epoch, checkpoint)
                losses[-1] += loss.item() * len(batch) / len(rows)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(moving, _LARGEST_GRADIENT)
                optimiser.step()
                schedule.step()
            self._check_finite(losses[-1], epoch)
            if held_out is not None:
                self._check_finite(held_out.judge(model), epoch)
                if held_out.epochs_since_best == self.patience:
                    break
        if held_out is not None:
            held_out.restore_best(model)
        return np.array(losses)

    def _optimiser(self, model: _Classifier) -> torch.optim.Optimizer:
        # Beside a moving encoder the head goes slowly, or it learns the training people by heart first.
        head_rate = self.learning_rate * (1 if self.layers == "head" else _HEAD_RATE)
        slow = {"params": list(model.head.parameters()), "lr": head_rate}
        fast = {"params": [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]}
        return torch.optim.AdamW([slow, fast], lr=self.learning_rate, weight_decay=_WEIGHT_DECAY, foreach=True)

    def _loss(
        self,
        model: _Classifier,
        X: Recordings,
        targets: torch.Tensor,
        batch: np.ndarray,
        epoch: int,
        checkpoint: Checkpoint,
    ) -> torch.Tensor:
        device = model.head.mean.device
        fc = self._views(X, batch, epoch, checkpoint).to(device)
        return functional.cross_entropy(model(fc), targets[batch].to(device))

    def _check_finite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise OpenBrainMassError(
                f"The loss became {loss} in epoch {epoch + 1} of fine-tuning; finite values were "
                f"expected. Lower learning_rate (now {self.learning_rate})."
            )

    def _batches(self, rows: np.ndarray, epoch: int) -> Iterator[np.ndarray]:
        order = rows[np.random.default_rng([self.seed, epoch]).permutation(len(rows))]
        return (order[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size))

    def _views(self, X: Recordings, rows: np.ndarray, epoch: int, checkpoint: Checkpoint) -> torch.Tensor:
        return torch.from_numpy(np.stack([self._view(X[row], row, epoch, checkpoint) for row in rows.tolist()]))

    def _view(self, recording: np.ndarray, row: int, epoch: int, checkpoint: Checkpoint) -> np.ndarray:
        array = checked_recording(recording, row, checkpoint.atlas)
        if is_fc(array):
            return recording_fc(array, row, checkpoint)
        views = checkpoint.settings.views
        return pseudo_fc_batch(
            [array], [row], 1, views.augmentation, self.share, views.estimator, seed=self.seed, epoch=epoch
        )[0, 0]

    def __sklearn_tags__(self) -> Tags:
        return accept_recordings(super().__sklearn_tags__())


class _Classifier(nn.Module):
    """Encoder, standardised embedding, linear head."""

    def __init__(self, encoder: Encoder, head: _Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, fc: torch.Tensor) -> torch.Tensor:
        """FC ``(n, n_rois, n_rois)`` in, logits ``(n, n_classes)`` out."""
        return self.head(self.encoder(fc))


class _Head(nn.Module):
    """A linear classifier of the embedding, standardised by what the frozen encoder gave for the training people."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, embedding: np.ndarray, targets: np.ndarray, n_classes: int) -> None:
        super().__init__()
        mean, scale = embedding.mean(axis=0), embedding.std(axis=0) + 1e-6
        probe = LogisticRegression(C=HEAD_C, max_iter=1000).fit((embedding - mean) / scale, targets)
        weight, bias = probe.coef_, probe.intercept_
        if n_classes == 2:
            # One row of weights decides between two classes; halves of opposite sign give the same probabilities.
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("scale", torch.from_numpy(scale))
        self.linear = nn.Linear(weight.shape[1], n_classes)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(weight))
            self.linear.bias.copy_(torch.from_numpy(bias))

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Embedding ``(n, dim)`` in, logits ``(n, n_classes)`` out."""
        return self.linear((embedding - self.mean) / self.scale)


class _HeldOut:
    """Recordings of people who are not trained on, and the weights that told them apart best.

    Parameters
    ----------
    fc : Tensor (n, n_rois, n_rois)
        FC of whole recordings.
    targets : Tensor (n,)
        Their class numbers.

    Attributes
    ----------
    losses : list of float
        Mean cross-entropy each time that `judge` was called: before training, then after each epoch.
    best : int
        Which of them is the least (the earliest of equal ones).
    """

    def __init__(self, fc: torch.Tensor, targets: torch.Tensor) -> None:
        self.losses: list[float] = []
        self.best = 0
        self._fc = fc
        self._targets = targets
        self._weights: list[torch.Tensor] = []

    @property
    def epochs_since_best(self) -> int:
        return len(self.losses) - 1 - self.best

    def judge(self, model: _Classifier) -> float:
        """Mean cross-entropy by a model, whose moving weights are kept where it is the least so far."""
        device = model.head.mean.device
        model.eval()
        with torch.inference_mode():
            logits = torch.cat([model(some.to(device)).cpu() for some in self._fc.split(_EMBED_BATCH)])
            loss = functional.cross_entropy(logits, self._targets).item()
        model.train()
        if not self.losses or loss < self.losses[self.best]:
            self.best = len(self.losses)
            self._weights = [parameter.detach().clone() for parameter in _moving(model)]
        self.losses.append(loss)
        return loss

    def restore_best(self, model: _Classifier) -> None:
        """Set the moving weights to what they were when the loss was the least."""
        with torch.no_grad():
            for parameter, kept in zip(_moving(model), self._weights, strict=True):
                parameter.copy_(kept)


def _divide_people(classes: np.ndarray, targets: np.ndarray, groups: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to hold out: whole people, and every class on both sides."""
    groups = np.arange(len(targets)) if groups is None else np.asarray(groups)
    if groups.shape != targets.shape:
        raise OpenBrainMassError(
            f"{len(targets)} recordings were given with groups of shape {groups.shape}; give the person of each."
        )
    people = [len(np.unique(groups[targets == number])) for number in range(len(classes))]
    # With one person PeopleFolds would hold out those it also trains on.
    folds = PeopleFolds(_INNER_FOLDS, seed).split(targets, targets, groups) if min(people) > 1 else iter(())
    for rows, others in folds:
        # People with recordings of several classes can leave a side without one of them.
        if len(np.unique(targets[rows])) == len(np.unique(targets[others])) == len(classes):
            return rows, others
    fewest = int(np.argmin(people))
    raise OpenBrainMassError(
        f"The class {classes[fewest]} has {people[fewest]} of the {len(np.unique(groups))} training people; patience needs "
        "people of every class to hold out and others to train on. Give more people of each class, or leave patience=None."
    )


def _choose_layers(model: _Classifier, layers: str) -> list[nn.Parameter]:
    """Freeze what shall not move and return what moves."""
    moving: list[nn.Module] = [model.head]
    if layers == "last":
        moving += [model.encoder.layers[-1], model.encoder.readout]
    elif layers == "all":
        moving += [model.encoder]
    elif layers == "lora":
        moving += updates(model.encoder)
    model.requires_grad_(False)
    for module in moving:
        module.requires_grad_(True)
    return _moving(model)


def _moving(model: _Classifier) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _rate(step: int, n_steps: int) -> float:
    """Share of the learning rate: a short rise, then a cosine to zero."""
    return min(1.0, (step + 1) / _RISING_STEPS) * 0.5 * (1 + math.cos(math.pi * step / n_steps))


def checked_labels(y: np.ndarray, n_recordings: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes, sorted, and the class number of each recording, (n_recordings,); at least two classes."""
    labels = column_or_1d(y)
    if len(labels) != n_recordings:
        raise OpenBrainMassError(f"{n_recordings} recordings were given with {len(labels)} labels; give one for each.")
    check_classification_targets(labels)
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise OpenBrainMassError(
            f"All {n_recordings} recordings have the label {classes[0]!r}; a classifier needs at least two classes."
        )
    return classes, targets.astype(np.int64)
