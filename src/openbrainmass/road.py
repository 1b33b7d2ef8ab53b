"""The whole road, from a folder of BOLD series to a report: what `run` and `demo` do.

Each stage writes one folder and reads only what the stage before it wrote. A stage whose result is there already
is not done again, so a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.build import build_store
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.curate import CurationSettings, curate
from openbrainmass.cohort.quality import QualitySettings
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.cohort.store import load_cohort
from openbrainmass.durable import make_folder, read_json, write_json, write_rows
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.abstention import coverage_curve
from openbrainmass.evaluation.audit.audit import audit
from openbrainmass.evaluation.audit.ledger import looks, record_look
from openbrainmass.evaluation.baselines import Connectome, ShuffledLabels, floors, rivals
from openbrainmass.evaluation.confounds import confound_card
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.harmonise import Harmonised
from openbrainmass.evaluation.learning_curves import log_auc
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.tasks import Task
from openbrainmass.interpretation.explain import Explanation, explain
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder, Precision, embedded_batches
from openbrainmass.model.finetune import FineTuneClassifier
from openbrainmass.model.in_fold import PretrainInFold
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.rivals import rival_networks
from openbrainmass.model.settings import PretrainSettings, Recipe, Size, preset
from openbrainmass.report.page import write_report
from openbrainmass.report.quality_page import write_quality_page
from openbrainmass.settings import Settings, read_values

Say = Callable[[str], None]


class EvaluationSettings(Settings):
    """How models are compared.

    Attributes
    ----------
    protocols : tuple of str
        Some of ``k-fold random-splits site-held-out cohort-held-out paper-split few-shot``; a test cohort adds
        ``external``.
    n_folds, n_repeats : int
        Of the repeated k-fold; ``n_repeats`` also of the 70/15/15 split.
    n_splits : int
        Of ``random-splits``.
    few_shot : tuple of int
        Labelled people of each class.
    n_draws : int
        Draws of those people.
    transductive : bool
        For a test cohort, add rows for which what needs no label is fitted to its recordings (declared in the name).
    rivals : bool
        Also enter every other simple model (each covariate alone, ridge, tuned, partial, the sum of edges and tangent).
    networks : bool
        Also train BrainNetCNN, Brain Network Transformer and meanMLP in every fold: slow, and few-shot is left out.
    harmonise : bool
        Also enter edges brought to a common mean and variance across sites by ComBat, learnt inside the folds (the
        extra ``harmonise``).
    pretrain_in_fold : bool
        Also pretrain anew for each held-out site, without its people, and show both.
    """

    protocols: tuple[str, ...] = ("k-fold", "site-held-out", "few-shot")
    n_folds: int = Field(default=5, ge=2)
    n_repeats: int = Field(default=10, ge=1)
    n_splits: int = Field(default=100, ge=1)
    few_shot: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    n_draws: int = Field(default=20, ge=1)
    transductive: bool = False
    rivals: bool = False
    networks: bool = False
    harmonise: bool = False
    pretrain_in_fold: bool = True


class RunSettings(Settings):
    """Everything that a run depends on: the keys of the TOML file that `run` reads.

    Attributes
    ----------
    data : str or None
        Folder of BOLD series, or a store; without it a cohort is simulated.
    test : str or None
        Folder or store of other people, for the external protocol; simulated when ``data`` is.
    test_task : str or None
        A task's name or file for those people, where they are told apart by something else.
    atlas, dataset, layout, participants : str or None
        As for ``openbrainmass cohort``.
    task, target : str or None
        A task's name or file; without it the task of the column ``target`` (default ``dx``, else ``sex``).
    size, recipe : str
        Preset of the pretraining (see `preset`).
    pretraining : dict
        What differs from the preset.
    checkpoint : str or None
        Run folder whose encoder is used, or the name of weights that come with the package; nothing is pretrained then.
    probe : str or None
        Classifier put on the embedding, besides L2 logistic regression; svm if not given, for regression ridge.
    permutations : int
        Relabellings that make the null of the brain map.
    seed, jobs : int
        The seed of everything, and how many processes the evaluation may use.
    reading, quality, evaluation : tables
        See `ReadingSettings`, `QualitySettings`, `EvaluationSettings`.
    """

    data: str | None = None
    test: str | None = None
    test_task: str | None = None
    atlas: str | None = None
    dataset: str | None = None
    layout: str | None = None
    participants: str | None = None
    task: str | None = None
    target: str | None = None
    size: Size = "tiny"
    recipe: Recipe = "default"
    pretraining: dict[str, Any] = {}
    checkpoint: str | None = None
    probe: Literal["svm", "logistic", "ridge", "kernel ridge", "prototype"] | None = None
    permutations: int = Field(default=100, ge=2)
    seed: int = Field(default=0, ge=0)
    jobs: int = Field(default=2, ge=1)
    reading: ReadingSettings = ReadingSettings()
    quality: QualitySettings = QualitySettings()
    evaluation: EvaluationSettings = EvaluationSettings()


def run(settings: RunSettings, out: str | Path, say: Say = print) -> Path:
    """Walk the whole road.

    Parameters
    ----------
    settings : RunSettings
        What to do.
    out : path
        Receives ``cohort/ pretraining/ embeddings.tsv evaluation/ explanation/ report.html``.
    say : callable
        Receives a line before each stage.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    OpenBrainMassError
        If the input cannot be used, or `out` holds a run of other settings.
    """
    out = make_folder(out)
    _claim(out, settings)
    say("1/6  cohort: reading and checking every recording")
    cohort, store = _cohort(settings, out)
    task = _task(settings, cohort)
    # A task that does not fit the cohort is told now, not after the pretraining.
    task.labels(cohort)
    say(f"     {cohort!r}, task: {task.title}")
    say("2/6  pretraining, without labels")
    run_folder = _pretrained(settings, cohort, out)
    say("3/6  embeddings")
    embeddings = out / "embeddings.tsv"
    if not embeddings.exists():
        write_embeddings(cohort, run_folder, embeddings)
    say("4/6  evaluation: every model on the same folds")
    if not (out / "evaluation").exists():
        _evaluated(settings, cohort, store, task, run_folder, out).save(out / "evaluation")
    # What speaks for a number, not for a class, has no map yet.
    classes = task.kind == "classification"
    say(f"5/6  which regions speak{'' if classes else ': left out, the target is a number'}")
    if classes and not (out / "explanation").exists():
        folds = settings.evaluation.n_folds
        explained = explain_checkpoint(run_folder, cohort, task, folds, settings.permutations, settings.seed)
        explained.save(out / "explanation")
    say("6/6  report")
    folders = [store, run_folder, embeddings, out / "evaluation", *([out / "explanation"] if classes else [])]
    write_report(folders, out / "report.html")
    return out / "report.html"


def load_pretrain_settings(
    size: str = "small", recipe: str = "default", file: str | Path | None = None, overrides: Sequence[str] = ()
) -> PretrainSettings:
    """A preset, changed by a TOML file, changed by ``a.b=c`` overrides.

    Raises
    ------
    OpenBrainMassError
        If the preset, a key or a value is unknown.
    """
    source = str(file) if file else "the pretraining settings"
    return _changed(size, recipe, read_values(file, overrides), source)


def compare_models(
    cohort: Cohort,
    task: Task,
    settings: EvaluationSettings,
    *,
    checkpoints: Mapping[str, str | Path],
    test: Cohort | None = None,
    test_task: Task | None = None,
    folds: str | Path | None = None,
    probe: str | None = None,
    fine_tune: bool = False,
    in_fold: Mapping[str, PretrainInFold] | None = None,
    stores: tuple[Path | None, Path | None] = (None, None),
    seed: int = 0,
    jobs: int = 1,
) -> Results:
    """Evaluate checkpoints beside every baseline, on the same folds, with the audit and the confounds of the result.

    Parameters
    ----------
    checkpoints : mapping of str to path
        Run folders by the name that the tables give them.
    test : Cohort, optional
        Other people; adds the protocol ``external``, where no label of theirs is used.
    test_task : Task, optional
        What is told apart among them, where that is something else.
    folds : path, optional
        A ``folds.tsv`` that was handed over, instead of folds of our own.
    probe : str, optional
        Put on every embedding and on the plain edges; svm if not given, for regression ridge.
    fine_tune : bool
        Also move the weights of each checkpoint (slow).
    in_fold : mapping of str to PretrainInFold, optional
        Pretrained anew without the people of each held-out site.
    stores : tuple of path
        The stores of the two cohorts; this look at their people is entered into the ledgers beside them.

    Returns
    -------
    Results
        With the tables ``folds confounds coverage log_auc audit``; a note and a warning instead of one that fails.
    """
    probe = probe or ("ridge" if task.kind == "regression" else "svm")
    models: dict[str, Any] = {}
    if fine_tune and task.kind == "regression":
        raise OpenBrainMassError(
            f"Fine-tuning tells classes apart, and {task.target} is a number. Leave --fine-tune out."
        )
    met = {name: Checkpoint.load(path) for name, path in checkpoints.items()}
    if fine_tune and any(checkpoint.settings.encoder.kind == "tangent" for checkpoint in met.values()):
        raise OpenBrainMassError("A tangent encoder has no layers to move. Leave --fine-tune out.")
    for name, checkpoint in met.items():
        models |= _frozen(name, checkpoint, probe, task)
        if fine_tune:
            models[f"{name}, fine-tuned"] = FineTuneClassifier(checkpoint, seed=seed)
    site_models = {
        f"{name} + {kind}": make_pipeline(step, make_probe(kind, task.kind))
        for name, step in (in_fold or {}).items()
        for kind in _probes(probe, task)
    }
    models |= _baselines(cohort, task, settings, probe, seed)
    results = evaluate(
        models,
        cohort,
        task,
        protocols=_protocols(settings, task),
        test_cohort=test,
        test_task=test_task,
        transductive=settings.transductive,
        n_folds=settings.n_folds,
        n_repeats=settings.n_repeats,
        n_splits=settings.n_splits,
        few_shot=settings.few_shot,
        n_draws=settings.n_draws,
        folds=folds,
        site_models=site_models,
        seed=seed,
        n_jobs=jobs,
        progress=True,
    )
    results.settings["looks"] = _record(results, [(stores[0], task), (stores[1], test_task or task)])
    _add(results, "log_auc", lambda: log_auc(results, f"edges + {_probes(probe, task)[-1]}"))
    _add(results, "coverage", lambda: coverage_curve(results, seed=seed))
    _add(
        results,
        "confounds",
        lambda: confound_card(results, cohort, task, models, test_cohort=test, test_task=test_task, seed=seed),
    )
    _add(
        results,
        "audit",
        lambda: audit(
            cohort,
            task,
            folds=results.tables["folds"],
            models=models,
            seen=list(met.values()),
            test_cohort=test,
            test_task=test_task,
            store=stores[0],
            test_store=stores[1],
        ),
    )
    return results


def _add(results: Results, table: str, make: Callable[[], pd.DataFrame]) -> None:
    """Add a table, or a note of why there is none: it must not cost hours of evaluation."""
    try:
        results.tables[table] = make()
    except (OpenBrainMassError, ValueError) as error:
        note = f"There is no table {table}, since it could not be computed: {error}"
        results.settings["notes"].append(note)
        warnings.warn(note, stacklevel=3)


def explain_checkpoint(
    checkpoint: str | Path, cohort: Cohort, task: Task, n_folds: int = 5, permutations: int = 100, seed: int = 0
) -> Explanation:
    """Explain the L2 logistic probe on a checkpoint's embedding (see `explain`)."""
    model = make_pipeline(Embedder(str(checkpoint)), make_probe("logistic"))
    return explain(model, cohort, task, n_folds=n_folds, n_permutations=permutations, seed=seed, progress=True)


