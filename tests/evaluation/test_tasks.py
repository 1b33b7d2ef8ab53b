from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbrainmass.atlas import numbered_atlas
from openbrainmass.cohort.catalogue import dataset_card, dataset_names
from openbrainmass.cohort.cohort import RECORDING_COLUMNS, Cohort
from openbrainmass.cohort.phenotype import fits_card, read_people, read_phenotype
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.tasks import DEFAULT_COVARIATES, Task, code, dataset_of, is_known, task_names

MakeCohort = Callable[..., Cohort]

INTERNAL = (
    "abide1-asd", "adhd200-adhd", "oasis-dementia", "adni-mci", "adni-ad", "ppmi-pd", "ppmi-prodromal", "schizophrenia"
)  # fmt: skip
EXTERNAL = (
    "abide2-asd", "cnp-bipolar", "cnp-schizophrenia", "cnp-adhd", "xuanwu-pd", "xuanwu-rbd", "pd-vs-ad"
)  # fmt: skip
OTHER = ("sex", "age", "hcp-fluid", "cni-adhd", "simulated-dx")

LAYOUTS = {
    "abide1": (
        "Phenotypic_V1_0b_preprocessed1.csv",
        ",Unnamed: 0,SUB_ID,X,subject,SITE_ID,FILE_ID,DX_GROUP,DSM_IV_TR,AGE_AT_SCAN,SEX,HANDEDNESS_CATEGORY,"
        "HANDEDNESS_SCORES,FIQ,VIQ,PIQ,FIQ_TEST_TYPE,CURRENT_MED_STATUS,EYE_STATUS_AT_SCAN,func_mean_fd,SUB_IN_SMP\n"
        "0,1,50002,1,50002,PITT,no_filename,1,1,16.77,1,Ambi,-9999,103,116,89,WASI,0,2,,1\n"
        "1,2,50003,2,50003,PITT,Pitt_0050003,1,1,24.45,1,R,-9999,124,128,115,WASI,0,2,0.1165,1\n"
        "2,3,51456,3,51456,NYU,NYU_0051456,2,-9999,9.5,2,-9999,-9999,`,,,,,1,0.08,1\n"
        "3,4,51457,4,51457,NYU,NYU_0051457,,-9999,-9999,-9999,R,-9999,-9999,,,,,1,0.08,1\n",
    ),
    "abide2": (
        "ABIDEII_Composite_Phenotypic.csv",
        "SITE_ID,SUB_ID,NDAR_GUID,DX_GROUP,PDD_DSM_IV_TR,ASD_DSM_5,AGE_AT_SCAN ,SEX,HANDEDNESS_CATEGORY,"
        "HANDEDNESS_SCORES,FIQ,VIQ,PIQ,EYE_STATUS_AT_SCAN\n"
        "ABIDEII-BNI_1,29006,,1,,1,48,1,1,,103,,,1\nABIDEII-BNI_1,29007,,2,,,41,1,1,,127,,,2\n"
        "ABIDEII-ONRC_2,28676,,2,,,24,2,2,,n/a,,,1\n",
    ),
    "adhd200": (
        "adhd200_preprocessed_phenotypics.tsv",
        "ScanDir ID\tSite\tGender\tAge\tHandedness\tDX\tSecondary Dx \tADHD Measure\tADHD Index\tInattentive\t"
        "Hyper/Impulsive\tIQ Measure\tVerbal IQ\tPerformance IQ\tFull2 IQ\tFull4 IQ\tMed Status\tQC_Athena\tQC_NIAK\n"
        + "".join(
            f"{ident}\t{site}\t{sex}\t{age}\t1\t{dx}\t\t1\t50\t9\t13\t1\t116\t84\t-999\t103\t1\t1\t1\n"
            for ident, site, sex, age, dx in [
                (1038415, 1, 1, 14.92, 1), (10001, 5, 0, 9.1, 0), (2, 3, 1, 8.5, 2), (3, 8, 0, 11, 3),
                (26001, 2, "N/A", 12.5, "pending"), (5, 7, 1, -999, ""),
            ]
        ),
    ),
    "adni": (
        "ADNIMERGE_22Aug2023.csv",
        '"RID","COLPROT","ORIGPROT","PTID","SITE","VISCODE","EXAMDATE","DX_bl","AGE","PTGENDER","PTEDUCAT","APOE4",'
        '"DX"\n'
        '"2","ADNI1","ADNI1","011_S_0002","11","bl","2005-09-08","CN","74.3","Male","16","0","CN"\n'
        '"2","ADNI1","ADNI1","011_S_0002","11","m06","2006-03-06","CN","74.3","Male","16","0","MCI"\n'
        '"3","ADNI1","ADNI1","011_S_0003","11","bl","2005-09-12","AD","81.3","Male","18","1","Dementia"\n'
        '"4","ADNI1","ADNI1","022_S_0004","22","bl","2005-11-08","LMCI","67.5","Male","10","0","MCI"\n'
        '"5","ADNI1","ADNI1","011_S_0005","11","bl","2005-09-07","CN","73.7","Female","16","0","NL"\n'
        '"6","ADNI3","ADNI3","100_S_0006","100","bl","2018-11-29","SMC","80.4","Female","13","","" \n',
    ),
    "oasis3": (
        "OASIS3_UDSd1_diagnoses.csv",
        "OASISID,OASIS_session_label,days_to_visit,age at visit,WHODIDDX,NORMCOG,DEMENTED,MCIAMEM,MCIAPLUS,MCIAPLAN,"
        "MCINON1,MCINON2,IMPNOMCI,PROBAD,POSSAD,alzdis,alzdisif\n"
        "OAS30001,OAS30001_UDSd1_d0339,0339,66.12,1,0,1,0,0,,0,0,0,1,0,,\n"
        "OAS30001,OAS30001_UDSd1_d0000,0000,65.19,1,1,0,0,0,,0,0,0,0,0,,\n"
        "OAS30002,OAS30002_UDSd1_d0010,0010,72.5,1,0,1,,,,,,,1,0,,\n"
        "OAS30003,OAS30003_UDSd1_d0000,0000,70.0,1,0,0,0,1,1,0,0,0,0,0,,\n"
        "OAS30004,OAS30004_UDSd1_d0000,0000,70.0,1,0,0,8,8,,8,8,1,0,0,,\n"
        "OAS30005,OAS30005_UDSd1_d0000,0000,70.0,1,,,,,,,,,,,,\n",
    ),
    "ppmi": (
        "Participant_Status_18Sep2024.csv",
        '"PATNO","COHORT","COHORT_DEFINITION","ENROLL_DATE","ENROLL_STATUS","STATUS_DATE","ENROLL_AGE","INEXPAGE"\n'
        '"3000","2","Healthy Control","02/2011","Enrolled","12/2020","69.1","INEXHC"\n'
        '"3001","1","Parkinson\'s Disease","03/2011","Enrolled","12/2020","65.1","INEXPD"\n'
        '"3002","3","SWEDD","03/2011","Complete","12/2020","67.6","INEXPD"\n'
        '"3003","4","Prodromal","04/2011","Enrolled","12/2020","56.7","INEXHP"\n'
        '"3004","9","Early Imaging","04/2011","Enrolled","12/2020","59.4",""\n'
        '"3005","1","","04/2011","Screened","12/2020","",""\n',
    ),
    "cobre": (
        "COBRE_phenotypic_data.csv",
        ",Current Age,Gender,Handedness,Subject Type,Diagnosis\n0040000,20,Female,Right,Patient,295.3\n"
        "0040013,28,Male,Right,Control,None\n0040024,Disenrolled,Disenrolled,Disenrolled,Disenrolled,Disenrolled\n",
    ),
    "srpbs": (
        "participants.tsv",
        "participant_id\tprotocol\tsite\tdiag\tsex\tage\thand\n"
        + "".join(
            f"sub-{number:04d}\t{number % 3 + 1}\tKUT\t{dx}\t{number % 2 + 1}\t{20 + number}.0\t1\n"
            for number, dx in enumerate([0, 1, 2, 3, 4, 5, 6, 7, 8, 99, "n/a"])
        ),
    ),
    "cnp": (
        "participants.tsv",
        "participant_id\tdiagnosis\tage\tgender\tbart\tbht\tdwi\tpamenc\tpamret\trest\tscap\tstopsignal\tT1w\t"
        "taskswitch\tScannerSerialNumber\tghost_NoGhost\n"
        "sub-10159\tCONTROL\t30\tF\t1\tn/a\t1\tn/a\tn/a\t1\t1\t1\t1\t1\t35343.0\tNo_ghost\n"
        "sub-50004\tSCHZ\t38\tF\t1\t1\t1\t1\t1\t1\t1\t1\t1\t1\t35426.0\tNo_ghost\n"
        "sub-60001\tBIPOLAR\t40\tM\t1\t1\t1\t1\t1\t1\t1\t1\t1\t1\t35343.0\tghost\n"
        "sub-70001\tADHD\t25\tM\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\n",
    ),
    "xuanwu": (
        "xuanwu_all.csv",
        "new_name,dx,old_dx,is_train\nxuanwu_hc_00011,0,hc,1\nxuanwu_pd_00015,1,pd,0\nxuanwu_rbd_00001,1,rbd,1\n",
    ),
    "hcp-ya": (
        "unrestricted_someone_1_2_2024.csv",
        "Subject,Release,Acquisition,Gender,Age,3T_Full_MR_Compl,PMAT24_A_CR,PMAT24_A_SI,PMAT24_A_RTCR,Family_ID\n"
        "100004,S900,Q06,M,22-25,false,19,0,13325,52259_82122\n100206,S900,Q11,M,26-30,true,20,0,17239.5,56037_85858\n"
        "100307,Q1,Q01,F,26-30,true,17,2,11839,51488_81352\n100408,Q3,Q03,M,31-35,true,7,12,3042,51730_81594\n"
        "100610,S900,Q08,M,26-30,true,,,,52813_82634\n",
    ),
}  # fmt: skip
"""A table of people of each dataset: the header of its real table (columns of long questionnaires left out) and made-up
people who have every code that the card can give."""

