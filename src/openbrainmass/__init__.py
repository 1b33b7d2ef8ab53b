"""openbrainmass: the BrainMass brain-network foundation model, right, on any atlas.

Parcellated resting-state BOLD goes in; embeddings, diagnoses with honest error bars and brain maps come out.
Names are imported when first used, so ``import openbrainmass`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openbrainmass.atlas import Atlas, load_atlas
    from openbrainmass.bridge import Bridge
    from openbrainmass.cohort.cohort import Cohort
    from openbrainmass.cohort.curate import CurationSettings, curate
    from openbrainmass.cohort.simulate import simulate_cohort
    from openbrainmass.cohort.store import load_cohort, save_cohort
    from openbrainmass.connectivity import correlation, fisher_z, ledoit_wolf, vectorize
    from openbrainmass.errors import OpenBrainMassError
    from openbrainmass.evaluation.abstention import coverage_curve
    from openbrainmass.evaluation.audit.audit import audit
    from openbrainmass.evaluation.audit.procedure import audit_procedure
    from openbrainmass.evaluation.baselines import Connectome, floors, rivals
    from openbrainmass.evaluation.confounds import Deconfounded, confound_card
    from openbrainmass.evaluation.evaluate import evaluate
    from openbrainmass.evaluation.features import TableFeatures
    from openbrainmass.evaluation.harmonise import Harmonised
    from openbrainmass.evaluation.learning_curves import learning_curves, log_auc
    from openbrainmass.evaluation.permutation import permutation_test
    from openbrainmass.evaluation.probes import PROBES
    from openbrainmass.evaluation.results import Results
    from openbrainmass.evaluation.statistics import compare
    from openbrainmass.evaluation.tasks import Task
    from openbrainmass.evaluation.tuning import calibrated, tuned
    from openbrainmass.evaluation.within_sites import WithinSites
    from openbrainmass.interpretation.explain import explain
    from openbrainmass.model.checkpoint import Checkpoint
    from openbrainmass.model.convert import convert
    from openbrainmass.model.embedder import Embedder
    from openbrainmass.model.finetune import FineTuneClassifier
    from openbrainmass.model.in_fold import PretrainInFold
    from openbrainmass.model.pretrain import pretrain
    from openbrainmass.model.pseudo_fc import pseudo_fc
    from openbrainmass.model.rivals import rival_networks
    from openbrainmass.model.settings import PretrainSettings, preset
    from openbrainmass.report.leaderboard import write_leaderboard
    from openbrainmass.report.long_table import long_table
    from openbrainmass.report.page import write_report

_HOMES = {
    "OpenBrainMassError": "errors",
    "Atlas": "atlas",
    "load_atlas": "atlas",
    "Bridge": "bridge",
    "Cohort": "cohort.cohort",
    "curate": "cohort.curate",
    "CurationSettings": "cohort.curate",
    "load_cohort": "cohort.store",
    "save_cohort": "cohort.store",
    "simulate_cohort": "cohort.simulate",
    "correlation": "connectivity",
    "ledoit_wolf": "connectivity",
    "fisher_z": "connectivity",
    "vectorize": "connectivity",
    "pseudo_fc": "model.pseudo_fc",
    "PretrainSettings": "model.settings",
    "preset": "model.settings",
    "pretrain": "model.pretrain",
    "Checkpoint": "model.checkpoint",
    "convert": "model.convert",
    "Embedder": "model.embedder",
    "PretrainInFold": "model.in_fold",
    "FineTuneClassifier": "model.finetune",
    "rival_networks": "model.rivals",
    "Connectome": "evaluation.baselines",
    "Harmonised": "evaluation.harmonise",
    "WithinSites": "evaluation.within_sites",
    "PROBES": "evaluation.probes",
    "Task": "evaluation.tasks",
    "evaluate": "evaluation.evaluate",
    "Results": "evaluation.results",
    "compare": "evaluation.statistics",
    "floors": "evaluation.baselines",
    "rivals": "evaluation.baselines",
    "tuned": "evaluation.tuning",
    "calibrated": "evaluation.tuning",
    "Deconfounded": "evaluation.confounds",
    "confound_card": "evaluation.confounds",
    "coverage_curve": "evaluation.abstention",
    "TableFeatures": "evaluation.features",
    "learning_curves": "evaluation.learning_curves",
    "log_auc": "evaluation.learning_curves",
    "permutation_test": "evaluation.permutation",
    "audit": "evaluation.audit.audit",
    "audit_procedure": "evaluation.audit.procedure",
    "explain": "interpretation.explain",
    "write_report": "report.page",
    "write_leaderboard": "report.leaderboard",
    "long_table": "report.long_table",
}

__version__ = "0.1.0"
__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'openbrainmass' has no attribute {name!r}")
    return getattr(import_module(f"openbrainmass.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