def write_embeddings(cohort: Cohort, checkpoint: str | Path, out: str | Path, precision: Precision = "float32") -> None:
    """Embed a cohort, a batch at a time, into one TSV: what its tables say, then a column a value."""
    table = cohort.table.drop(columns=["digest", "shard"], errors="ignore")
    opened = Checkpoint.load(checkpoint)
    names = [f"e{number}" for number in range(opened.encoder().embedding_size)]
    batches = embedded_batches(cohort, opened, precision=precision)
    values = ([f"{value:.6g}" for value in row.tolist()] for batch in batches for row in batch)
    known = ({str(name): _short(value) for name, value in row.items()} for row in table.to_dict("records"))
    # pandas takes six times as long to write the 20,000 columns of a tangent encoder.
    rows = (row | dict(zip(names, own, strict=True)) for row, own in zip(known, values, strict=True))
    write_rows(out, [*table.columns, *names], rows)


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) and not math.isnan(value) else value


def _changed(size: str, recipe: str, changes: Mapping[str, Any], source: str) -> PretrainSettings:
    values = preset(size, recipe).model_dump()  # pyright: ignore[reportArgumentType]
    _merge(values, changes)
    return PretrainSettings.checked(values, source)


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _claim(out: Path, settings: RunSettings) -> None:
    """Make `out` the folder of these settings, or refuse it if it is that of others."""
    file, here = out / "settings.json", settings.model_dump(mode="json")
    if file.exists():
        there = read_json(file)
        changed = sorted(key for key in here if key != "jobs" and here[key] != there.get(key))
        if changed:
            raise OpenBrainMassError(
                f"{out} holds a run with other settings ({', '.join(changed)} differ). Name another --out, or repeat "
                "the command that made it to go on."
            )
    elif any(out.iterdir()):
        raise OpenBrainMassError(
            f"{out} is not empty and holds no run of openbrainmass; nothing in it was touched. Name another --out."
        )
    write_json(file, here)