WORDS = {
    "schizconnect": [
        "No_Known_Disorder", "Schizophrenia_Strict", "Schizophrenia_Broad", "Schizoaffective", "Bipolar_Disorder",
        "Sibling_of_No_Known_Disorder", "n/a",
    ],
    "mcic": ["control", "schizophrenia", "n/a"],
    "fbirn": ["control", "schizophrenia", "n/a"],
    "cni-tlc": ["control", "adhd", "n/a"],
}  # fmt: skip
"""Diagnoses of the datasets whose card describes no table with a diagnosis: people write participants.tsv."""

EXPECTED = {
    ("abide1-asd", "abide1"): [1, 1, 0, -1],
    ("abide2-asd", "abide2"): [1, 0, 0],
    ("adhd200-adhd", "adhd200"): [1, 0, 1, 1, -1, -1],
    ("oasis-dementia", "oasis3"): [0, 1, -1, -1, -1],
    ("adni-mci", "adni"): [0, -1, 1, 0, -1],
    ("adni-ad", "adni"): [0, 1, -1, 0, -1],
    ("ppmi-pd", "ppmi"): [0, 1, -1, -1, -1, -1],
    ("ppmi-prodromal", "ppmi"): [0, -1, -1, 1, -1, -1],
    ("schizophrenia", "cobre"): [1, 0, -1],
    ("schizophrenia", "srpbs"): [0, -1, -1, -1, 1, -1, -1, -1, -1, -1, -1],
    ("schizophrenia", "schizconnect"): [0, 1, -1, -1, -1, -1, -1],
    ("schizophrenia", "mcic"): [0, 1, -1],
    ("schizophrenia", "fbirn"): [0, 1, -1],
    ("cnp-schizophrenia", "cnp"): [0, 1, -1, -1],
    ("cnp-bipolar", "cnp"): [0, -1, 1, -1],
    ("cnp-adhd", "cnp"): [0, -1, -1, 1],
    ("xuanwu-pd", "xuanwu"): [0, 1, -1],
    ("xuanwu-rbd", "xuanwu"): [0, -1, 1],
    ("cni-adhd", "cni-tlc"): [0, 1, -1],
    ("hcp-fluid", "hcp-ya"): [19, 20, 17, 7, np.nan],
    ("sex", "abide1"): [0, 0, 1, -1],
    ("sex", "adhd200"): [0, 1, 0, 1, -1, 0],
    ("sex", "cobre"): [1, 0, -1],
    ("age", "abide1"): [16.77, 24.45, 9.5, np.nan],
    ("age", "ppmi"): [69.1, 65.1, 67.6, 56.7, 59.4, np.nan],
}


