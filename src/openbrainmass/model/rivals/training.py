"""`NetworkClassifier`: a supervised network with a scikit-learn classifier's interface, trained one way for all of them.

AdamW under a one-cycle learning rate; some of the training people are held out, and the weights of the epoch that told
their classes apart best are kept.

The papers train for up to 200 epochs; here it is two to a dozen, from edges standardised over the training people. With
a few hundred people more epochs bring no better validation, only surer mistakes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn import functional

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Connectome, Recordings, accept_recordings
from openbrainmass.model.embedder import checked_device
from openbrainmass.model.finetune import checked_labels

FEWEST_STEPS = 100
"""Steps that training takes at least: with few people it passes over them more often than `epochs`."""

FEWEST_HELD_OUT = 5
"""People of each class without whom no epoch is chosen: an AUC of fewer is a toss."""

_LARGEST_GRADIENT = 1.0
_RISING_SHARE = 0.2
_WEIGHT_DECAY = 1e-4
_TEST_BATCH = 16


class Network(nn.Module):
    """A network that `NetworkClassifier` can train; of FC, unless it reads recordings otherwise.

    Parameters
    ----------
    n_rois : int
        ROIs of the atlas.
    n_classes : int
        Logits.

    Attributes
    ----------
    standardised : bool
        Whether each value (each edge, of FC) is to have mean 0 and variance 1 over the training recordings. Without it
        what all brains share drowns the rest, and a short training learns nothing.
    """

    standardised: ClassVar[bool] = True

    def __init__(self, n_rois: int, n_classes: int) -> None:
        super().__init__()
        self.n_rois = n_rois
        self.n_classes = n_classes

    @staticmethod
    def read(X: Recordings) -> list[torch.Tensor]:
        """What the network sees of each recording: Pearson FC ``(n_rois, n_rois)``, float32."""
        return list(torch.from_numpy(Connectome("correlation").matrices(X)))

    @staticmethod
    def join(recordings: list[torch.Tensor]) -> Any:
        """What `forward` takes: some recordings as a batch."""
        return torch.stack(recordings)


class NetworkClassifier(ClassifierMixin, BaseEstimator):
    """Classify recordings by a network that is trained from scratch.

    Parameters
    ----------
    network : class
        `BrainNetCNN`, `BrainNetworkTransformer` or `MeanMLP`.
    epochs : int
        Passes over the training recordings; more where that would be fewer than `FEWEST_STEPS` steps.
    learning_rate : float
        Highest of the one-cycle schedule: a rise over the first fifth of the steps, then a cosine to zero.
    batch_size : int
        Recordings a step.
    validation_share : float
        Share of the training people, below one half, on whom the epoch is chosen; 0 keeps the last epoch, and so does a
        class too small to give `FEWEST_HELD_OUT` people.
    seed : int
        Decides weights, order, dropout and who is held out.
    precision : {"float32", "bfloat16"}
        Number format of matrix products.
    device : str
        ``"cpu"``, ``"cuda"``...

    Attributes
    ----------
    classes_ : ndarray
        Labels, sorted; for two, positive scores mean the second.
    model_ : Module
        The network after training, on the CPU.
    n_rois_ : int
        ROIs of the training recordings.
    scaling_ : tuple of two Tensor, or None
        Mean and standard deviation of the training recordings, where the network is given standardised ones.
    validation_auc_ : ndarray (epochs,)
        AUC of the held-out people after each epoch (of more classes, the mean of one against the rest); empty where
        nobody was held out.
    best_epoch_ : int
        Epoch whose weights were kept, from 0; the later of equals.
    """

    # Wherever groups are handed over (scikit-learn's metadata routing), people stay together in the inner split.
    __metadata_request__fit = {"groups": True}

    def __init__(
        self,
        network: type[Network],
        epochs: int = 3,
        learning_rate: float = 3e-4,
        batch_size: int = 8,
        validation_share: float = 0.125,
        seed: int = 0,
        precision: Literal["float32", "bfloat16"] = "bfloat16",
        device: str = "cpu",
    ) -> None:
        self.network = network
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.validation_share = validation_share
        self.seed = seed
        self.precision = precision
        self.device = device

    def fit(self, X: Recordings, y: np.ndarray, groups: np.ndarray | None = None) -> Self:
        """Train.

        Parameters
        ----------
        X : Cohort, sequence of ndarray (n_volumes_i, n_rois), or ndarray (n, n_rois, n_rois)
            As for `Connectome`; `MeanMLP` needs BOLD.
        y : array (n,)
            Labels of two or more classes.
        groups : array (n,), optional
            Person of each recording. Default: a cohort's people, else every recording is another person's.

        Raises
        ------
        OpenBrainMassError
            If recordings, labels or parameters cannot be used, or training becomes non-finite.
        """
        self._check_parameters()
        self.classes_, targets = checked_labels(y, len(X))
        train, held_out = _hold_out(targets, _people(X, groups), self.validation_share, self.seed)
        device = checked_device(self.device)
        recordings = self.network.read(X)
        self.n_rois_ = recordings[0].shape[-1]
        # A generator of its own, so that training neither follows nor moves the caller's random numbers.
        with one_thread(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            self.scaling_ = _scaling([recordings[row] for row in train]) if self.network.standardised else None
            recordings = self._scaled(recordings, device)
            model = self.network(self.n_rois_, len(self.classes_)).to(device)
            self._train(model, recordings, torch.from_numpy(targets).to(device), train, held_out)
        self.model_ = model.cpu().eval()
        return self

    def decision_function(self, X: Recordings) -> np.ndarray:
        """Log odds.

        Returns
        -------
        ndarray (n,) for two classes (positive means ``classes_[1]``), else logits (n, n_classes)
        """
        logits = self._test(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Recordings) -> np.ndarray:
        """Probability of each class, ``(n, n_classes)``, in the order of ``classes_``; not calibrated."""
        return softmax(self._test(X), axis=1)

    def predict(self, X: Recordings) -> np.ndarray:
        """Most probable class of each recording, ``(n,)``."""
        best = self._test(X).argmax(axis=1)
        return self.classes_[best]

    def _test(self, X: Recordings) -> np.ndarray:
        check_is_fitted(self)
        device = checked_device(self.device)
        recordings = self.network.read(X)
        for number, recording in enumerate(recordings):
            if recording.shape[-1] != self.n_rois_:
                raise OpenBrainMassError(
                    f"Recording {number} has {recording.shape[-1]} ROIs but {self.network.__name__} was trained on "
                    f"{self.n_rois_}. Give recordings of the atlas it was trained with."
                )
        model = self.model_.to(device)
        with one_thread():
            logits = self._logits(model, self._scaled(recordings, device)).cpu().numpy().astype(np.float64)
        model.cpu()
        return logits

    def _scaled(self, recordings: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        if self.scaling_ is not None:
            mean, scale = self.scaling_
            recordings = [(recording - mean) / scale for recording in recordings]
        return [recording.to(device) for recording in recordings]

    def _check_parameters(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise OpenBrainMassError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, learning_rate={self.learning_rate} cannot train; "
                "epochs and batch_size must be at least 1 and learning_rate above 0."
            )
        if not 0 <= self.validation_share < 0.5:
            raise OpenBrainMassError(
                f"validation_share is {self.validation_share}; a share of the training people from 0 to below 0.5 was "
                "expected."
            )
        if self.precision not in ("float32", "bfloat16"):
            raise OpenBrainMassError(f"The precision {self.precision!r} is not known; choose float32 or bfloat16.")

    def _forward(self, model: nn.Module, recordings: list[torch.Tensor]) -> torch.Tensor:
        reduced = self.precision == "bfloat16"
        with torch.autocast(recordings[0].device.type, torch.bfloat16, enabled=reduced):
            return model(self.network.join(recordings)).float()

    @torch.no_grad()
    def _logits(self, model: nn.Module, recordings: list[torch.Tensor]) -> torch.Tensor:
        model.eval()
        starts = range(0, len(recordings), _TEST_BATCH)
        return torch.cat([self._forward(model, recordings[start : start + _TEST_BATCH]) for start in starts])

    def _train(
        self,
        model: nn.Module,
        recordings: list[torch.Tensor],
        targets: torch.Tensor,
        train: np.ndarray,
        held_out: np.ndarray,
    ) -> None:
        steps = math.ceil(len(train) / self.batch_size)
        epochs = max(self.epochs, math.ceil(FEWEST_STEPS / steps))
        optimiser = torch.optim.AdamW(model.parameters(), self.learning_rate, weight_decay=_WEIGHT_DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.learning_rate, total_steps=epochs * steps, pct_start=_RISING_SHARE, cycle_momentum=False
        )
        aucs, best, self.best_epoch_ = [], None, epochs - 1
        for epoch in range(epochs):
            model.train()
            for rows in _batches(train, self.batch_size, self.seed, epoch):
                logits = self._forward(model, [recordings[row] for row in rows])
                loss = functional.cross_entropy(logits, targets[rows])
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
                optimiser.step()
                schedule.step()
            self._check_loss(loss.item(), epoch)
            if len(held_out):
                aucs.append(self._auc(model, [recordings[row] for row in held_out], targets[held_out]))
                if aucs[-1] >= max(aucs):
                    best, self.best_epoch_ = copy.deepcopy(model.state_dict()), epoch
        if best is not None:
            model.load_state_dict(best)
        self.validation_auc_ = np.array(aucs)

    def _auc(self, model: nn.Module, recordings: list[torch.Tensor], targets: torch.Tensor) -> float:
        shares = self._logits(model, recordings).double().softmax(dim=1).cpu().numpy()
        scores = shares[:, 1] if shares.shape[1] == 2 else shares
        return float(roc_auc_score(y_true=targets.cpu().numpy(), y_score=scores, multi_class="ovr"))

    def _check_loss(self, loss: float, epoch: int) -> None:
        if not np.isfinite(loss):
            raise OpenBrainMassError(
                f"The loss of {self.network.__name__} became {loss} in epoch {epoch + 1}; finite values were expected. "
                f"Lower learning_rate (now {self.learning_rate})."
            )

    def __sklearn_tags__(self) -> Tags:
        return accept_recordings(super().__sklearn_tags__())


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that the result does not depend on how many there are, and restore what was set."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _scaling(recordings: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each value; 1 where it does not vary."""
    stack = torch.stack(recordings)
    mean, scale = stack.mean(dim=0), stack.std(dim=0, correction=0)
    return mean, torch.where(scale > 1e-6, scale, 1.0)


def _batches(rows: np.ndarray, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return (order[start : start + size] for start in range(0, len(order), size))


def _people(X: Recordings, groups: Sequence[Any] | np.ndarray | None) -> np.ndarray:
    """Number of the person of each recording."""
    own = X.recordings["participant_id"].to_numpy(str) if isinstance(X, Cohort) else np.arange(len(X))
    people = own if groups is None else np.asarray(groups)
    if len(people) != len(X):
        raise OpenBrainMassError(f"{len(X)} recordings were given with {len(people)} groups; give one for each.")
    return np.unique(people, return_inverse=True)[1]


def _hold_out(targets: np.ndarray, people: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that train and rows that choose the epoch, whole people, stratified by class."""
    everyone, nobody = np.arange(len(targets)), np.array([], dtype=int)
    if share == 0:
        return everyone, nobody
    n_parts = round(1 / share)
    smallest = min(len(np.unique(people[targets == target])) for target in np.unique(targets))
    if smallest < FEWEST_HELD_OUT * n_parts:
        return everyone, nobody
    parts = StratifiedGroupKFold(n_parts, shuffle=True, random_state=seed)
    return next(parts.split(targets, targets, people))