def _cohort(settings: RunSettings, out: Path) -> tuple[Cohort, Path]:
    """The cohort and the store it is in."""
    if settings.data is None:
        store = out / "cohort"
        return _simulated(store, settings.quality, seed=settings.seed), store
    return _opened(settings.data, out / "cohort", settings)


def _test_cohort(settings: RunSettings, out: Path) -> tuple[Cohort | None, Path | None]:
    """Other people, and their store: those that the settings name, or new simulated ones at new scanners."""
    store = out / "test-cohort"
    if settings.test is not None:
        return _opened(settings.test, store, settings)
    if settings.data is not None:
        return None, None
    design = {"n_people": 80, "n_sites": 2, "seed": settings.seed + 1, "first_site": 100, "name": "simulated-test"}
    return _simulated(store, settings.quality, **design), store


def _simulated(store: Path, quality: QualitySettings, **design: Any) -> Cohort:
    return load_cohort(store) if store.exists() else build_store(simulate_cohort(**design), store, quality=quality)


def _opened(path: str, store: Path, settings: RunSettings) -> tuple[Cohort, Path]:
    if (Path(path) / "manifest.json").is_file():
        return load_cohort(path), Path(path)
    if store.exists():
        return load_cohort(store), store
    made = curate(
        [path],
        store,
        atlas=settings.atlas,
        dataset=settings.dataset,
        layout=settings.layout,
        participants=settings.participants,
        settings=CurationSettings(reading=settings.reading, quality=settings.quality),
        jobs=settings.jobs,
    )
    write_quality_page(store)
    return made, store