def cohort_of(people: pd.DataFrame, name: str = "mine", sessions: Sequence[str] = ("1",)) -> Cohort:
    """A cohort of these people, each with one recording a session, of which nothing but the tables is read."""
    recordings = pd.DataFrame(
        [
            dict.fromkeys(RECORDING_COLUMNS, "")
            | {"recording_id": f"{person}_{session}", "participant_id": person, "session": session}
            for person in people["participant_id"]
            for session in sessions
        ]
    )
    return Cohort(name, recordings, people, numbered_atlas("Toy", 2), lambda name: np.zeros((1, 1)))


def people_of(dataset: str, folder: Path) -> pd.DataFrame:
    """The people of a dataset as its reader makes them of its own table, or of the words that somebody wrote."""
    if dataset in LAYOUTS:
        name, text = LAYOUTS[dataset]
        (folder / name).write_text(text)
        assert fits_card(folder / name, dataset_card(dataset))
        return read_phenotype(folder / name, dataset_card(dataset))
    rows = [f"sub-{number}\t{word or 'n/a'}\n" for number, word in enumerate(WORDS[dataset])]
    (folder / "participants.tsv").write_text("participant_id\tdx\n" + "".join(rows))
    return read_people(folder / "participants.tsv")


def task(**settings: object) -> Task:
    return Task.model_validate({"name": "t", "target": "dx", **settings})


