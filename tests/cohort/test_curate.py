"""From folders or stores to a store, through the command line: painted images, kills, merges, copies, wrong orders."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from openbrainmass import cli
from openbrainmass.atlas import load_atlas
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.cohort.store import load_cohort
from openbrainmass.durable import read_tsv, write_tsv

COMMAND = [sys.executable, "-c", "from openbrainmass.cli import main; main()"]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["openbrainmass", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def refused(result: tuple[int, str, str], *said: str) -> None:
    code, _, err = result
    assert code == 1 and "Traceback" not in err, err
    for words in said:
        assert words in err


def plain(path: Path, people: range, n_rois: int = 60, n_volumes: int = 120, **columns: str) -> Path:
    """A plain folder of people of one big cohort; a person is the same in every folder."""
    cohort = simulate_cohort(people.stop, 1, n_rois, n_volumes, seed=2)
    path.mkdir()
    names = [f"sub-{i}" for i in people]
    for i, name in zip(people, names, strict=True):
        np.save(path / f"{name}.npy", cohort[i])
    table = pd.DataFrame({"participant_id": names, "tr": 2.0, "file": [f"{name}.npy" for name in names]})
    write_tsv(path / "participants.tsv", table.assign(**columns))
    cohort.atlas.table()[["roi_name"]].to_csv(path / "atlas.tsv", sep="\t", index=False)
    return path


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


def reasons(store: Path) -> dict[str, str]:
    table = read_tsv(store / "exclusions.tsv")
    return dict(zip(table["participant_id"], table["reason"], strict=True))


def cleaned(series: np.ndarray, confounds: pd.DataFrame, jumps: tuple[int, ...]) -> np.ndarray:
    """What nilearn makes of the true series: cosines, motion (24), and tissues, their derivatives, too, with jumps."""
    from nilearn.signal import clean

    tissues = [c for c in confounds if c.startswith(("csf", "white_matter"))] if jumps else ["csf", "white_matter"]
    moved = [c for c in confounds if c.startswith(("trans", "rot", "cosine"))]
    kept = np.setdiff1d(np.arange(len(series)), jumps) if jumps else None
    regressors = confounds[moved + tissues].bfill()
    return clean(series, confounds=regressors, sample_mask=kept, detrend=False, standardize=None, filter=False)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "jumps"), [("none", ()), ("simple", ()), ("scrubbing", (40, 41))])
@pytest.mark.parametrize("kind", ["nifti", "cifti"])
def test_painted_images_come_back_cleaned(command, paint, tmp_path, kind, strategy, jumps):
    func = tmp_path / "fmriprep" / "sub-01" / "func"
    bold = np.random.default_rng(4).normal(size=(100, 6 if kind == "nifti" else 4)) * 10
    if kind == "nifti":
        atlas = tmp_path / "six_dseg.nii.gz"
        nib.save(nib.Nifti1Image(paint.labels, paint.affine), atlas)
        name = "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        paint.volume(func / name, bold, paint.labels, noise=5.0)
    else:
        atlas = paint.dlabel(tmp_path / "four.dlabel.nii")
        paint.dense(func / "sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii", bold, atlas, noise=2.0)
    confounds = paint.confounds(func / "sub-01_task-rest_desc-confounds_timeseries.tsv", 100, jumps=jumps)
    out = tmp_path / "store"
    code, said, err = command(
        "cohort", tmp_path / "fmriprep", "--atlas", atlas, "--out", out, "--set", f"reading.strategy={strategy}"
    )
    assert code == 0 and "1 recordings of 1 people" in said, err
    made = load_cohort(out)
    expected = bold
    if strategy != "none":
        expected = cleaned(bold, pd.read_csv(confounds, sep="\t", na_values="n/a"), jumps)
    assert made[0].shape == expected.shape
    assert correlations(made[0], expected).min() > 0.99
    row = made.recordings.iloc[0]
    assert (row["tr"], row["fd_formula"]) == (2.0, "power")
    if jumps:
        assert (row["n_censored"], row["kept_volumes"]) == (2, "0-39;42-99")


@pytest.mark.data
@pytest.mark.parametrize("kind", ["nifti", "cifti"])
def test_a_real_scan_painted_beside_real_confounds(command, data_dir, paint, tmp_path, kind):
    """ABIDE in CC200 at 4 mm and in one map of Conte69, voxel noise, and confounds of ds000030."""
    from nilearn.interfaces.fmriprep import load_confounds
    from nilearn.signal import clean

    people = read_tsv(data_dir / "abide1_cc200" / "participants.tsv")
    series = np.load(data_dir / "abide1_cc200" / people["file"][people["n_volumes"] >= 152].iloc[0])[:152].astype(float)
    series = 10 * (series - series.mean(axis=0)) / series.std(axis=0)
    func = tmp_path / "fmriprep" / "sub-01" / "func"
    if kind == "nifti":
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = (-90, -126, -72)
        given = data_dir / "atlases" / "pcp_cc200_roi_atlas.nii.gz"
        labels = _at_4_mm(given, affine)
        name = "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        image = paint.volume(func / name, series, labels, affine, noise=5.0)
    else:
        given = _one_map(
            data_dir / "derivatives/cifti2_sample/Conte69.parcellations_VGD11b.32k_fs_LR.dlabel.nii", tmp_path
        )
        series = series[:, : load_atlas(given).n_rois]
        image = paint.dense(func / "sub-01_task-rest_space-fsLR_den-32k_bold.dtseries.nii", series, given, noise=3.0)
    source = data_dir / "derivatives/halfpipe_ds000030/derivatives/fmriprep/sub-10171/func"
    for ending in ("tsv", "json"):
        stem = f"task-rest_desc-confounds_timeseries.{ending}"
        shutil.copyfile(source / f"sub-10171_{stem}", func / f"sub-01_{stem}")
    out = tmp_path / "store"
    words = ("--atlas", given, "--out", out, "--set", "reading.strategy=scrubbing")
    code, _, err = command("cohort", tmp_path / "fmriprep", *words)
    assert code == 0, err
    confounds, mask = load_confounds(
        str(image), ("high_pass", "motion", "wm_csf", "scrub"), wm_csf="full", scrub=5, fd_threshold=0.5
    )
    expected = clean(series, confounds=confounds, sample_mask=mask, detrend=False, standardize=None, filter=False)
    made = load_cohort(out)
    assert made[0].shape == expected.shape and len(expected) < 152
    assert correlations(made[0], expected).min() > 0.99


def _at_4_mm(path: Path, affine: np.ndarray) -> np.ndarray:
    from nilearn.image import resample_img

    image = nib.load(path)
    image = nib.Nifti1Image(np.asarray(image.dataobj).squeeze().astype(np.int32), image.affine)
    options = {"interpolation": "nearest", "copy_header": True, "force_resample": True}
    moved = resample_img(image, target_affine=affine, target_shape=(46, 55, 46), **options)
    return np.asarray(moved.dataobj).astype(int)


def _one_map(path: Path, folder: Path) -> Path:
    from nibabel.cifti2 import LabelAxis

    image = nib.load(path)
    maps, models = image.header.get_axis(0), image.header.get_axis(1)
    one = nib.Cifti2Image(np.asanyarray(image.dataobj)[:1], (LabelAxis(maps.name[:1], maps.label[:1]), models))
    one.nifti_header.set_intent(3007)
    nib.save(one, folder / "conte.dlabel.nii")
    return folder / "conte.dlabel.nii"


def test_a_mistaken_atlas_image_leaves_nothing_in_the_way(command, paint, tmp_path):
    nib.save(nib.Nifti1Image(paint.labels, paint.affine), tmp_path / "six_dseg.nii.gz")
    bold = np.random.default_rng(4).normal(size=(100, 6)) * 10
    name = "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    func = tmp_path / "fmriprep" / "sub-01" / "func"
    paint.volume(func / name, bold, paint.labels)
    paint.confounds(func / "sub-01_task-rest_desc-confounds_timeseries.tsv", 100)
    surface = paint.dlabel(tmp_path / "four.dlabel.nii")
    words = ("cohort", tmp_path / "fmriprep", "--out", tmp_path / "store", "--atlas")
    refused(command(*words[:-1]), name, "none was named", "--atlas atlas.nii.gz")
    refused(command(*words, "six"), name, "six is a mere name", "--atlas atlas.nii.gz")
    refused(command(*words, surface), "1 of 1 recordings cannot be read", "its image is a surface")
    assert command(*words, tmp_path / "six_dseg.nii.gz")[0] == 0


def test_parts_of_two_atlas_images_are_never_mixed(command, paint, tmp_path):
    bold = np.random.default_rng(4).normal(size=(100, 6)) * 10
    for i in (1, 2):
        func = tmp_path / "fmriprep" / f"sub-0{i}" / "func"
        paint.volume(func / f"sub-0{i}_task-rest_space-MNI_desc-preproc_bold.nii.gz", bold * i, paint.labels)
        paint.confounds(func / f"sub-0{i}_task-rest_desc-confounds_timeseries.tsv", 100)
    (func / "sub-02_task-rest_desc-confounds_timeseries.tsv").write_text("torn")
    labels = {"a": paint.labels, "b": np.where(paint.labels > 0, 7 - paint.labels, 0).astype(np.int16)}
    for name, values in labels.items():
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(values, paint.affine), tmp_path / name / "six.nii.gz")
    words = ("cohort", tmp_path / "fmriprep", "--out", tmp_path / "store", "--skip-unreadable", "--atlas")
    refused(command(*words[:4], "--atlas", tmp_path / "a" / "six.nii.gz"), "1 of 2 recordings cannot be read")
    refused(command(*words, tmp_path / "b" / "six.nii.gz"), "holds an unfinished build", "atlas_image was")
    assert command(*words, tmp_path / "a" / "six.nii.gz")[0] == 0


# ---- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(command, tmp_path):
    folder = tmp_path / "lab"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(600):
        np.save(folder / f"sub-{i:03}_atlas-Twenty_timeseries.npy", rng.normal(size=(100, 20)).astype(np.float32))
    words = ["cohort", str(folder), "--set", "quality.min_seconds=0", "--out"]
    assert command(*words, tmp_path / "alone")[0] == 0
    out, parts = tmp_path / "out", tmp_path / ".out.incomplete"
    process = subprocess.Popen([*COMMAND, *words, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (parts / "part-00000.json").exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert parts.is_dir() and not out.exists()
    refused(command("export", out, "--out", tmp_path / "tables"), "is not built yet", "Run the same command again")
    refused(command(*words, out, "--dtype", "float16"), "dtype was auto and is float16")
    assert command(*words, out)[0] == 0
    assert contents(out) == contents(tmp_path / "alone") and not parts.exists()


def test_unreadable_files_stop_it_until_they_are_mended_or_left_out(command, tmp_path):
    folder = plain(tmp_path / "lab", range(6))
    whole = (folder / "sub-2.npy").read_bytes()
    (folder / "sub-2.npy").write_bytes(whole[:500])
    refused(command("cohort", folder, "--out", tmp_path / "a"), "1 of 6 recordings", "sub-2.npy", "--skip-unreadable")
    assert not (tmp_path / "a").exists()
    code, said, _ = command("cohort", folder, "--out", tmp_path / "b", "--skip-unreadable")
    assert code == 0 and "Excluded: 1 unreadable" in said
    assert reasons(tmp_path / "b") == {"sub-2": "unreadable"}
    assert "sub-2.npy" in read_tsv(tmp_path / "b" / "exclusions.tsv")["detail"][0]
    refused(command("export", tmp_path / "b", "--out", tmp_path / "a"), "a is not built yet", "Or name another output")
    (folder / "sub-2.npy").write_bytes(whole)
    code, said, _ = command("cohort", folder, "--out", tmp_path / "a")
    assert code == 0 and "6 recordings of 6 people" in said


def test_a_store_beside_its_source_is_not_read_as_data(command, tmp_path):
    folder = tmp_path / "größe 名 x"
    folder.mkdir()
    for i, bold in enumerate(simulate_cohort(4, 1, 20, 80, seed=1)):
        np.save(folder / f"Пациент {i}.npy", bold)
    (folder / "ring").symlink_to(folder)
    (folder / "self").symlink_to("self")
    stores = [folder / "störe", tmp_path / "b"]
    for out in stores:
        code, _, err = command("cohort", folder, "--atlas", "Sim", "--out", out)
        assert code == 0, err
    assert contents(stores[0]) == contents(stores[1])
    assert list(load_cohort(stores[1]).recordings["recording_id"]) == [f"sub-Пациент{i}" for i in range(4)]


# ---- several stores, copies, orders ----------------------------------------------------------------------------------


def test_stores_are_merged_and_options_that_would_do_nothing_are_refused(command, tmp_path):
    for name, people in (("a", range(6)), ("b", range(4, 10))):
        plain(tmp_path / f"lab-{name}", people)
        assert command("cohort", tmp_path / f"lab-{name}", "--dataset", name, "--out", tmp_path / name)[0] == 0
    both = ("cohort", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")
    for option in (("--against", tmp_path / "a"), ("--atlas", "x"), ("--set", "reading.detrend=true")):
        refused(command(*both, *option), option[0], "would do nothing")
    code, said, _ = command(*both)
    assert code == 0 and "10 recordings of 10 people" in said and "Excluded: 2 duplicate" in said
    assert reasons(tmp_path / "both") == {"b/sub-4": "duplicate", "b/sub-5": "duplicate"}


def test_who_has_a_recording_in_one_of_the_stores_does_not_lack_one(command, tmp_path):
    for name, people in (("a", range(4)), ("b", range(4, 8))):
        folder = plain(tmp_path / f"lab-{name}", people)
        table = read_tsv(folder / "participants.tsv")
        table[["participant_id", "tr", "file"]].to_csv(folder / "recordings.tsv", sep="\t", index=False)
        everybody = pd.DataFrame({"participant_id": [f"sub-{i}" for i in range(9)]})
        write_tsv(folder / "participants.tsv", everybody)
        assert command("cohort", folder, "--dataset", "lab", "--out", tmp_path / name)[0] == 0
    assert command("cohort", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")[0] == 0
    assert reasons(tmp_path / "both") == {"sub-8": "no-recording"}


def test_scans_of_another_store_and_copies_under_other_names_are_left_out(command, tmp_path):
    old = plain(tmp_path / "old", range(4))
    assert command("cohort", old, "--out", tmp_path / "a")[0] == 0
    new = plain(tmp_path / "new", range(2, 10))
    np.save(new / "sub-9.npy", np.load(new / "sub-8.npy")[10:-5][::-1] * 3 + 50)
    code, said, _ = command("cohort", new, "--out", tmp_path / "b", "--against", tmp_path / "a")
    assert code == 0 and "Excluded: 2 seen-elsewhere" in said
    found = reasons(tmp_path / "b")
    assert {p for p, reason in found.items() if reason == "seen-elsewhere"} == {"sub-2", "sub-3"}
    assert [reason for p, reason in found.items() if p in {"sub-8", "sub-9"}] == ["duplicate"]


def test_wrong_orders_are_found_with_a_template_and_its_lack_is_told(command, tmp_path):
    for name, people in (("right", range(12)), ("new", range(12, 20))):
        plain(tmp_path / name, people, n_rois=100, n_volumes=150)
    # Columns without names: position is all there is.
    for name in ("right", "new"):
        (tmp_path / name / "atlas.tsv").unlink()
    swapped = np.load(tmp_path / "new" / "sub-15.npy")[:, np.random.default_rng(0).permutation(100)]
    np.save(tmp_path / "new" / "sub-15.npy", swapped)
    assert command("cohort", tmp_path / "right", "--atlas", "Sim", "--out", tmp_path / "a")[0] == 0
    told = read_tsv(tmp_path / "a" / "warnings.tsv")
    assert list(told["kind"]) == ["order-unchecked"] and "--template" in told["detail"][0]
    assert "order-unchecked" in (tmp_path / "a" / "quality.html").read_text(encoding="utf-8")
    words = ("cohort", tmp_path / "new", "--atlas", "Sim", "--template", tmp_path / "a", "--out", tmp_path / "b")
    assert command(*words)[0] == 0
    assert reasons(tmp_path / "b") == {"sub-15": "wrong-roi-order"}
    assert "order-unchecked" not in set(read_tsv(tmp_path / "b" / "warnings.tsv")["kind"])
    assert command("cohort", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")[0] == 0
    kept = read_tsv(tmp_path / "both" / "warnings.tsv")
    assert kept["detail"][kept["kind"] == "order-unchecked"].str.startswith("right: ").tolist() == [True]


@pytest.mark.data
def test_wrong_orders_in_files_as_they_were_downloaded(command, data_dir, tmp_path):
    folder = tmp_path / "slice"
    shutil.copytree(data_dir / "abide_pcp_slice", folder, copy_function=shutil.copyfile)
    files = sorted(folder.rglob("*.1D"))
    orders = (np.random.default_rng(0).permutation(200), np.roll(np.arange(200), 1), np.r_[0:200:2, 1:200:2])
    for file, order in zip(files, orders, strict=False):
        header, *lines = file.read_text().splitlines()
        rows = np.array([line.split("\t") for line in lines])[:, order]
        file.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    image = data_dir / "atlases" / "pcp_cc200_roi_atlas.nii.gz"
    assert command("cohort", folder, "--dataset", "abide1", "--atlas", image, "--out", tmp_path / "a")[0] == 0
    wrong = {person for person, reason in reasons(tmp_path / "a").items() if reason == "wrong-roi-order"}
    assert wrong == {f"sub-{file.stem.split('_rois')[0][-7:]}" for file in files[:3]}


def test_what_was_exported_is_read_again(command, tmp_path):
    plain(tmp_path / "lab", range(4))
    assert command("cohort", tmp_path / "lab", "--out", tmp_path / "a")[0] == 0
    assert command("export", tmp_path / "a", "--out", tmp_path / "tables")[0] == 0
    assert command("cohort", tmp_path / "tables", "--out", tmp_path / "b")[0] == 0
    first, again = load_cohort(tmp_path / "a"), load_cohort(tmp_path / "b")
    assert first.atlas.digest == again.atlas.digest
    assert list(first.recordings["digest"]) == list(again.recordings["digest"])
