from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from openbrainmass.evaluation.audit.copies import find_copies, volume_hashes

Null = SimpleNamespace


@given(arrays(np.float32, (6, 5), elements=st.floats(-1000, 1000, width=32)))
def test_a_volume_has_one_number_whatever_float_holds_it(bold: np.ndarray) -> None:
    half = bold.astype(np.float16)
    np.testing.assert_array_equal(volume_hashes(half)[0], volume_hashes(half.astype(np.float64))[0])
    hashes, volumes = volume_hashes(bold[::-1])
    forwards = dict(zip(volume_hashes(bold)[1].tolist(), volume_hashes(bold)[0].tolist(), strict=True))
    assert forwards == dict(zip((5 - volumes).tolist(), hashes.tolist(), strict=True))


def test_volumes_that_say_nothing_prove_nothing(null: Null) -> None:
    scans = [null.bold_of(number) for number in range(20)]
    for bold in scans:
        bold[:5] = 0
        bold[5:8] = np.arange(14)
    cohort = null.cohort_of([f"p{number}" for number in range(20)], scans)
    assert find_copies(cohort) == []


def test_few_shared_volumes_are_enough_and_two_cohorts_are_compared(null: Null) -> None:
    scans = [null.bold_of(number, n_volumes=120) for number in range(24)]
    first = null.cohort_of([f"p{number}" for number in range(20)], [bold[:60] for bold in scans[:20]])
    other = null.cohort_of([f"p{number}" for number in range(4)], [scans[3][50:], *scans[21:]], name="other")
    assert [(copy.first, copy.second, copy.check) for copy in find_copies(first, other)] == [
        (3, 0, "windows-across-folds")
    ]
    assert find_copies(first) == find_copies(other) == []