@pytest.mark.parametrize("name", task_names())
def test_every_task_of_the_package_loads_and_describes_itself(name: str) -> None:
    known = Task.load(name)
    assert known.name == name
    line, text = known.line(), known.text()
    assert line.startswith(f"{name} ") and line.endswith(known.title) and "\n" not in line and len(line) <= 110
    assert known.target in text and all(part in text for part in known.positive)
    assert max(map(len, text.splitlines())) <= 110
    assert known.target not in known.covariates
    assert name == "simulated-dx" or known.note


@pytest.mark.parametrize("name", task_names())
def test_a_task_that_was_saved_with_results_is_the_same_again(name: str) -> None:
    known = Task.load(name, ["where.site=[1]"])
    assert Task.model_validate(json.loads(json.dumps(known.model_dump()))) == known


def test_there_are_the_fifteen_tasks_of_the_paper_and_five_more() -> None:
    assert len(INTERNAL) == 8 and len(EXTERNAL) == 7
    assert sorted((*INTERNAL, *EXTERNAL, *OTHER)) == task_names()
    assert [name for name in task_names() if not Task.load(name).dataset] == ["age", "sex", "simulated-dx"]


@pytest.mark.parametrize("name", dataset_names())
def test_a_card_names_the_tasks_that_are_bound_to_it_and_those_it_has_columns_for(name: str) -> None:
    card = dataset_card(name)
    bound = {known for known in task_names() if name in Task.load(known).dataset}
    columns = {*(card.phenotype.columns if card.phenotype else ()), *(card.version.columns if card.version else ())}
    assert set(card.tasks) == bound | ({"sex", "age"} & columns)


@pytest.mark.parametrize(
    ("name", "dataset"), [(name, dataset) for name in task_names() for dataset in Task.load(name).dataset]
)
def test_a_task_knows_every_diagnosis_that_the_card_of_its_dataset_can_give(name: str, dataset: str) -> None:
    known, layout = Task.load(name), dataset_card(dataset).phenotype
    column = layout.columns.get(known.target) if layout else None
    given = set(column.meanings) if column else set()
    assert given <= {*known.positive, *known.negative, *known.exclude}
    words = set(WORDS.get(dataset, ())) - {"", "n/a"}
    assert words <= {*known.positive, *known.negative, *known.exclude}


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_the_made_up_tables_hold_every_code_of_the_card(dataset: str, tmp_path: Path) -> None:
    columns = dataset_card(dataset).phenotype.columns  # pyright: ignore[reportOptionalMemberAccess]
    people = people_of(dataset, tmp_path)
    if "dx" in columns:
        assert set(columns["dx"].meanings) == set(people["dx"].dropna())


@pytest.mark.parametrize(("name", "dataset"), EXPECTED)
def test_a_task_reads_the_table_of_its_dataset(name: str, dataset: str, tmp_path: Path) -> None:
    known = Task.load(name)
    y = known.labels(cohort_of(people_of(dataset, tmp_path), dataset))
    assert y.dtype.kind == ("f" if known.kind == "regression" else "i")
    np.testing.assert_array_equal(y, EXPECTED[name, dataset])
    np.testing.assert_array_equal(is_known(y), [one is not np.nan and one != -1 for one in EXPECTED[name, dataset]])


