from __future__ import annotations

from types import SimpleNamespace

from openbrainmass.atlas import numbered_atlas
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.evaluation.audit.pretraining import audit_pretraining

Null = SimpleNamespace


def test_a_corpus_of_another_atlas_is_compared_by_people_and_not_passed(null: Null, people: Cohort) -> None:
    strangers = null.cohort_of(["x", "y"], [null.bold_of(900)[:, :10], null.bold_of(901)[:, :10]], name="corpus")
    coarse = Cohort(
        "corpus", strangers.recordings, strangers.participants, numbered_atlas("Coarse", 10), strangers.read
    )
    found = {finding.check: finding for finding in audit_pretraining(people, pretrained_on=coarse)}
    assert found["pretraining-scans"].verdict == "not checked"
    assert "of the atlas Coarse" in found["pretraining-scans"].finding
    assert found["pretraining-people"].verdict == "passed"
    # The same people, extracted with another atlas: no scan is alike, but everybody is there.
    same = Cohort(people.name, people.recordings, people.participants, coarse.atlas, people.read)
    found = {finding.check: finding.verdict for finding in audit_pretraining(people, pretrained_on=same)}
    assert found == {"pretraining-people": "refused", "pretraining-scans": "not checked"}


def test_whom_any_of_several_has_met_counts(null: Null, people: Cohort) -> None:
    class Checkpoint:
        seen_identities = people.select([3]).hashes()

    clean = frozenset({"somebody"})
    assert audit_pretraining(people, seen=[clean, clean])[0].verdict == "passed"
    for seen in ([clean, Checkpoint()], (Checkpoint(), clean), [Checkpoint()]):
        finding = audit_pretraining(people, seen=seen)[0]
        assert finding.verdict == "refused"
        assert "1 of 60 people" in finding.finding
