"""Phenotype tables in the codes of their datasets, and tables that people write."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.cohort.catalogue import Column, DatasetCard, Phenotype, dataset_card, dataset_names
from openbrainmass.cohort.phenotype import find_phenotype, fits_card, read_people, read_phenotype
from openbrainmass.durable import read_tsv
from openbrainmass.errors import OpenBrainMassError

ABIDE = "SUB_ID,SITE_ID,DX_GROUP,SEX,AGE_AT_SCAN,FIQ,EYE_STATUS_AT_SCAN,func_mean_fd\n"
ROWS = "50003,PITT,1,1,24.5,-9999,2,0.1\n50004,NYU,2,2,9,`,1,\n"
WITH_TABLE = [name for name in dataset_names() if dataset_card(name).phenotype]


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path, dataset: str = "abide1") -> str:
    with pytest.raises(OpenBrainMassError) as caught:
        read_phenotype(path, dataset_card(dataset))
    message = str(caught.value)
    assert path.name in message and "\n" not in message
    return message


def with_table(phenotype: Phenotype) -> DatasetCard:
    return dataset_card("cobre").model_copy(update={"phenotype": phenotype})


def test_codes_become_words_and_ids_the_labels_of_the_files(tmp_path):
    table = read_phenotype(written(tmp_path, "p.csv", ABIDE + ROWS), dataset_card("abide1"))
    assert list(table.columns) == ["participant_id", "site", "dx", "sex", "age", "fiq", "eyes", "mean_fd"]
    assert table["participant_id"].tolist() == ["sub-0050003", "sub-0050004"]
    assert table["dx"].tolist() == ["autism", "control"] and table["sex"].tolist() == ["M", "F"]
    assert table["age"].tolist() == [24.5, 9.0] and table["eyes"].tolist() == ["closed", "open"]
    assert table["fiq"].isna().all() and np.isnan(table["mean_fd"][1])


def test_an_optional_column_may_lack_and_another_may_not(tmp_path):
    short = ABIDE.replace(",func_mean_fd", "") + "1,NYU,1,1,9,100,1\n"
    assert "mean_fd" not in read_phenotype(written(tmp_path, "p.csv", short), dataset_card("abide1"))
    assert "DX_GROUP" in refusal(written(tmp_path, "q.csv", short.replace("DX_GROUP", "DX")))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("50003,PITT,3,1,24,1,1,1", ("line 3", "DX_GROUP", "'3'", "1 = autism, 2 = control")),
        ("50003,PITT,1,0,24,1,1,1", ("line 3", "SEX", "'0'", "1 = M, 2 = F")),
        ("50003,PITT,1,1,old,1,1,1", ("line 3", "AGE_AT_SCAN", "'old'", "number")),
        ("50003,PITT,1,1,24,inf,1,1", ("line 3", "FIQ", "'inf'", "number")),
        ("50003,PITT,1,1,288,1,1,1", ("line 3", "AGE_AT_SCAN", "288", "120 years")),
        (",PITT,1,1,24,1,1,1", ("line 3", "SUB_ID", "whose row")),
        ("50004,PITT,1,1,24,1,1,1", ("sub-0050004", "lines 2, 3")),
        ("50003,PITT,1,1,24,1,1,1,9", ("line 3", "9 cells", "header has 8")),
        ("50003,PITT,1,1", ("line 3", "4 cells")),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, row, words):
    message = refusal(written(tmp_path, "p.csv", ABIDE + "50004,NYU,2,2,9,100,1,0.1\n" + row + "\n"))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("missing", ["", "n/a", "NA", " ", "-9999", "-9999.0", "-999", "`", "pending", "N/A", "NaN"])
def test_every_spelling_of_missing_is_missing(tmp_path, missing):
    path = written(tmp_path, "p.csv", ABIDE + f"1,NYU,{missing},{missing},{missing},{missing},{missing},{missing}\n")
    assert read_phenotype(path, dataset_card("abide1")).iloc[0, 2:].isna().all()


def test_what_spreadsheets_do_to_a_table_is_undone(tmp_path):
    text = "\ufeff" + ABIDE + '"50003.0","PITT","1.0","2.00","24.5","100","1","0.1",,\n\n,,,,,,,\n'
    table = read_phenotype(written(tmp_path, "p.csv", text.replace("\n", "\r\n")), dataset_card("abide1"))
    assert table.iloc[0].tolist()[:5] == ["sub-0050003", "PITT", "autism", "F", 24.5]


def test_a_line_number_counts_lines_within_quotes(tmp_path):
    text = "SUB_ID,NOTE,SITE_ID,DX_GROUP,SEX,AGE_AT_SCAN,FIQ,EYE_STATUS_AT_SCAN\n"
    text += '1,"two\nlines, one comma",NYU,1,1,9,100,1\n2,x,NYU,7,1,9,100,1\n'
    assert "line 4: DX_GROUP is '7'" in refusal(written(tmp_path, "p.csv", text))


def test_abide2_is_read_in_its_encoding_with_the_space_in_its_header(tmp_path):
    text = "SITE_ID,SUB_ID,NDAR_GUID,DX_GROUP,AGE_AT_SCAN ,SEX,FIQ,NOTE\nABIDEII-X_1,29006,,2,48,1,-999,na\u00efve\n"
    table = read_phenotype(
        written(tmp_path, "ABIDEII_Composite_Phenotypic.csv", text.encode("cp1252")), dataset_card("abide2")
    )
    assert table.iloc[0].tolist()[:5] == ["sub-29006", "ABIDEII-X_1", "control", "M", 48.0]
    assert (
        read_phenotype(
            written(tmp_path, "r.csv", text.encode("cp1252") + b"\x81,1,,1,9,1,1,\n"), dataset_card("abide2")
        ).shape[0]
        == 2
    )


def test_adhd200_has_its_own_codes_of_sex_and_diagnosis(tmp_path):
    text = "ScanDir ID\tSite\tGender\tAge\tHandedness\tDX\tQC_Athena\n"
    text += "10001\t5\t0\t9.1\t1\t3\t1\n1038415\t1\t1\t-999\t1\tpending\tN/A\n"
    table = read_phenotype(written(tmp_path, "p.tsv", text), dataset_card("adhd200"))
    assert table["participant_id"].tolist() == ["sub-0010001", "sub-1038415"]
    assert table.loc[0, ["site", "dx", "dx_subtype", "sex"]].tolist() == ["NYU", "adhd", "inattentive", "F"]
    assert table.loc[1, ["dx", "age"]].isna().all() and table.loc[1, "sex"] == "M"


def test_diagnosis_and_site_of_rest_meta_mdd_are_in_the_id(tmp_path):
    text = "ID,Sex,Age,Education (years)\nS1-1-0001,1,30,9\nS20-2-0113,2,41,\n"
    table = read_phenotype(written(tmp_path, "p.csv", text), dataset_card("rest-meta-mdd"))
    assert table["participant_id"].tolist() == ["sub-S1-1-0001", "sub-S20-2-0113"]
    assert table["dx"].tolist() == ["mdd", "control"] and table["site"].tolist() == ["S1", "S20"]
    message = refusal(written(tmp_path, "q.csv", text.replace("S20-2-0113", "0113")), "rest-meta-mdd")
    assert "no site can be told" in message and "line 3" in message


def test_only_the_baseline_visit_counts_and_underscores_go(tmp_path):
    text = "PTID,VISCODE,SITE,DX,PTGENDER,AGE\n002_S_0413,bl,2,CN,Female,76\n002_S_0413,m06,2,MCI,Female,76\n"
    table = read_phenotype(written(tmp_path, "ADNIMERGE_x.csv", text), dataset_card("adni"))
    assert table.to_dict("records") == [
        {"participant_id": "sub-002S0413", "site": "2", "dx": "control", "sex": "F", "age": 76.0}
    ]
    assert "no row whose VISCODE is bl" in refusal(written(tmp_path, "m.csv", text.replace("bl", "m12")), "adni")


def test_months_become_years_below_a_line_that_describes(tmp_path):
    text = (
        "subjectkey\tsrc_subject_id\tinterview_age\tsex\nThe key\tThe id\tAge in months\tSex\nK1\tHCD0001305\t126\tF\n"
    )
    table = read_phenotype(written(tmp_path, "ndar_subject01.txt", text), dataset_card("hcp-development"))
    assert table.iloc[0].tolist() == ["sub-HCD0001305", "F", 10.5]
    assert "not of the form" in refusal(
        written(tmp_path, "x.txt", text.replace("HCD0001305", "HCA01")), "hcp-development"
    )


def test_a_first_column_without_a_header_and_a_missing_word_of_its_own(tmp_path):
    text = ",Current Age,Gender,Handedness,Subject Type,Diagnosis\n40000,20,Female,Right,Patient,295.3\n"
    text += "40001,Disenrolled,Disenrolled,Disenrolled,Disenrolled,\n"
    table = read_phenotype(written(tmp_path, "COBRE_phenotypic_data.csv", text), dataset_card("cobre"))
    assert table.loc[0].tolist() == ["sub-0040000", "schizophrenia", "F", 20.0]
    assert table.loc[1, ["dx", "sex", "age"]].isna().all()


def test_families_are_read_where_somebody_joined_them(tmp_path):
    text = "Subject,Gender,Age,PMAT24_A_CR\n100307,F,26-30,17\n100408,M,31-35,\n"
    table = read_phenotype(written(tmp_path, "unrestricted_x.csv", text), dataset_card("hcp-ya"))
    assert "family_id" not in table and table["pmat"][0] == 17 and np.isnan(table["pmat"][1])
    joined = text.replace("CR\n", "CR,Family_ID\n").replace("17\n", "17,5_8\n").replace("35,\n", "35,,5_8\n")
    table = read_phenotype(written(tmp_path, "joined.csv", joined), dataset_card("hcp-ya"))
    assert table["family_id"].tolist() == ["5_8", "5_8"]
    text = "participant_id\tsex\tage\tfamily_id\nsub-0001\tM\t27\t12\n"
    assert read_phenotype(written(tmp_path, "participants.tsv", text), dataset_card("qtim"))["family_id"][0] == "12"


OASIS = (
    "OASISID,OASIS_session_label,days_to_visit,age at visit,NORMCOG,DEMENTED,MCIAMEM,MCIAPLUS,MCINON1,MCINON2,IMPNOMCI"
)


def test_flags_of_the_first_visit_are_the_diagnosis(tmp_path):
    rows = ["OAS30001,b,0339,66,0,1,0,0,0,0,0", "OAS30001,a,0000,65,1,0,0,0,0,0,0", "OAS30002,a,10,72,0,0,0,0,1,0,0"]
    rows += ["OAS30003,a,5,70,0,0,8,8,8,8,1", "OAS30004,a,5,70,0,0,0,0,0,0,0", "OAS30005,a,5,70,,1,,,,,"]
    text = "\n".join([OASIS, *rows])
    table = read_phenotype(written(tmp_path, "OASIS3_UDSd1_diagnoses.csv", text), dataset_card("oasis3"))
    assert table["participant_id"].tolist() == [f"sub-OAS3000{i}" for i in range(1, 6)]
    assert table["dx"].fillna("").tolist() == ["control", "mci", "impaired", "", "dementia"]
    assert table["age_at_entry"].tolist() == [65, 72, 70, 70, 70] and "sex" not in table
    card = dataset_card("oasis3")
    assert "NORMCOG 1 = control" in card.text() and "smallest days_to_visit" in card.text()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("OAS30001,a,soon,65,1,0,0,0,0,0,0", "line 2: days_to_visit is 'soon', but it is a number"),
        ("OAS30001,a,0,65,2,0,0,0,0,0,0", "line 2: NORMCOG is '2'"),
        ("OAS30001,a,0,65,1,0,0,0,0,0,0\nOAS30001,b,0,65,1,0,0,0,0,0,0", "lines 2, 3"),
    ],
)
def test_a_bad_visit_is_refused(tmp_path, row, words):
    assert words in refusal(written(tmp_path, "d1.csv", f"{OASIS}\n{row}\n"), "oasis3")


def test_a_table_without_visits_is_read_as_before(tmp_path):
    text = "OASISID,Subject_accession,AgeatEntry,GENDER,EDUC\nOAS30001,x,65.2,2,12\n"
    table = read_phenotype(written(tmp_path, "OASIS3_demographics.csv", text), dataset_card("oasis3"))
    assert table.to_dict("records") == [{"participant_id": "sub-OAS30001", "sex": "F", "age_at_entry": 65.2}]


def test_a_column_is_of_one_kind():
    for wrong in ({}, {"column": "A", "flags": {"B": "b"}}):
        with pytest.raises(OpenBrainMassError, match="either column or flags"):
            Column.checked(wrong, "a column")


def test_the_scanner_of_ucla_is_its_site(tmp_path):
    header = "participant_id\tdiagnosis\tage\tgender"
    row = "sub-10159\tCONTROL\t30\tF"
    text = f"{header}\tScannerSerialNumber\tghost_NoGhost\n{row}\t35343.0\tNo_ghost\n"
    table = read_phenotype(written(tmp_path, "participants.tsv", text), dataset_card("cnp"))
    assert table.loc[0, ["site", "ghost", "dx", "sex"]].tolist() == ["35343", "no", "control", "F"]
    short = written(tmp_path, "short.tsv", f"{header}\n{row}\n")
    assert "site" not in read_phenotype(short, dataset_card("cnp"))


def test_the_published_list_of_xuanwu_and_older_codes_of_adni_are_read(tmp_path):
    text = "new_name,dx,old_dx,is_train\nxuanwu_hc_00011,0,hc,1\nxuanwu_pd_00015,1,pd,0\n"
    table = read_phenotype(written(tmp_path, "xuanwu_pd.csv", text), dataset_card("xuanwu"))
    assert table["participant_id"].tolist() == ["sub-xuanwuhc00011", "sub-xuanwupd00015"]
    assert table["dx"].tolist() == ["control", "parkinson"]
    text = "PTID,VISCODE,SITE,DX,PTGENDER,AGE\n002_S_0413,bl,2,NL,Female,76\n"
    assert read_phenotype(written(tmp_path, "ADNIMERGE.csv", text), dataset_card("adni"))["dx"][0] == "control"
    assert "'NL to MCI'" in refusal(written(tmp_path, "x.csv", text.replace("NL", "NL to MCI")), "adni")


def test_a_number_within_a_text_and_a_code_that_means_missing(tmp_path):
    text = "participant_id\tsex\tsite\tagegroup\tage\nsub-01\tF\t1\tO\t89+\nsub-02\tn/a\t2\tY\t21\n"
    table = read_phenotype(written(tmp_path, "a.tsv", text), dataset_card("neurocog-aging"))
    assert table["age"].tolist() == [89.0, 21.0] and table["site"].tolist() == ["Ithaca", "Toronto"]
    text = "participant_id\tage\tsex\tSite\tGroup\nsub-NDARINVA\t20.3\tO\tYale\tPatient\n"
    tcp = read_phenotype(written(tmp_path, "b.tsv", text), dataset_card("tcp"))
    assert tcp.loc[0, "dx"] == "Patient" and pd.isna(tcp.loc[0, "sex"])


def test_a_table_with_another_separator_than_its_name_says_is_read(tmp_path):
    text = "participant_id,Sex,Age\nsub-NDARX,0,8.5\n"
    assert read_phenotype(written(tmp_path, "participants.tsv", text), dataset_card("hbn"))["sex"].tolist() == ["M"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("p.xlsx", b"PK", "Save each sheet"),
        ("p.csv", b"\x00\x01", "no text table"),
        ("p.csv", b"", "no people"),
        ("p.csv", ABIDE.encode(), "no people"),
        ("p.csv", b'SUB_ID,SITE_ID\n1,"' + b"x" * 200_000 + b'"\n', "not readable as a table"),
        ("p.csv", (ABIDE + ROWS).replace("SEX", "SITE_ID").encode(), "'SITE_ID' 2 times"),
        ("p.csv", b'"two\nlines",b\n1,2\n', "it has two lines, b"),
        ("p.csv", (ABIDE + ROWS.replace("50004", "50003")).replace("50003", '"5\n3"').encode(), "lines 2, 4"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, data, words):
    assert words in refusal(written(tmp_path, name, data))


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nothing.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder.csv")


def test_a_card_without_a_table_says_what_to_give_instead(tmp_path):
    message = refusal(written(tmp_path, "p.csv", ABIDE + ROWS), "msc")
    assert "--participants" in message and "msc" in message


@pytest.mark.parametrize("name", WITH_TABLE)
def test_every_card_reads_a_table_of_its_own_codes(tmp_path, name):
    card = dataset_card(name)
    layout = card.phenotype
    assert layout is not None
    examples = {"adni": "002_S_0413", "gsp": "Sub0001_Ses1", "hcp-aging": "HCA01", "hcp-development": "HCD01"}
    ident = {**examples, "rest-meta-mdd": "S1-1-0001"}.get(name, "1")
    row = dict(layout.only) | {layout.id_names[0]: ident}
    for column in layout.columns.values():
        first = next(iter(column.codes), "7")
        if column.flags:
            row |= dict.fromkeys(column.names, "1")
        row.setdefault(column.names[0], first)
    separator = "\t" if layout.separator == "tab" else layout.separator
    lines = [separator.join(row), *[separator.join(row)] * (layout.header_lines - 1), separator.join(row.values())]
    path = written(tmp_path, "table.csv", "\n".join(lines) + "\n")
    table = read_phenotype(path, card)
    assert fits_card(path, card) and len(table) == 1
    assert table["participant_id"][0].startswith("sub-") and "_" not in table["participant_id"][0]
    assert list(table.columns[1:]) == list(layout.columns)
    first = next(iter(layout.columns.values()))
    assert not fits_card(written(tmp_path, "other.csv", f"x{separator}{first.names[0]}\n1{separator}2\n"), card)


def test_a_table_is_found_in_the_folder_or_above_it(tmp_path):
    card = dataset_card("abide1")
    deep = tmp_path / "Outputs" / "cpac" / "nofilt_noglobal" / "rois_cc200"
    deep.mkdir(parents=True)
    assert find_phenotype(deep, card) is None
    path = written(tmp_path, "Phenotypic_V1_0b_preprocessed1.csv", ABIDE + ROWS)
    written(tmp_path, "Phenotypic_V1_0b.csv", ABIDE + ROWS)
    assert find_phenotype(deep, card) == path and find_phenotype(tmp_path, card) == path
    written(tmp_path, "Phenotypic_V1_0b_preprocessed2.csv", ABIDE + ROWS)
    with pytest.raises(OpenBrainMassError, match="2 tables.*--participants"):
        find_phenotype(deep, card)
    assert find_phenotype(tmp_path, dataset_card("msc")) is None


def test_a_participants_table_far_above_is_somebody_elses(tmp_path):
    card = dataset_card("cnp")
    near, far = tmp_path / "a", tmp_path / "a" / "b"
    far.mkdir(parents=True)
    path = written(tmp_path, "participants.tsv", "participant_id\n")
    assert find_phenotype(near, card) == path and find_phenotype(far, card) is None


def test_people_are_read_as_they_are_written(tmp_path):
    text = "participant_id\tsite\tage\tnote\trun\n0050003\t01\t9.5\tn/a\t1\nsub-2\t02\tn/a\t-9999\t2\n"
    table = read_people(written(tmp_path, "people.tsv", text))
    assert table["participant_id"].tolist() == ["0050003", "sub-2"] and table["site"].tolist() == ["01", "02"]
    assert table["age"].tolist()[0] == 9.5 and np.isnan(table["age"][1])
    assert table["note"].tolist()[1] == -9999 and table["run"].tolist() == ["1", "2"]
    for name, separator in [("people.csv", ","), ("other.csv", ";"), ("people.txt", "\t")]:
        again = read_people(written(tmp_path, name, text.replace("\t", separator)))
        pd.testing.assert_frame_equal(again, table)
    pd.testing.assert_frame_equal(read_tsv(tmp_path / "people.tsv"), table, check_dtype=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id\tage\n1\t2\n", "no column 'participant_id'"),
        ("participant_id\tage\n1\t2\n1\t3\n", "lines 2, 3"),
        ("participant_id\tage\nn/a\t2\n", "line 2 has nothing"),
        ("participant_id\tage\tage\n1\t2\t3\n", "'age' 2 times"),
        ("participant_id\tage\n1\n", "1 cells"),
    ],
)
def test_a_bad_table_of_people_is_refused(tmp_path, text, words):
    path = written(tmp_path, "people.tsv", text)
    with pytest.raises(OpenBrainMassError, match=re.escape(words)) as caught:
        read_people(path)
    assert "people.tsv" in str(caught.value) and "\n" not in str(caught.value)


@given(
    people=st.lists(
        st.tuples(
            st.sampled_from(["1", "2"]), st.sampled_from(["0", "1"]), st.floats(0, 119).map(lambda age: round(age, 3))
        ),
        min_size=1,
        max_size=8,
    )
)
def test_no_value_moves_to_another_person(tmp_path_factory, people):
    folder = tmp_path_factory.mktemp("people")
    phenotype = Phenotype(
        files=("p.csv",),
        id_column="ID",
        id_width=4,
        columns={
            "dx": Column(column="DX", codes={"1": "patient", "2": "control"}),
            "sex": Column(column="SEX", codes={"0": "F", "1": "M"}),
            "age": Column(column="AGE", unit="years"),
        },
    )
    rows = [f"{i},{dx},{sex},{age}" for i, (dx, sex, age) in enumerate(people)]
    table = read_phenotype(written(folder, "p.csv", "\n".join(["ID,DX,SEX,AGE", *rows])), with_table(phenotype))
    for i, (dx, sex, age) in enumerate(people):
        expected = [f"sub-{i:04d}", {"1": "patient", "2": "control"}[dx], {"0": "F", "1": "M"}[sex], age]
        assert table.loc[i].tolist() == expected


@pytest.mark.data
def test_the_pcp_table_tells_the_same_of_all_790_people_as_the_prepared_one(data_dir):
    card = dataset_card("abide1")
    series = data_dir / "abide_pcp_slice" / "Outputs" / "cpac" / "nofilt_noglobal" / "rois_cc200"
    path = find_phenotype(series, card)
    assert path is not None and fits_card(path, card)
    table = read_phenotype(path, card).set_index("participant_id")
    prepared_path = data_dir / "abide1_cc200" / "participants.tsv"
    assert not fits_card(prepared_path, card)
    prepared = read_people(prepared_path).set_index("participant_id")
    assert len(table) == 790 and set(table.index) == set(prepared.index)
    table = table.loc[prepared.index]
    for column in ("site", "dx", "sex", "eyes"):
        assert (table[column] == prepared[column]).all(), column
    for column in ("age", "fiq", "mean_fd"):
        np.testing.assert_allclose(table[column], prepared[column], atol=1e-9, err_msg=column)