def test_every_bound_task_is_tested_on_every_dataset_it_is_bound_to() -> None:
    bound = {(name, dataset) for name in task_names() for dataset in Task.load(name).dataset}
    assert {pair for pair in bound if pair[0] != "pd-vs-ad"} <= set(EXPECTED)


@pytest.mark.parametrize(("name", "dataset"), [pair for pair in EXPECTED if Task.load(pair[0]).target == "dx"])
def test_a_code_that_no_task_names_is_refused(name: str, dataset: str, tmp_path: Path) -> None:
    people = people_of(dataset, tmp_path)
    people.loc[0, "dx"] = "mystery"
    with pytest.raises(OpenBrainMassError, match=rf"'mystery', which the task {name} does not know.*excluded"):
        Task.load(name).labels(cohort_of(people, dataset))


def test_parkinson_against_alzheimer_needs_two_datasets_put_together(tmp_path: Path) -> None:
    parts = [people_of(dataset, tmp_path).assign(dataset=dataset) for dataset in ("ppmi", "adni")]
    with pytest.raises(OpenBrainMassError, match="No recording .* negative"):
        Task.load("pd-vs-ad").labels(cohort_of(parts[0], "ppmi"))
    people = pd.concat(parts, ignore_index=True)
    people["participant_id"] = people.pop("dataset") + "/" + people["participant_id"]
    y = Task.load("pd-vs-ad").labels(cohort_of(people, "ppmi+adni"))
    assert dict(zip(people["participant_id"], y, strict=True)) == {
        **dict.fromkeys(people["participant_id"], -1), "ppmi/sub-3001": 1, "adni/sub-011S0003": 0
    }  # fmt: skip


def test_a_task_of_another_dataset_is_refused_with_those_that_fit(tmp_path: Path) -> None:
    people = people_of("abide2", tmp_path)
    with pytest.raises(
        OpenBrainMassError, match=r"of the dataset abide2.*abide1-asd is of abide1.*abide2-asd, age, sex"
    ):
        Task.load("abide1-asd").labels(cohort_of(people, "abide2"))
    for name in ("abide2_cc200", "mine"):
        assert Task.load("abide1-asd").labels(cohort_of(people, name)).tolist() == [1, 0, 0]
    assert task(positive=["autism"], negative=["control"]).labels(cohort_of(people, "abide2")).tolist() == [1, 0, 0]


def test_people_of_other_datasets_in_a_merged_store_are_left_out(tmp_path: Path) -> None:
    parts = [people_of(dataset, tmp_path).assign(dataset=dataset) for dataset in ("abide1", "cnp")]
    parts.append(parts[0].assign(dataset="mine"))
    people = pd.concat(parts, ignore_index=True)
    people["participant_id"] = people.pop("dataset") + "/" + people["participant_id"]
    cohort = cohort_of(people, "all")
    assert dataset_of(cohort).tolist() == ["abide1"] * 4 + ["cnp"] * 4 + ["mine"] * 4
    assert Task.load("abide1-asd").labels(cohort).tolist() == [1, 1, 0, -1, *[-1] * 4, 1, 1, 0, -1]
    with pytest.raises(OpenBrainMassError, match="abide1 and cnp, but the task adni-ad is of adni"):
        Task.load("adni-ad").labels(cohort.select(dataset_of(cohort) != "mine"))


def test_only_the_recordings_that_are_asked_for_take_part(tmp_path: Path) -> None:
    people = people_of("srpbs", tmp_path)
    cohort = cohort_of(people, "srpbs")
    known = Task.load("schizophrenia", ["where.protocol=[1, 2]"])
    kept = people["protocol"].isin(["1", "2"]).to_numpy()
    everybody = Task.load("schizophrenia").labels(cohort)
    assert kept.any() and not kept.all()
    assert known.labels(cohort).tolist() == np.where(kept, everybody, -1).tolist()
    assert "protocol is 1 or 2" in known.text()
    other = cohort_of(people.assign(dx=people["dx"].where(kept, "mystery")), "srpbs")
    assert known.labels(other).tolist() == known.labels(cohort).tolist()
    with pytest.raises(OpenBrainMassError, match="no column scanner"):
        task(positive=["schizophrenia"], negative=["control"], where={"scanner": ["1"]}).labels(cohort)