def _task(settings: RunSettings, cohort: Cohort) -> Task:
    if settings.task and settings.target:
        raise OpenBrainMassError(
            f"Both task ({settings.task}) and target ({settings.target}) are set; a task has its own target. Set one."
        )
    return Task.load(settings.task) if settings.task else Task.from_cohort(cohort, settings.target)


def _pretrain_settings(settings: RunSettings) -> PretrainSettings:
    changes = {"seed": settings.seed, **settings.pretraining}
    return _changed(settings.size, settings.recipe, changes, "The table [pretraining] of the settings")


def _pretrained(settings: RunSettings, cohort: Cohort, out: Path) -> Path:
    if settings.checkpoint is not None:
        return Path(settings.checkpoint)
    pretrain(cohort, _pretrain_settings(settings), out / "pretraining")
    return out / "pretraining"


def _evaluated(settings: RunSettings, cohort: Cohort, store: Path, task: Task, run_folder: Path, out: Path) -> Results:
    in_fold = None
    if settings.evaluation.pretrain_in_fold and settings.checkpoint is None:
        step = PretrainInFold(_pretrain_settings(settings), folder=str(out / "pretraining-in-fold"))
        in_fold = {"pretrained without the test site": step}
    test, test_store = _test_cohort(settings, out)
    return compare_models(
        cohort,
        task,
        settings.evaluation,
        checkpoints={"pretrained": run_folder},
        test=test,
        test_task=Task.load(settings.test_task) if settings.test_task else None,
        stores=(store, test_store),
        probe=settings.probe,
        in_fold=in_fold,
        seed=settings.seed,
        jobs=settings.jobs,
    )


