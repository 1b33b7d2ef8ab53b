"""Quality control: every reason, its detail, and what stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.atlas import numbered_atlas
from openbrainmass.cohort.cohort import bold_digest
from openbrainmass.cohort.duplicates import Fingerprinter
from openbrainmass.cohort.quality import (
    REASONS,
    WARNINGS,
    Judgement,
    QualitySettings,
    dead_rois,
    inspect,
    judge,
)
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.errors import OpenBrainMassError

N_ROIS = 20
ATLAS = numbered_atlas("Toy", N_ROIS)


def noise(seed: int, n_volumes: int = 100, n_rois: int = N_ROIS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_volumes, n_rois)).astype(np.float32)


def with_columns(bold: np.ndarray, n_columns: int, value: Any) -> np.ndarray:
    bold = bold.copy()
    bold[:, :n_columns] = value
    return bold


def one_nan(bold: np.ndarray) -> np.ndarray:
    bold = bold.copy()
    bold[3, 4] = np.nan
    return bold


def material(arrays: dict[str, np.ndarray], **columns: Any) -> tuple[pd.DataFrame, np.ndarray, Any]:
    """A recordings table, fingerprints and the reader of some arrays, one person each unless told otherwise."""
    names = list(arrays)
    recordings = pd.DataFrame(
        {
            "recording_id": names, "participant_id": names, "session": None, "tr": 2.0,
            "n_volumes": [len(bold) for bold in arrays.values()],
            "digest": [bold_digest(bold) for bold in arrays.values()],
        }
    ).assign(**columns)  # fmt: skip
    n_rois = next(iter(arrays.values())).shape[1]
    prints = np.stack([Fingerprinter(n_rois)(bold) for bold in arrays.values()])
    return recordings, prints, lambda place: arrays[names[place]]


def judged(
    arrays: dict[str, np.ndarray], people: dict[str, Any] | None = None, settings: QualitySettings | None = None,
    others: tuple = (), **columns: Any,
) -> Judgement:  # fmt: skip
    recordings, prints, read = material(arrays, **columns)
    ids = recordings["participant_id"].drop_duplicates().tolist()
    participants = pd.DataFrame({"participant_id": ids, **(people or {})})
    return judge(recordings, participants, prints, read, settings or QualitySettings(), others)


def told(judgement: Judgement) -> list[tuple[str, str]]:
    return list(judgement.excluded[["recording_id", "reason"]].itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def forty() -> dict[str, np.ndarray]:
    """40 simulated people in two sessions each: recordings a0, b0 are those of person 0."""
    cohort = simulate_cohort(40, 2, 40, 300, n_sessions=2)
    order = cohort.recordings.sort_values(["session", "participant_id"]).index
    return {f"{'ab'[i // 40]}{i % 40}": cohort[place] for i, place in enumerate(order)}


@pytest.mark.parametrize(
    ("bold", "tr", "reason", "detail"),
    [
        (noise(0), 2.0, None, ""),
        (noise(0), 1.2, None, ""),
        (noise(0), 1.1, "too-short", "110 s, 120 s needed"),
        (noise(0, 29), np.nan, "too-short", "29 volumes, 30 needed"),
        (noise(0, 30), np.nan, None, ""),
        (noise(0, n_rois=19), 2.0, "wrong-roi-count", "19 ROIs, the atlas has 20"),
        (one_nan(noise(0)), 2.0, "non-finite", "NaN or infinity at some volumes of 1 ROIs"),
        (with_columns(noise(0), 2, np.inf), 2.0, "non-finite", "2 ROIs"),
        (with_columns(noise(0), 2, np.nan), 2.0, None, ""),
        (with_columns(noise(0), 2, 0.0), 2.0, None, ""),
        (with_columns(noise(0), 3, 0.0), 2.0, "dead-rois", "3 of 20 ROIs constant or missing, 2 allowed"),
        (with_columns(noise(0), 3, np.nan), 2.0, "dead-rois", "3 of 20"),
        (with_columns(noise(0), 3, 1e-3 * noise(5, n_rois=3)), 2.0, "dead-rois", "3 of 20"),
    ],
)
def test_each_reason_of_one_recording(bold, tr, reason, detail):
    finding = inspect(bold, ATLAS, tr, QualitySettings())
    assert finding.reason == reason and detail in finding.detail
    assert finding.reason is None or finding.reason in REASONS


def test_measures_of_one_recording():
    measures = inspect(with_columns(noise(0), 2, 5.0), ATLAS, 2.0, QualitySettings()).measures
    assert measures == {"n_volumes": 100, "seconds": 200.0, "n_dead": 2, "dead_rois": "1;2"}
    assert np.isnan(inspect(noise(0), ATLAS, np.nan, QualitySettings()).measures["seconds"])


@given(st.sets(st.integers(0, N_ROIS - 1)), st.sets(st.integers(0, N_ROIS - 1)))
def test_dead_rois_are_the_constant_and_the_missing_ones(constant, missing):
    bold = noise(1, 10)
    bold[:, list(constant)] = 5.5
    bold[:, list(missing)] = np.nan
    assert set(dead_rois(bold)) == constant | missing


@given(st.floats(1e-4, 1e4), st.floats(-100, 100))
def test_faint_is_relative_to_the_other_rois(scale, offset):
    bold = noise(1, 60).astype(float) * scale
    bold[:, 3] *= 1e-3
    bold[:, 5] *= 0.1
    bold += offset * scale
    assert dead_rois(bold).tolist() == [3]


def test_an_roi_that_hardly_ever_changes_is_dead():
    bold = noise(1, 100)
    bold[:, 4] = np.repeat([1.0, 9.0, 2.0, 7.0], 25)
    assert dead_rois(bold).tolist() == [4]
    assert dead_rois(np.zeros((10, 3))).tolist() == [0, 1, 2]


def test_amplitudes_that_float16_cannot_square_are_no_trouble():
    bold = (noise(1) * 2000).astype(np.float16)
    assert dead_rois(bold).size == 0


def test_an_exact_copy_goes_and_the_first_stays():
    assert told(judged({"a": noise(1), "b": noise(2), "c": noise(1)})) == [("c", "duplicate")]


def test_of_copies_the_longest_stays():
    judgement = judged({"a": noise(1)[10:80], "b": noise(2), "c": noise(1), "d": noise(1)[::-1]})
    assert told(judgement) == [("a", "duplicate"), ("d", "duplicate")]
    details = dict(judgement.excluded[["recording_id", "detail"]].to_numpy())
    assert details["a"].startswith("same scan as c (time courses correlate 1.0")
    assert "one backwards" in details["d"]


def test_contradicting_copies_all_go():
    base = noise(1)
    arrays = {"a": base, "b": noise(2), "c": base + 0.05 * noise(3), "d": base}
    judgement = judged(arrays, {"dx": ["ill", "well", "well", "ill"], "sex": ["F", "F", "F", None]})
    assert told(judgement) == [(name, "contradicting-duplicate") for name in "acd"]
    assert "but dx is ill and well" in judgement.excluded["detail"].iloc[0]


def test_a_label_of_the_recording_counts_before_that_of_the_person():
    judgement = judged({"a": noise(1), "b": noise(1)}, {"dx": ["ill", "ill"]}, dx=["ill", "well"])
    assert told(judgement) == [("a", "contradicting-duplicate"), ("b", "contradicting-duplicate")]


def test_a_missing_label_contradicts_nothing():
    assert told(judged({"a": noise(1), "b": noise(1)}, {"dx": ["ill", None]})) == [("b", "duplicate")]


def test_another_age_is_a_warning():
    judgement = judged({"a": noise(1), "b": noise(1)}, {"age": [12.2, 11.2]})
    assert told(judgement) == [("b", "duplicate")]
    assert judgement.warnings.to_numpy().tolist() == [
        ["contradicting-age", "a", "a", "copies of one scan give the ages 12.2 in a, 11.2 in b"]
    ]


def test_one_scan_filed_as_two_sessions_of_a_person_is_found():
    judgement = judged({"a": noise(1), "b": noise(1) * 2 + 0.1 * noise(3)}, participant_id=["p", "p"])
    assert told(judgement) == [("b", "duplicate")]
    assert judgement.excluded["detail"].iloc[0].endswith("filed as two recordings of one person")


def test_copies_are_kept_where_nobody_looks():
    assert told(judged({"a": noise(1), "b": noise(1)}, settings=QualitySettings(check_duplicates=False))) == []


def test_a_scan_of_another_store_goes():
    recordings, prints, read = material({"x": noise(9), "y": noise(2)[::-1]})
    judgement = judged({"a": noise(1), "b": noise(2)}, others=(("old", recordings, prints, read),))
    assert told(judgement) == [("b", "seen-elsewhere")]
    assert "same scan as y of the store old" in judgement.excluded["detail"].iloc[0]


def test_copies_in_a_cohort_of_many(forty):
    arrays = {**forty, "c": forty["a3"][::-1] * 2, "d": forty["b5"][40:200]}
    assert told(judged(arrays)) == [("c", "duplicate"), ("d", "duplicate")]


def test_sessions_of_one_person_are_no_copies_and_not_mixed_up(forty):
    judgement = judged(forty, participant_id=[name[1:] for name in forty])
    assert judgement.excluded.empty
    assert not (judgement.warnings["kind"] == "mixed-up").any()


def test_people_mixed_up_between_sessions_are_reported_with_both_names(forty):
    people = [name[1:] for name in forty]
    people[43], people[57] = people[57], people[43]
    warnings = judged(forty, participant_id=people).warnings
    mixed = warnings[warnings["kind"] == "mixed-up"]
    assert set(mixed["recording_id"]) >= {"b3", "b17"} and set(mixed["participant_id"]) == {"3", "17"}
    detail = dict(mixed[["recording_id", "detail"]].to_numpy())["b3"]
    assert "more like a3 of 3" in detail and "other recordings of 17" in detail
    assert set(warnings["kind"]) <= set(WARNINGS)


def test_typicality_is_measured_warned_of_and_excluded(forty):
    arrays = {**forty, "odd": noise(0, 150, 40)}
    judgement = judged(arrays)
    typicality = judgement.measures.set_index("recording_id")["typicality"]
    assert typicality.idxmin() == "odd" and typicality["odd"] < 0.2 < typicality.drop("odd").min()
    assert judgement.warnings[["kind", "recording_id"]].to_numpy().tolist() == [["atypical-fc", "odd"]]
    twice = judged({**arrays, "odd again": noise(0, 150, 40)})
    assert told(twice) == [("odd again", "duplicate")] and twice.warnings["recording_id"].tolist() == ["odd"]
    strict = judged(arrays, settings=QualitySettings(min_typicality=0.2))
    assert told(strict) == [("odd", "atypical-fc")] and strict.warnings.empty
    assert "0.2 needed" in strict.excluded["detail"].iloc[0]


def test_typicality_of_two_is_not_known():
    assert judged({"a": noise(1), "b": noise(2)}).measures["typicality"].isna().all()


def test_motion_is_read_from_recordings_or_people():
    arrays = {name: noise(i) for i, name in enumerate("abc")}
    limit = QualitySettings(max_mean_fd=0.3)
    assert told(judged(arrays, {"mean_fd": [0.1, 0.4, np.nan]}, limit)) == [("b", "too-much-motion")]
    own = judged(arrays, {"mean_fd": [0.9] * 3}, limit, mean_fd=[0.31, 0.3, np.nan])
    assert told(own) == [("a", "too-much-motion"), ("c", "too-much-motion")]
    assert own.excluded["detail"].iloc[0] == "mean FD 0.31 mm, 0.3 mm allowed"
    assert told(judged(arrays, {"mean_fd": [9.0] * 3})) == []


def test_censored_volumes_do_not_count_as_data():
    arrays = {name: noise(i) for i, name in enumerate("abc")}
    columns: dict[str, Any] = {"n_censored": [20, 50, np.nan], "n_acquired": [100, 100, np.nan]}
    judgement = judged(arrays, **columns)
    assert told(judgement) == [("b", "too-short")]
    assert judgement.excluded["detail"].iloc[0] == "100 s without motion, 120 s needed"
    share = judged(arrays, settings=QualitySettings(max_censored_share=0.1, min_seconds=0), **columns)
    assert told(share) == [("a", "too-much-motion"), ("b", "too-much-motion")]
    assert "20 of 100 volumes moved, 10% allowed" in share.excluded["detail"].iloc[0]


def test_what_is_excluded_anyway_does_not_stand_for_its_copy():
    judgement = judged({"a": noise(1), "b": noise(1)}, settings=QualitySettings(max_mean_fd=0.5), mean_fd=[0.9, 0.1])
    assert told(judgement) == [("a", "too-much-motion")]


def test_labels_that_are_not_known_are_listed():
    arrays = {name: noise(i) for i, name in enumerate("abcd")}
    judgement = judged(arrays, {"dx": [1.0, 2.0, None, 9.0]}, QualitySettings(known_labels={"dx": ("1", "2")}))
    assert told(judgement) == [("c", "unknown-label"), ("d", "unknown-label")]
    assert judgement.excluded["detail"].tolist() == ["dx is missing, known are 1, 2", "dx is '9', known are 1, 2"]


def test_labels_of_a_column_that_is_not_there_are_an_error():
    with pytest.raises(OpenBrainMassError, match=r"column dx.*it has participant_id"):
        judged({"a": noise(1)}, settings=QualitySettings(known_labels={"dx": ("1",)}))


def test_fingerprints_that_do_not_fit_are_an_error():
    recordings, prints, read = material({"a": noise(1), "b": noise(2)})
    people = pd.DataFrame({"participant_id": ["a", "b"]})
    with pytest.raises(OpenBrainMassError, match="1 fingerprints for 2 recordings"):
        judge(recordings, people, prints[:1], read, QualitySettings())


def test_one_recording_and_none_can_be_judged():
    assert told(judged({"a": noise(1)})) == []
    recordings, prints, read = material({"a": noise(1)})
    nothing = judge(recordings[:0], pd.DataFrame({"participant_id": []}), prints[:0], read, QualitySettings())
    assert nothing.excluded.empty and nothing.measures.empty and nothing.warnings.empty


def test_every_reason_that_is_given_is_explained():
    assert all(text and not text.endswith(".") for text in (REASONS | WARNINGS).values())
    assert {"unreadable", "contradicting-tr", "wrong-roi-order", "seen-elsewhere"} <= set(REASONS)


def test_settings_can_be_overridden_and_are_bounded():
    assert QualitySettings.load(overrides=["min_seconds=60", 'known_labels.dx=["a"]']).min_seconds == 60
    for wrong in ("max_dead_share=2", "max_mean_fd=-1", "min_typicality=3", "max_censored_share=1.5"):
        with pytest.raises(OpenBrainMassError, match=wrong.split("=")[0]):
            QualitySettings.load(overrides=[wrong])


@pytest.mark.data
def test_real_scans_that_pass_and_that_do_not(data_dir: Path):
    folder = data_dir / "abide1_cc200"
    table = pd.read_csv(folder / "participants.tsv", sep="\t", dtype={"participant_id": str})
    atlas = numbered_atlas("CC200", 200)
    findings = [
        inspect(np.load(folder / str(file)), atlas, float(tr), QualitySettings())
        for file, tr in table[["file", "tr"]][::4].itertuples(index=False)
    ]
    assert {finding.reason for finding in findings} <= {None, "dead-rois", "too-short"}
    assert sum(finding.reason is None for finding in findings) > 0.95 * len(findings)