@given(order=st.permutations(range(11)), dataset=st.sampled_from(["srpbs", "ppmi", "adhd200"]))
@settings(max_examples=20)
def test_labels_never_depend_on_the_order_of_rows(
    order: list[int], dataset: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    people = people_of(dataset, tmp_path_factory.mktemp("people"))
    people = people.assign(age=people["age"].fillna(20.25))
    cohort = cohort_of(people, dataset)
    kept = [place for place in order if place < len(people)]
    mixed = cohort_of(people.iloc[kept], dataset)
    for name in {"srpbs": ["schizophrenia"], "ppmi": ["ppmi-pd"], "adhd200": ["adhd200-adhd", "sex"]}[dataset] + [
        "age"
    ]:
        known = Task.load(name)
        np.testing.assert_array_equal(known.labels(mixed), known.labels(cohort)[kept])


@given(
    ages=st.lists(
        st.lists(st.sampled_from([20.0, 31.5, 40.0, np.nan]), min_size=3, max_size=3), min_size=3, max_size=5
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_a_number_belongs_to_its_recording_and_every_person_has_one(ages: list[list[float]], seed: int) -> None:
    people = pd.DataFrame({"participant_id": [f"p{i}" for i in range(len(ages))]})
    whole = cohort_of(people, sessions=("1", "2", "10"))
    recordings = whole.recordings.assign(age=np.concatenate(ages))
    order = np.random.default_rng(seed).permutation(len(recordings))
    known = Task.load("age")
    firsts = [next((age for age in own if not np.isnan(age)), np.nan) for own in ages]
    expected = np.concatenate(
        [np.where(np.array(own) == first, own, np.nan) for own, first in zip(ages, firsts, strict=True)]
    )
    cohort = Cohort("mine", recordings.iloc[order], people, whole.atlas, whole.read)
    if len({first for first in firsts if not np.isnan(first)}) < 3:
        with pytest.raises(OpenBrainMassError, match="different known numbers"):
            known.labels(cohort)
    else:
        np.testing.assert_array_equal(known.labels(cohort), expected[order])


def test_two_numbers_in_one_session_are_an_error() -> None:
    whole = cohort_of(pd.DataFrame({"participant_id": ["a", "b", "c"]}), sessions=("1", "1"))
    recordings = whole.recordings.assign(age=[20, 21, 30, 30, 40, 40])
    with pytest.raises(
        OpenBrainMassError, match="a of cohort mine has both 20 and 21 in age in session 1; one value a session"
    ):
        Task.load("age").labels(Cohort("mine", recordings, whole.participants, whole.atlas, whole.read))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["20", "30", "40", "old", "older"], "'old' and 1 others, but the task age predicts a number"),
        (["20", "30", "40", "inf"], "'inf'"),
        (["20", "30", "20"], "2 different known numbers"),
        (["n/a", "-9999"], "0 different known numbers"),
    ],
)
def test_what_is_no_number_is_named(values: list[str], words: str) -> None:
    people = pd.DataFrame({"participant_id": [f"p{i}" for i in range(len(values))], "age": values})
    with pytest.raises(OpenBrainMassError, match=words):
        Task.load("age").labels(cohort_of(people))


def test_missing_and_excluded_numbers_are_left_out() -> None:
    people = pd.DataFrame({"participant_id": list("abcdef"), "age": [20, 30.5, "-999", "N/A", "89+", 40]})
    known = Task.load("age", ['exclude=["89+"]'])
    np.testing.assert_array_equal(known.labels(cohort_of(people)), [20, 30.5, np.nan, np.nan, np.nan, 40])