def _probes(probe: str, task: Task) -> list[str]:
    return list(dict.fromkeys((probe, "ridge" if task.kind == "regression" else "logistic")))


def _frozen(name: str, checkpoint: Checkpoint, probe: str, task: Task) -> dict[str, Any]:
    """A checkpoint's embedding with two probes, with shuffled labels, and its encoder untrained."""
    models: dict[str, Any] = {
        f"{name} + {kind}": make_pipeline(Embedder(checkpoint), make_probe(kind, task.kind))
        for kind in _probes(probe, task)
    }
    untrained = Checkpoint.untrained(checkpoint.atlas, checkpoint.settings)
    models[f"{name}: untrained + {probe}"] = make_pipeline(Embedder(untrained), make_probe(probe, task.kind))
    if task.kind == "classification":
        models[f"{name}: shuffled labels"] = ShuffledLabels(models[f"{name} + {probe}"])
    return models


def _baselines(cohort: Cohort, task: Task, settings: EvaluationSettings, probe: str, seed: int) -> dict[str, Any]:
    """The floors, and what else the settings ask for."""
    models = floors(probe, task)
    if settings.harmonise:
        linear = _probes("ridge", task)[-1]
        step = Harmonised(Connectome("fisher-z"))
        models[f"edges, ComBat + {linear}"] = make_pipeline(step, make_probe(linear, task.kind))
    if settings.rivals:
        models |= rivals(task, cohort)
    if _with_networks(settings, task):
        models |= rival_networks(seed)
    return models


def _with_networks(settings: EvaluationSettings, task: Task) -> bool:
    """Whether networks are trained: they tell classes apart only."""
    return settings.networks and task.kind == "classification"


def _protocols(settings: EvaluationSettings, task: Task) -> tuple[str, ...]:
    """The protocols that were asked for; few-shot would train each network hundreds of times."""
    left_out = "few-shot" if _with_networks(settings, task) else ""
    return tuple(name for name in settings.protocols if name != left_out)


def _record(results: Results, looked_at: Sequence[tuple[Path | None, Task]]) -> int:
    """Enter this evaluation into the ledgers of the people whom it tests; how often they were looked at by now."""
    settings, times = results.settings, 0
    same = {key: settings[key] for key in ("n_folds", "n_repeats", "n_splits", "few_shot", "n_draws", "seed", "cohort")}
    # The text of a model names its checkpoint but not the weights, which only its predictions tell apart.
    told = results.predictions.drop(columns="y_prob").round({"y_score": 6, "y_pred": 6})
    for name, table in (("folds", results.tables["folds"]), ("predictions", told)):
        same[name] = int(pd.util.hash_pandas_object(table, index=False).sum())
    models = settings["models"] | settings["site_models"]
    for external, (store, task) in zip((False, True), looked_at, strict=True):
        protocols = [name for name in settings["protocols"] if name.startswith("external") == external]
        if store is not None and protocols:
            tested = settings["test_cohort" if external else "cohort"]
            record_look(store, task.name, protocols, models, tested["n_people"], same)
            times = max(times, len(looks(store, task.name)))
    return times
