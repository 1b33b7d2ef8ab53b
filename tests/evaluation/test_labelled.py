from __future__ import annotations

from collections.abc import Callable

import numpy as np

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.evaluation.labelled import joined, labelled
from openbrainmass.evaluation.tasks import Task

MakeCohort = Callable[..., Cohort]
TASK = Task(name="toy", target="dx", positive=("patient",), negative=("control",))


def test_the_unknown_are_left_out_and_the_label_is_hidden(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(["patient", "control"] * 3 + ["n/a"], n_recordings=2, columns={"other": list("abcabcd")})
    known = labelled(cohort, TASK, hidden=["other"])
    assert len(known.cohort) == len(known.people.y) == len(known.identities) == len(known.ties) == 12
    assert not {"dx", "other"} & set(known.cohort.table.columns)
    assert known.facts["n_people"] == 6 and known.facts["n_positive"] == 3
    assert known.facts["n_recordings_without_class"] == 2 and known.facts["datasets"] == []


def test_values_have_a_mean_instead_of_classes(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=10, n_recordings=[1, 3] * 5)
    known = labelled(cohort, Task(name="age", target="age", kind="regression"))
    assert known.people.continuous and "n_positive" not in known.facts
    # Of people, however many recordings each has.
    assert known.facts["mean"] == np.mean([20 + number % 7 for number in range(10)])


def test_joined_cohorts_read_from_both_and_keep_their_identities(make_cohort: MakeCohort) -> None:
    one, two = make_cohort(n_people=6, seed=1), make_cohort(n_people=4, seed=2, name="other")
    both = joined(one, two)
    assert len(both) == 10
    np.testing.assert_array_equal(both.bold(1), one.bold(1))
    np.testing.assert_array_equal(both.bold(7), two.bold(1))
    assert both.identities() == one.identities() + two.identities()
    assert both.table["site"].tolist() == [*one.table["site"], *two.table["site"]]