def test_a_task_is_read_from_a_file_and_its_codes_become_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntarget = "DX_GROUP"\npositive = [1]\nnegative = [2.0]\nexclude = ["3"]\n')
    mine = Task.load(path)
    assert (mine.positive, mine.negative, mine.exclude) == (("1",), ("2",), ("3",))
    assert mine.title == "1 against 2" and mine.covariates == DEFAULT_COVARIATES


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('positive = ["a"]\nnegative = ["a"]\n', "more than one"),
        ('positive = ["a"]\nnegative = []\n', "at least one code"),
        ('positive = "a"\nnegative = ["b"]\n', "positive"),
        ('positive = ["a"]\nnegative = ["b"]\ntrial = 1\n', "trial"),
        ('positive = ["a"]\nnegative = ["b"]\ndataset = ["abide9"]\n', "no dataset 'abide9'"),
        ('positive = ["a"]\nnegative = ["b"]\ncovariates = ["age", "dx"]\n', "among the covariates"),
        ('positive = ["a"]\nnegative = ["b"]\nwhere = { site = "NYU" }\n', "where.site"),
        ('positive = ["a"]\nnegative = ["b"]\nwhere = 1\n', "where"),
        ('positive = ["a"]\nnegative = ["b"]\nkind = "regression"\n', "no positive and no negative"),
        ('kind = "ranking"\n', "kind"),
    ],
)
def test_a_wrong_task_file_is_one_sentence(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "t.toml").write_text('name = "t"\ntarget = "dx"\n' + content)
    with pytest.raises(OpenBrainMassError, match=found):
        Task.load(tmp_path / "t.toml")


@pytest.mark.parametrize("name", ["abide9", None])
def test_an_unknown_task_lists_the_known(name: str | None) -> None:
    with pytest.raises(OpenBrainMassError, match="abide1-asd.*sex"):
        Task.load(name)


def test_codes_are_the_same_however_a_table_holds_them() -> None:
    assert [code(value) for value in (1, 1.0, "1", " 1 ", np.int64(1), np.float64(1))] == ["1"] * 6
    assert [code(value) for value in (None, float("nan"), np.nan, pd.NA)] == [""] * 4
    assert code(1.5) == "1.5"


