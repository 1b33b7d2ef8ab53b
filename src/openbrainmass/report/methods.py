"""The methods paragraph: what was done, in the words of a paper, from the saved settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openbrainmass.cohort.quality import REASONS
from openbrainmass.evaluation.protocols import few_shot_size
from openbrainmass.report.cohort_view import atlas_name
from openbrainmass.report.connectivity_view import AUGMENTATIONS
from openbrainmass.report.folders import ExplanationFolder, Material, ResultsFolder, RunFolder, StoreFolder
from openbrainmass.report.run_view import encoder_of, encoder_words
from openbrainmass.report.verdict import contrast
from openbrainmass.report.wording import compact, count, listing

REFERENCES = {
    "brainmass": "Yang et al. BrainMass: Advancing brain network analysis for diagnosis with large-scale "
    "self-supervised learning. IEEE Transactions on Medical Imaging, 2024. arXiv:2403.01433.",
    "byol": "Grill et al. Bootstrap your own latent: a new approach to self-supervised learning. NeurIPS, 2020.",
    "ledoit-wolf": "Ledoit and Wolf. A well-conditioned estimator for large-dimensional covariance matrices. Journal "
    "of Multivariate Analysis, 2004.",
    "tangent": "Varoquaux et al. Detection of brain functional-connectivity difference in post-stroke patients using "
    "group-level covariance modeling. MICCAI, 2010.",
    "bca": "Efron. Better bootstrap confidence intervals. Journal of the American Statistical Association, 1987.",
    "resampled": "Nadeau and Bengio. Inference for the generalization error. Machine Learning, 2003.",
    "delong": "DeLong, DeLong and Clarke-Pearson. Comparing the areas under two or more correlated receiver operating "
    "characteristic curves: a nonparametric approach. Biometrics, 1988.",
    "holm": "Holm. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics, 1979.",
    "ig": "Sundararajan, Taly and Yan. Axiomatic attribution for deep networks. ICML, 2017.",
}
ESTIMATORS = {"pearson": "Pearson correlation", "ledoit-wolf": "correlation of the Ledoit-Wolf shrunk covariance"}
PROTOCOL_WORDS = {
    "k-fold": "{repeated}{n_folds}-fold cross-validation, stratified by class",
    "site-held-out": "leaving one site out at a time",
    "random-splits": "{n_splits} random splits, stratified by class",
    "cohort-held-out": "leaving one dataset out at a time",
    "external": "prediction of another cohort of which no label was used{transductive}",
    "paper-split": "a split of 70 % training, 15 % validation (left unused) and 15 % test people",
    "few-shot": "training on a few people per class ({few_shot}) drawn within the training folds",
    "external-few-shot": "adding a few people per class of the other cohort ({external_few_shot}) to those who train",
}


@dataclass(frozen=True)
class Methods:
    """The paragraphs, and the works they rest on."""

    paragraphs: tuple[str, ...]
    references: tuple[str, ...]


def methods(material: Material, version: str) -> Methods:
    """Write the methods of everything that was given.

    Parameters
    ----------
    material : Material
        The saved folders.
    version : str
        Version of the package.
    """
    cited: dict[str, None] = {}
    paragraphs = [_cohort(store) for store in material.stores]
    paragraphs += [_pretraining(run, cited) for run in material.runs]
    paragraphs += [_evaluation(results, cited) for results in material.results]
    paragraphs += [_explanation(explanation, cited) for explanation in material.explanations]
    paragraphs.append(f"All steps were run with openbrainmass {version}.")
    return Methods(tuple(paragraphs), tuple(REFERENCES[key] for key in REFERENCES if key in cited))


def _cohort(store: StoreFolder) -> str:
    people = store.recordings["participant_id"]
    n_sites = store.participants["site"].nunique() if "site" in store.participants else 0
    text = (
        f"The cohort {store.name} holds {count(len(people), 'resting-state recording')} of "
        f"{count(people.nunique(), 'person', 'people')}"
        + (f" from {count(n_sites, 'site')}" if n_sites else "")
        + f", each the mean signals of {store.manifest['n_rois']} regions of interest (atlas "
        f"{atlas_name(store.manifest)}), preprocessed and parcellated beforehand."
    )
    reasons = store.exclusions["reason"].value_counts()
    if len(reasons):
        told = [f"{n} because {REASONS.get(str(reason), str(reason))}" for reason, n in reasons.items()]
        text += f" {count(len(store.exclusions), 'recording was', 'recordings were')} left out: {listing(told)}."
    return text + _quality(store.manifest.get("quality") or {})


def _quality(quality: Mapping[str, Any]) -> str:
    asked = []
    if quality.get("min_seconds"):
        asked.append(f"at least {quality['min_seconds']:g} s of data")
    if quality.get("max_dead_share") is not None:
        asked.append(f"at most {100 * quality['max_dead_share']:g} % of the regions without signal")
    return f" Recordings needed {listing(asked)}." if asked else ""


def _pretraining(run: RunFolder, cited: dict[str, None]) -> str:
    card, settings = run.card, run.card["settings"]
    facts: Mapping[str, Any] = card.get("facts") or {}
    views, objective = settings["views"], settings["objective"]
    encoder = encoder_of(card)
    if views["estimator"] == "ledoit-wolf":
        cited["ledoit-wolf"] = None
    data = (
        f" on {count(facts['n_recordings'], 'recording')} of {count(facts['n_people'], 'person', 'people')}"
        if facts.get("n_recordings") and facts.get("n_people")
        else ""
    )
    if encoder.kind == "tangent":
        cited["tangent"] = None
        of_sites = (
            f", without the patterns in which the means of sites differ most (up to {encoder.site_modes})"
            if encoder.site_modes
            else ""
        )
        return (
            f"An encoder was learnt without diagnoses{data}: functional connectivity (the {ESTIMATORS[views['estimator']]} "
            f"between regions, mixed with the identity by {100 * encoder.shrinkage:g} %) is divided by "
            f"{count(encoder.modes, 'mode')} of its mean and its matrix logarithm taken (tangent space)"
            f"{of_sites}. The embedding of a recording has {encoder.embedding_size(card['n_rois'])} values."
        )
    cited |= dict.fromkeys(["brainmass", "byol"])
    rule = AUGMENTATIONS[views["augmentation"]].format(share=100 * views["share"], kept=100 - 100 * views["share"])
    parts = [
        f"alignment of the two views' latent representations (weight {objective['lra']:g})",
        f"identification of masked regions (weight {objective['identification']:g})",
        f"reconstruction of masked rows of the connectivity matrix (weight {objective['reconstruction']:g})",
    ]
    epochs = facts.get("epochs") or settings["epochs"]
    return (
        f"A transformer encoder ({encoder_words(card)}) was pretrained without labels{data}, following BrainMass (Yang "
        f"et al., 2024). Functional connectivity was the {ESTIMATORS[views['estimator']]} between regions; each row of "
        f"the matrix is a token. Two views were made of each recording; a view {rule}. The loss was the sum of "
        f"{listing(parts)}; the target encoder followed with momentum {objective['momentum']:g}. AdamW (learning rate "
        f"{compact(settings['learning_rate'])}, weight decay {compact(settings['weight_decay'])}, "
        f"{count(settings['warmup_epochs'], 'warm-up epoch')}) ran for {count(epochs, 'epoch')} with batches of "
        f"{settings['batch_size']}, seed {settings['seed']}. The embedding of a recording has "
        f"{encoder.embedding_size(card['n_rois'])} values."
    )


def _evaluation(results: ResultsFolder, cited: dict[str, None]) -> str:
    settings = results.settings
    found = [str(name) for name in results.predictions["protocol"].unique()]
    kinds = dict.fromkeys(_family(name) for name in found)
    declared = ", whose unlabelled scans were used (transductive)" if settings.get("transductive") else ""
    numbers = {
        "n_folds": settings.get("n_folds", "k"),
        "repeated": "" if settings.get("n_repeats") == 1 else f"{settings.get('n_repeats', 'several')} times repeated ",
        "n_splits": settings.get("n_splits", "repeated"),
        "few_shot": listing([name.rsplit("-", 1)[1] for name in found if name.startswith("few-shot")]),
        "external_few_shot": listing([name.rsplit("-", 1)[1] for name in found if name.startswith("external-")]),
        "transductive": declared,
    }
    ways = [PROTOCOL_WORDS.get(kind, kind).format(**numbers) for kind in kinds]
    told = contrast(results.task)
    models = [str(model) for model in results.predictions["model"].unique()]
    cited |= dict.fromkeys(["bca", "holm"])
    tests = {str(test) for test in results.comparisons["test"].dropna()} if "test" in results.comparisons else set()
    named = {"resampled": "corrected resampled t", "delong": "DeLong"}
    cited |= {key: None for key, name in named.items() if any(test.startswith(name) for test in tests)}
    if any(model.startswith("tangent") for model in models):
        cited["tangent"] = None
    return (
        f"{_predicted(results)}"
        + (f" ({told})" if told else "")
        + f" by {listing(ways)}. Folds were made of people, never of recordings, and everything that is fitted was "
        f"fitted inside the training fold. All models saw the same folds: {'; '.join(models)}. Scores of a person's "
        f"recordings were averaged. {_intervals(settings.get('intervals') or {})} "
        + (f"Differences were tested by {listing(sorted(tests))}, " if tests else "Differences were tested in pairs, ")
        + "with p-values corrected by Holm's method within each protocol."
        + (f" Seed {settings['seed']}." if "seed" in settings else "")
        + _cards(results)
    )


def _predicted(results: ResultsFolder) -> str:
    n = results.predictions["participant_id"].nunique()
    if results.kind == "regression":
        return f"The {results.task.get('target') or 'target'} of {count(n, 'person', 'people')} was predicted"
    return f"{count(n, 'person was', 'people were')} classified"


def _family(protocol: str) -> str:
    """A protocol without its number of labelled people."""
    return protocol.rsplit("-", 1)[0] if few_shot_size(protocol) is not None else protocol


def _cards(results: ResultsFolder) -> str:
    """What was done beside the evaluation, as far as its tables were saved."""
    told = ""
    if "confounds" in results.tables:
        told += (
            " The site was read from the features by a linear classifier in 5-fold by person; scores were correlated "
            "(Spearman) with motion and scan length, over everybody and within class; performance was computed within "
            "sex and thirds of age, and again after the covariates were regressed out of the features inside the folds."
        )
    if "coverage" in results.tables:
        told += (
            " Answers were withheld below a confidence that was fixed on other people than those tested."
            if set(results.tables["coverage"]["threshold_from"]) <= {"other folds", "k-fold"}
            else " Answers were withheld below a threshold of confidence."
        )
    if "audit" in results.tables:
        told += " The evaluation was audited for leaks."
    return told


def _intervals(methods: Mapping[str, str]) -> str:
    """What the intervals are: one sentence, protocols with the same method together."""
    together: dict[str, list[str]] = {}
    for protocol, method in methods.items():
        kind = _family(protocol)
        if kind not in together.setdefault(method, []):
            together[method].append(kind)
    told = [f"{listing(protocols)}: {method}" for method, protocols in together.items()]
    return f"95 % intervals are, by protocol, {'; '.join(told)}." if told else "Intervals are 95 % intervals."


def _explanation(explanation: ExplanationFolder, cited: dict[str, None]) -> str:
    settings = explanation.settings
    cited["ig"] = None
    text = (
        "Attributions are integrated gradients of the decision value for held-out people, with the mean connectivity "
        "of the training people as baseline; an edge's contribution is its mean over the positive people minus that "
        "over the negative people, so that contributions add up to the separation of the groups."
    )
    if settings.get("n_permutations"):
        within = f" within {settings['permuted_within']}" if settings.get("permuted_within") else ""
        text += (
            f" The null distribution comes from {count(settings['n_permutations'], 'permutation')} of the labels{within}, "
            "with the maximum statistic for correction."
        )
    return text
