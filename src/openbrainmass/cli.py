"""The command line: one short function a verb. Heavy imports wait until a verb is called."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openbrainmass import __version__
from openbrainmass.errors import OpenBrainMassError

if TYPE_CHECKING:
    import pandas as pd

    from openbrainmass.cohort.cohort import Cohort
    from openbrainmass.evaluation.tasks import Task

app = typer.Typer(
    name="openbrainmass",
    help="The BrainMass brain-network foundation model on any atlas: from parcellated resting-state BOLD to "
    "embeddings, diagnoses with honest error bars, and brain maps.",
    epilog="Start with: openbrainmass demo --out demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Out = Annotated[Path, typer.Option("--out", help="Where the result goes; what is there already is never overwritten.")]
Page = Annotated[Path, typer.Option("--out", help="The page; an older one is replaced.")]
Store = Annotated[Path, typer.Argument(help="A store made by `openbrainmass cohort`.", show_default=False)]
Atlas = Annotated[
    str | None,
    typer.Option(
        "--atlas",
        help="The atlas the series were extracted with: a table of its ROIs (.tsv, .csv), a list of names (.txt), "
        "a label image (.nii.gz, .dlabel.nii) or a bare name. Without it, the files' atlas- or seg- entity.",
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="Name of the dataset; default: the folder's name. A known one (`openbrainmass datasets`) also says how its "
        "table of people is read.",
    ),
]
TaskName = Annotated[
    str | None, typer.Option("--task", help="A task's name (see `openbrainmass tasks`) or its TOML file.")
]
Target = Annotated[
    str | None, typer.Option("--target", help="Column to predict where no task is named; default dx, else sex.")
]
Test = Annotated[Path | None, typer.Option("--test", help="A store of other people to test on (external).")]
TestTask = Annotated[str | None, typer.Option("--test-task", help="The task of the --test store, where it is another.")]
Folds = Annotated[Path | None, typer.Option("--folds", help="A folds.tsv that was handed over (docs/evaluation.md).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change one setting: --set a.b=c (repeatable).", show_default=False)
]
Jobs = Annotated[int, typer.Option("--jobs", help="Processes to use.", min=1)]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"openbrainmass {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    # One thread a process: on shared machines more threads cost far more than they bring.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


@app.command(epilog="Example: openbrainmass demo --out demo   |   openbrainmass demo my_bold/ --target sex --out demo")
def demo(
    out: Out,
    data: Annotated[
        Path | None, typer.Argument(help="A folder of BOLD series or a store; simulated when not given.")
    ] = None,
    atlas: Atlas = None,
    target: Target = None,
    jobs: Jobs = 2,
    overrides: Set = None,
) -> None:
    """The whole road with sensible defaults: curate, pretrain, embed, evaluate, explain, report."""
    from openbrainmass.road import RunSettings, run
    from openbrainmass.settings import read_values

    given = {"data": str(data) if data else None, "atlas": atlas, "target": target, "jobs": jobs}
    settings = RunSettings.checked(given | read_values(overrides=overrides or []), "the command line")
    print(f"\nDone. Open {run(settings, out, _say)}")


@app.command("run", epilog="Example: openbrainmass run study.toml --out study --set pretraining.epochs=50")
def run_(
    settings: Annotated[Path, typer.Argument(help="TOML file (keys in docs/running.md), or settings.json of a run.")],
    out: Out,
    overrides: Set = None,
) -> None:
    """The whole road on your data, as one TOML file says."""
    from openbrainmass.road import RunSettings, run

    print(f"\nDone. Open {run(RunSettings.load(settings, overrides or []), out, _say)}")


@app.command(
    epilog="Example: openbrainmass cohort derivatives/xcp_d --atlas 4S156Parcels --out stores/mine   |   "
    "openbrainmass cohort stores/mine stores/new --out stores/both"
)
def cohort(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="One folder: what a tool wrote, a download, or participants.tsv and one file a recording "
            "(docs/your-data.md). Or several stores, to make one of them.",
            show_default=False,
        ),
    ],
    out: Out,
    atlas: Atlas = None,
    dataset: Dataset = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Where the folder could be two: plain, fmriprep, xcp-d, giga-connectome, halfpipe, c-pac, abide-pcp, "
            "adhd200, hcp, conn, rest-meta-mdd or loose.",
        ),
    ] = None,
    participants: Annotated[
        Path | None, typer.Option(help="Table of the people (.tsv, .csv) that lies elsewhere.")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="A store whose scans must not be among these (repeatable).")
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="A store of the same atlas, to check the order of unlabelled ROIs with.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out files that cannot be read, each with its reason.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="auto (as the source), float32 or float16.")] = "auto",
    jobs: Jobs = 1,
    slurm: Annotated[str | None, typer.Option(help="Partition: --jobs tasks of a SLURM array do the work.")] = None,
    overrides: Set = None,
) -> None:
    """Turn a folder into a checked store with its quality.html; every exclusion gets a row and a reason."""
    from openbrainmass.cohort.curate import CurationSettings, curate
    from openbrainmass.durable import read_tsv

    made = curate(
        sources,
        out,
        atlas=atlas,
        dataset=dataset,
        layout=layout,
        participants=participants,
        settings=CurationSettings.load(overrides=overrides or []),
        against=against or (),
        template=template,
        skip_unreadable=skip_unreadable,
        dtype=dtype,
        jobs=jobs,
        slurm=slurm,
    )
    # Pages come with matplotlib, which a mistake in the options need not wait for.
    from openbrainmass.report.quality_page import write_quality_page

    print(made)
    _print_counts("Excluded", made.exclusions["reason"])
    _print_counts("In doubt", read_tsv(out / "warnings.tsv")["kind"])
    print(f"Open {write_quality_page(out)}")


@app.command(epilog="Example: openbrainmass export stores/mine --out derivatives")
def export(store: Store, out: Out) -> None:
    """Write a store as BIDS derivatives: time series and connectivity tables with their sidecars."""
    from openbrainmass.cohort.export import export_cohort
    from openbrainmass.cohort.store import load_cohort
    from openbrainmass.durable import require_free

    print(f"Wrote {export_cohort(load_cohort(store), require_free(out))}")


@app.command(
    "bridge", epilog="Example: openbrainmass bridge stores/mine --from cc200.nii.gz --to s100.nii.gz --out s100"
)
def bridge_(
    store: Store,
    source: Annotated[str, typer.Option("--from", help="Label image of the store's atlas.")],
    target: Annotated[str, typer.Option("--to", help="Label image of the atlas to go to.")],
    out: Out,
) -> None:
    """Carry a store to another atlas by the overlap of their images; what that loses is written to bridge.tsv."""
    from openbrainmass.cohort.bridged import bridge_store

    print(bridge_store(store, source, target, out))
    from openbrainmass.report.quality_page import write_quality_page

    print(f"Wrote {out / 'bridge.tsv'}\nOpen {write_quality_page(out)}")


@app.command(epilog="Example: openbrainmass fetch abide1 --out downloads/abide1")
def fetch(
    name: Annotated[str, typer.Argument(help="A dataset or atlas that nilearn can fetch (see docs/datasets.md).")],
    out: Out,
    people: Annotated[int | None, typer.Option(help="Only so many people.", min=1)] = None,
) -> None:
    """Download a public dataset or atlas with nilearn: the only command that opens a connection."""
    from openbrainmass.cohort.fetch import fetch as fetch_dataset

    print(f"Wrote {fetch_dataset(name, out, people)}")


@app.command(
    "pretrain", epilog="Example: openbrainmass pretrain stores/mine --size small --out runs/small --set epochs=50"
)
def pretrain_(
    stores: Annotated[list[Path], typer.Argument(help="One or more stores of the same atlas.")],
    out: Out,
    settings: Annotated[
        Path | None, typer.Option(help="TOML file of pretraining settings, or a run's settings.json.")
    ] = None,
    size: Annotated[
        str, typer.Option(help="tangent (seconds), tiny (minutes on a CPU), small (hours), base or paper (a GPU).")
    ] = "small",
    recipe: Annotated[str, typer.Option(help="default (repaired) or paper (with its faults).")] = "default",
    overrides: Set = None,
) -> None:
    """Pretrain an encoder without labels; run again to go on where it stopped (also under torchrun)."""
    from openbrainmass.cohort.store import load_cohort
    from openbrainmass.model.pretrain import pretrain
    from openbrainmass.road import load_pretrain_settings

    chosen = load_pretrain_settings(size, recipe, settings, overrides or [])
    print(pretrain([load_cohort(store) for store in stores], chosen, out))


@app.command(epilog="Example: openbrainmass embed stores/mine --checkpoint runs/small --out embeddings.tsv")
def embed(
    store: Store,
    checkpoint: Annotated[
        Path, typer.Option(help="A run folder, a converted checkpoint, or a name (see `openbrainmass weights`).")
    ],
    out: Out,
    precision: Annotated[
        str,
        typer.Option(help="float32, or bfloat16: faster, and float32 is kept where it would change the embeddings."),
    ] = "float32",
) -> None:
    """Write the embedding of every recording as one table."""
    from openbrainmass.cohort.store import load_cohort
    from openbrainmass.durable import require_free
    from openbrainmass.road import write_embeddings

    write_embeddings(load_cohort(store), checkpoint, require_free(out), precision)  # pyright: ignore[reportArgumentType]
    print(f"Wrote {out}")


@app.command(
    "evaluate",
    epilog="Example: openbrainmass evaluate stores/mine --task abide1-asd --checkpoint runs/small --out results",
)
def evaluate_(
    store: Store,
    out: Out,
    task: TaskName = None,
    target: Target = None,
    test: Test = None,
    test_task: TestTask = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Run folders or names of weights to compare (repeatable).")
    ] = None,
    probe: Annotated[
        str | None, typer.Option(help="svm (default), logistic, ridge (default for numbers), kernel ridge, prototype.")
    ] = None,
    fine_tune: Annotated[bool, typer.Option("--fine-tune", help="Also move the weights of each checkpoint.")] = False,
    rivals: Annotated[bool, typer.Option("--rivals", help="Also enter every other simple model.")] = False,
    networks: Annotated[
        bool, typer.Option("--networks", help="Also train BrainNetCNN, Brain Network Transformer and meanMLP (slow).")
    ] = False,
    folds: Folds = None,
    jobs: Jobs = 1,
    overrides: Set = None,
) -> None:
    """Compare checkpoints with every baseline on the same folds; predictions are saved."""
    from openbrainmass.cohort.store import load_cohort
    from openbrainmass.durable import require_free
    from openbrainmass.evaluation.metrics import HEADLINE
    from openbrainmass.evaluation.tasks import Task
    from openbrainmass.road import EvaluationSettings, compare_models

    require_free(out)
    cohort = load_cohort(store)
    asked = [f"{name}=true" for name, wanted in (("rivals", rivals), ("networks", networks)) if wanted]
    results = compare_models(
        cohort,
        _task(cohort, task, target),
        EvaluationSettings.load(overrides=[*(overrides or []), *asked]),
        checkpoints=_by_name(checkpoint or []),
        test=load_cohort(test) if test else None,
        test_task=Task.load(test_task) if test_task else None,
        folds=folds,
        stores=(store, test),
        probe=probe,
        fine_tune=fine_tune,
        jobs=jobs,
    )
    results.save(out)
    metrics = results.metrics()
    _print_table(metrics[metrics["metric"] == HEADLINE[results.kind]])
    if "audit" in results.tables:
        _print_findings(results.tables["audit"])
    for note in results.settings["notes"]:
        print(f"note: {note}")
    print(f"Wrote {out}")


@app.command(
    "audit", epilog="Example: openbrainmass audit stores/mine --task abide1-asd --folds folds.tsv --features mine.tsv"
)
def audit_(
    store: Store,
    task: TaskName = None,
    target: Target = None,
    folds: Folds = None,
    features: Annotated[
        Path | None, typer.Option(help="Features made elsewhere: recording_id or participant_id, then numbers.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A run folder or a name of weights: had it met the people who are tested?")
    ] = None,
    pretrained_on: Annotated[
        Path | None, typer.Option("--pretrained-on", help="The pretraining store, to look for the tested scans in.")
    ] = None,
    test: Test = None,
    test_task: TestTask = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table here.")] = None,
) -> None:
    """Look for every known leak in folds, features, pretraining and labels; refuse by name (exit code 1)."""
    from openbrainmass.cohort.store import load_cohort
    from openbrainmass.durable import write_tsv
    from openbrainmass.evaluation.audit.audit import audit
    from openbrainmass.evaluation.audit.checks import refuse
    from openbrainmass.evaluation.tasks import Task

    cohort = load_cohort(store)
    table = audit(
        cohort,
        _task(cohort, task, target),
        folds=folds,
        features=features,
        seen=_checkpoint(checkpoint) if checkpoint else None,
        pretrained_on=load_cohort(pretrained_on) if pretrained_on else None,
        test_cohort=load_cohort(test) if test else None,
        test_task=Task.load(test_task) if test_task else None,
        store=store,
        test_store=test,
    )
    for row in table.itertuples():
        print(f"{row.verdict:<12} {row.check:<24} {row.finding}")
    if out:
        write_tsv(out, table)
        print(f"Wrote {out}")
    refuse(table)


@app.command("explain", epilog="Example: openbrainmass explain stores/mine --checkpoint runs/small --out maps")
def explain_(
    store: Store,
    checkpoint: Annotated[Path, typer.Option(help="A run folder, or a name of weights.")],
    out: Out,
    task: TaskName = None,
    target: Target = None,
    folds: Annotated[int, typer.Option(help="Folds of people; the maps are of held-out ones.", min=2)] = 5,
    permutations: Annotated[int, typer.Option(help="Relabellings that make the null.", min=2)] = 100,
) -> None:
    """Which edges, ROIs and networks speak, against a permutation null."""
    from openbrainmass.cohort.store import load_cohort
    from openbrainmass.durable import require_free
    from openbrainmass.road import explain_checkpoint

    require_free(out)
    cohort = load_cohort(store)
    explanation = explain_checkpoint(checkpoint, cohort, _task(cohort, task, target), folds, permutations)
    explanation.save(out)
    _print_table(explanation.rois.head(10))
    print(f"Wrote {out}")


@app.command(epilog="Example: openbrainmass report stores/mine runs/small results maps --out report.html")
def report(
    folders: Annotated[list[Path], typer.Argument(help="Stores, run folders, results, explanations, embeddings.tsv.")],
    out: Page,
) -> None:
    """One self-contained HTML page from saved folders; every number comes from a saved table."""
    from openbrainmass.report.page import write_report

    write_report(folders, out)
    print(f"Wrote {out}")


@app.command(epilog="Example: openbrainmass leaderboard results/* --out leaderboard.html")
def leaderboard(
    folders: Annotated[list[Path], typer.Argument(help="Results folders, of anybody's models.")], out: Page
) -> None:
    """Rank the models of several results on one page, those on the same people, labels and folds together."""
    from openbrainmass.report.leaderboard import write_leaderboard

    write_leaderboard(folders, out)
    print(f"Wrote {out}")


@app.command(epilog="Example: openbrainmass convert official.pth --out runs/official")
def convert(
    weights: Annotated[Path, typer.Argument(help="The published .pth file.")], out: Out, atlas: Atlas = None
) -> None:
    """Turn the published weights into a checkpoint (nothing in the file is executed)."""
    from openbrainmass.durable import require_free
    from openbrainmass.model.convert import convert as convert_weights

    print(convert_weights(weights, require_free(out), atlas=atlas))


@app.command(epilog="Example: openbrainmass datasets abide1")
def datasets(name: Annotated[str | None, typer.Argument(help="One dataset, for its card.")] = None) -> None:
    """Datasets that are known, one line each, or one card."""
    from openbrainmass.cohort.catalogue import dataset_card, dataset_names

    for known in [name] if name else dataset_names():
        card = dataset_card(known)
        print(card.text() if name else card.line())


@app.command(epilog="Example: openbrainmass weights openbrainmass-cc200")
def weights(name: Annotated[str | None, typer.Argument(help="One of them, for its model card.")] = None) -> None:
    """Pretrained weights that come with the package, one line each, or one model card."""
    from openbrainmass.model.pretrained import model_card, pretrained_line, pretrained_names

    print(model_card(name) if name else "\n".join(map(pretrained_line, pretrained_names())))


@app.command(epilog="Example: openbrainmass tasks abide1-asd")
def tasks(name: Annotated[str | None, typer.Argument(help="One task, for its card.")] = None) -> None:
    """Tasks that are known, one line each, or one card."""
    from openbrainmass.evaluation.tasks import Task, task_names

    for known in [name] if name else task_names():
        task = Task.load(known)
        print(task.text() if name else task.line())


def _task(cohort: Cohort, task: str | None, target: str | None) -> Task:
    from openbrainmass.evaluation.tasks import Task

    if task is not None and target is not None:
        raise OpenBrainMassError(
            f"Both --task {task} and --target {target} were given; a task has its own target. Give one."
        )
    return Task.load(task) if task is not None else Task.from_cohort(cohort, target)


def _by_name(checkpoints: list[Path]) -> dict[str, Path]:
    """Run folders by the names that tables give them; by their whole paths where two have the same name."""
    names = [path.name for path in checkpoints]
    return {path.name if names.count(path.name) == 1 else str(path): path for path in checkpoints}


def _checkpoint(path: Path) -> object:
    from openbrainmass.model.checkpoint import Checkpoint

    return Checkpoint.load(path)


def _say(line: str) -> None:
    print(line, flush=True)


def _print_table(table: pd.DataFrame) -> None:
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def _print_findings(audit: pd.DataFrame) -> None:
    for row in audit[audit["verdict"].isin(["floor", "refused"])].itertuples():
        print(f"{row.verdict}: {row.check}: {row.finding}")


def _print_counts(title: str, values: pd.Series) -> None:
    for value, count in values.value_counts().items():
        print(f"{title}: {count} {value}")


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"Warning: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line: 0 when all is well, 1 with one paragraph for a user's error, 2 for wrong usage."""
    warnings.showwarning = _show_warning
    try:
        app()
    except OpenBrainMassError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer makes an exit of its own of Ctrl-C once a verb has begun.
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        print("Stopped. Run the same command again to go on.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