def test_labels_are_positive_negative_or_left_out(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(["autism", "control", "N/A", "other", "-9999", "autism"], n_recordings=[1, 2, 1, 1, 1, 1])
    y = task(positive=["autism"], negative=["control"], exclude=["other"]).labels(cohort)
    assert y.tolist() == [1, 0, 0, -1, -1, -1, 1]
    assert is_known(y).tolist() == [True, True, True, False, False, False, True]


def test_an_unknown_code_is_named_with_the_known_ones(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(["autism", "control", "adhd", "td"])
    with pytest.raises(OpenBrainMassError, match=r"'adhd' and 1 others.*positive autism; negative control"):
        task(positive=["autism"], negative=["control"]).labels(cohort)


def test_one_class_only_is_an_error(make_cohort: MakeCohort) -> None:
    patients = task(positive=["patient"], negative=["control"])
    with pytest.raises(OpenBrainMassError, match="is negative in dx"):
        patients.labels(make_cohort(["patient", "patient"]))
    with pytest.raises(OpenBrainMassError, match="is positive in dx"):
        patients.labels(make_cohort(["control", "control"]))


def test_a_missing_column_names_those_there_are(make_cohort: MakeCohort) -> None:
    with pytest.raises(OpenBrainMassError, match="no column diagnosis; it has .*dx"):
        Task.from_cohort(make_cohort(), "diagnosis")


@pytest.mark.parametrize(("session", "words"), [("1", "session 1"), (np.nan, "recordings without a session")])
def test_both_classes_in_one_session_are_an_error(make_cohort: MakeCohort, session: str | float, words: str) -> None:
    cohort = make_cohort(["a", "b"], n_recordings=2)
    recordings = cohort.recordings.assign(state=["on", "off", "on", "on"], session=session)
    varying = Cohort("toy", recordings, cohort.participants, cohort.atlas, lambda name: np.zeros((1, 1)))
    with pytest.raises(OpenBrainMassError, match=f"p000 .* has both off and on in state in {words};"):
        task(target="state", positive=["on"], negative=["off"]).labels(varying)


@given(
    states=st.lists(
        st.lists(st.sampled_from(["dementia", "control", "mci", "n/a"]), min_size=3, max_size=3), min_size=2, max_size=5
    ),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_of_people_who_change_the_first_session_counts(states: list[list[str]], seed: int) -> None:
    people = pd.DataFrame({"participant_id": [f"p{i}" for i in range(len(states))]})
    whole = cohort_of(people, sessions=("1", "2", "10"))
    recordings = whole.recordings.assign(dx=np.concatenate(states))
    order = np.random.default_rng(seed).permutation(len(recordings))
    classes = {"dementia": 1, "control": 0}
    expected = []
    for own in states:
        first = next((state for state in own if state in classes), None)
        expected += [classes[state] if state == first else -1 for state in own]
    cohort = Cohort("mine", recordings.iloc[order], people, whole.atlas, whole.read)
    if {0, 1} <= set(expected):
        assert Task.load("adni-ad").labels(cohort).tolist() == np.array(expected)[order].tolist()
    else:
        with pytest.raises(OpenBrainMassError, match="nothing to tell apart"):
            Task.load("adni-ad").labels(cohort)


@pytest.mark.parametrize(
    ("values", "positive", "negative"),
    [
        (["autism", "control"], "autism", "control"),
        (["HC", "MDD"], "MDD", "HC"),
        (["TD", "ADHD"], "ADHD", "TD"),
        (["F", "M"], "M", "F"),
        (["n/a", "zeta", "alpha", "-999"], "zeta", "alpha"),
    ],
)
def test_a_task_of_a_column_knows_the_comparison_group(
    make_cohort: MakeCohort, values: list[str], positive: str, negative: str
) -> None:
    made = Task.from_cohort(make_cohort(values))
    assert (made.target, made.positive, made.negative) == ("dx", (positive,), (negative,))


def test_a_column_of_many_numbers_is_predicted_as_a_number(make_cohort: MakeCohort) -> None:
    made = Task.from_cohort(make_cohort(n_people=24, columns={"iq": [*range(90, 112), -9999, None]}), "iq")
    assert (made.kind, made.target, made.title) == ("regression", "iq", "iq")
    assert Task.from_cohort(make_cohort(n_people=6, columns={"fd": [0.1, 0.2, 0.3] * 2}), "fd").kind == "regression"
    aged = Task.from_cohort(simulate_cohort(n_people=16, n_rois=14, n_volumes=30), "age")
    assert aged.kind == "regression" and "age" not in aged.covariates
    with pytest.raises(OpenBrainMassError, match="6 known values"):
        Task.from_cohort(make_cohort(n_people=6, columns={"site_code": range(6)}), "site_code")


def test_without_diagnosis_sex_is_the_target(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(["x", "y"], columns={"sex": ["M", "F"]})
    bare = Cohort("toy", cohort.recordings, cohort.participants.drop(columns="dx"), cohort.atlas, lambda _: np.ones(1))
    assert Task.from_cohort(bare).target == "sex"


@pytest.mark.parametrize("values", [["a", "b", "c"], ["a", "a"]])
def test_a_column_without_two_values_is_no_task(make_cohort: MakeCohort, values: list[str]) -> None:
    with pytest.raises(OpenBrainMassError, match="known values"):
        Task.from_cohort(make_cohort(values))


def test_a_simulated_cohort_has_its_tasks() -> None:
    cohort = simulate_cohort(n_people=16, n_rois=14, n_volumes=30)
    for name in ("simulated-dx", "sex", "age"):
        assert is_known(Task.load(name).labels(cohort)).all()


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "name", "dataset", "expected"),
    [
        ("abide1_cc200", "abide1-asd", "abide1", (388, 402)),
        ("abide1_cc200", "sex", "abide1", (118, 672)),
        ("cni_cc200", "cni-adhd", "cni-tlc", (120, 120)),
        ("hcp_dk68", "sex", "hcp-ya", (16, 14)),
    ],
)
def test_real_people_are_counted(
    data_dir: Path, folder: str, name: str, dataset: str, expected: tuple[int, int]
) -> None:
    people = read_people(data_dir / folder / "participants.tsv")
    y = Task.load(name).labels(cohort_of(people, dataset))
    assert (int((y == 1).sum()), int((y == 0).sum())) == expected


@pytest.mark.data
def test_real_numbers_are_read(data_dir: Path) -> None:
    people = read_people(data_dir / "hcp_dk68" / "participants.tsv")
    y = Task.load("hcp-fluid").labels(cohort_of(people, "hcp-ya", sessions=("1", "2")))
    assert y.shape == (60,) and is_known(y).all() and (y.min(), y.max()) == (7, 24)
    people = read_people(data_dir / "abide1_cc200" / "participants.tsv")
    y = Task.load("age").labels(cohort_of(people, "abide1"))
    assert is_known(y).all() and y.min() > 6 and y.max() == 64
