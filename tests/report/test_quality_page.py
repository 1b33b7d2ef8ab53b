"""The quality page: what it counts, what it says of copies and doubts, and that it needs nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.quality import REASONS, WARNINGS, QualitySettings
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.cohort.store import save_cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.report.quality_page import MEASURES, SECTIONS, render, write_quality_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert('x')</script>"
LEFT_OUT = [
    ("too-short", 5),
    ("duplicate", 2),
    ("contradicting-duplicate", 2),
    ("seen-elsewhere", 1),
    ("own-reason", 1),
]
WARNED = [
    ("mixed-up", "its FC is more like that of another person"),
    ("atypical-fc", "FC correlates 0.10 with the mean of the others"),
    ("of-an-extension", HOSTILE),
]


@lru_cache
def simulated() -> Cohort:
    return simulate_cohort(40, 3, 21, 90, seed=3)


def curated(**changes: Any) -> Cohort:
    """A simulated cohort of three sites, eleven of whose recordings were left out."""
    cohort = simulated()
    recordings, people = cohort.recordings, cohort.participants
    recordings["typicality"] = [0.5 + 0.001 * i for i in range(len(cohort))]
    recordings["n_censored"], recordings["n_acquired"] = 9, 90
    recordings["min_coverage"] = 0.7
    recordings["mean_fd"], recordings["fd_formula"] = 0.2, "jenkinson"
    reasons = [reason for reason, n in LEFT_OUT for _ in range(n)]
    exclusions = pd.DataFrame({"reason": reasons, "file": "", "detail": "told in detail"})
    exclusions["recording_id"] = [f"gone-{i}" for i in range(len(reasons))]
    exclusions["participant_id"] = exclusions["recording_id"]
    exclusions["site"], exclusions["dx"] = people["site"].iloc[0], "patient"
    tables = {"recordings": recordings, "participants": people, "exclusions": exclusions} | changes
    return Cohort(
        "toy", tables["recordings"], tables["participants"], cohort.atlas, lambda _: cohort[0], tables["exclusions"]
    )


def plain(cohort: Cohort) -> pd.DataFrame:
    """The recordings without what is drawn, to be quick."""
    return cohort.recordings.drop(columns=["typicality", "mean_fd", "n_censored", "min_coverage"]).assign(
        tr=float("nan")
    )


def warned(cohort: Cohort) -> pd.DataFrame:
    ids = cohort.recordings["recording_id"]
    rows = [(kind, ids[i], ids[i], detail) for i, (kind, detail) in enumerate(WARNED)]
    return pd.DataFrame(rows, columns=["kind", "recording_id", "participant_id", "detail"])


def rendered(cohort: Cohort | None = None, **settings: Any) -> str:
    cohort = cohort or curated()
    return render(cohort, {"quality": QualitySettings(**settings).model_dump(mode="json")}, warned(cohort))


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def html() -> str:
    return rendered(max_mean_fd=0.5)


def test_what_was_found_kept_and_left_out(html):
    text = text_of(html)
    assert "Of 51 recordings, 40 were kept" in text
    assert "too little of the recording is left (5)" in text
    assert "40 78.4 %" in text


def test_the_way_from_found_to_kept_is_in_the_order_of_judging(html):
    flow = text_of(html[html.index('class="flow"') : html.index("By site")])
    remaining = [int(n) for n in re.findall(r"\N{MINUS SIGN}\d+ (\d+)", flow)]
    assert remaining == [46, 44, 42, 41, 40]
    places = [flow.index(reason) for reason, _ in LEFT_OUT]
    assert places == sorted(places) and flow.index("found 51") < places[0] < flow.index("kept 40")


def test_counts_by_site_and_class_add_up(html):
    rows = re.findall(r"<tr>(.*?)</tr>", html[html.index("By site") : html.index("By dx")], flags=re.DOTALL)
    cells = [re.findall(r'<td class="n">(.*?)</td>', row) for row in rows if "<td" in row]
    assert len(cells) == 3
    assert sum(int(row[0]) for row in cells) == 51 and sum(int(row[1]) for row in cells) == 40
    assert "patient" in text_of(html[html.index("By dx") :])


def test_every_measure_is_drawn_with_its_limit_and_formula(html):
    for measure in MEASURES:
        assert f'<p class="title">{measure.title}</p>' in html
    assert "A dashed line at 0.5." in html and "Formula: jenkinson." in html
    assert html.count("The dashed line is the limit.") == 2


def test_measures_that_are_not_known_are_not_drawn():
    cohort = curated()
    people = cohort.participants.drop(columns=["mean_fd"], errors="ignore")
    html = rendered(curated(recordings=plain(cohort), participants=people))
    assert re.findall(r'<p class="title">(.*?)</p>', html) == ["Dead ROIs"]


def test_copies_and_contradictions_are_listed(html):
    part = html[html.index('id="copies"') : html.index('id="doubts"')]
    assert [f"gone-{i}" in part for i in range(11)] == [False] * 5 + [True] * 5 + [False]
    assert "2 recordings carried contradicting labels" in text_of(html)


def test_whether_copies_were_looked_for_is_said():
    recordings = plain(curated())
    clean = curated(
        recordings=recordings,
        exclusions=pd.DataFrame(columns=["recording_id", "participant_id", "reason", "detail", "file"]),
    )
    assert "No scan was there twice" in rendered(clean)
    assert "All 40 recordings were kept" in rendered(clean)
    assert "Copies were not looked for" in rendered(clean, check_duplicates=False)


def test_doubts_are_listed_by_kind(html):
    text = text_of(html)
    assert WARNINGS["mixed-up"].split()[-1] in text and "1 recording may belong to another person" in text
    assert "3 doubts about what was kept are listed below" in text


def test_a_store_without_warnings_says_so():
    cohort = curated(recordings=plain(curated()))
    assert "the store has no table of warnings" in render(cohort, {}, None)
    assert "Nothing that was kept is in doubt" in render(cohort, {}, warned(cohort)[:0])
    assert "saved without being judged" in render(cohort, {}, None)


def test_what_comes_from_tables_is_text_not_markup(html):
    assert HOSTILE not in html and "&lt;script&gt;" in html
    people = curated().participants.assign(site=HOSTILE)
    assert HOSTILE not in rendered(curated(participants=people))


def test_the_page_asks_no_other_address(html):
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert "default-src 'none'" in html


def test_the_page_is_well_formed_with_one_heading_and_every_section(html):
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.ids: list[str] = []
            self.headings = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.headings += tag == "h1"
            self.ids += [value for name, value in attrs if name == "id" and value]
            if tag not in {"meta", "link", "img", "br", "rect", "path", "col"}:
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in {"rect", "path"}:
                assert self.open.pop() == tag

    reader = Reader()
    reader.feed(html)
    assert reader.open == [] and reader.headings == 1
    assert {key for key, _ in SECTIONS} <= set(reader.ids) and len(reader.ids) == len(set(reader.ids))


def test_long_tables_are_cut_and_say_so():
    cohort = curated()
    many = pd.concat([cohort.exclusions] * 200, ignore_index=True)
    html = rendered(curated(exclusions=many))
    assert "The first 1,000 of 2,200 rows of the table exclusions.tsv" in text_of(html)
    assert len(html) < 3_000_000


def test_people_without_a_recording_are_not_counted_as_recordings():
    cohort = curated()
    absent = cohort.exclusions.assign(reason="no-recording", recording_id=None)
    text = text_of(rendered(curated(recordings=plain(cohort), exclusions=absent)))
    assert "All 40 recordings were kept." in text
    assert "11 people of the participants table had no recording" in text and "11 rows of exclusions.tsv" in text


def test_one_site_and_one_person_are_enough():
    alone = simulate_cohort(1, 1, 21, 90)
    people = alone.participants.drop(columns=["site", "dx", "sex"])
    cohort = Cohort("one", alone.recordings, people, alone.atlas, lambda _: alone[0])
    text = text_of(render(cohort, {}, None))
    assert "The only recording was kept." in text


def test_the_page_is_written_beside_the_tables(tmp_path: Path):
    save_cohort(simulate_cohort(12, 2, 21, 80), tmp_path / "store")
    out = write_quality_page(tmp_path / "store")
    assert out == tmp_path / "store" / "quality.html" and "All 12 recordings" in text_of(out.read_text())
    first = out.read_bytes()
    assert write_quality_page(tmp_path / "store").read_bytes() == first


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path):
    with pytest.raises(OpenBrainMassError, match=r"no manifest\.json"):
        write_quality_page(tmp_path)


def test_reasons_of_the_page_are_explained_by_the_package():
    assert {reason for reason, _ in LEFT_OUT} - set(REASONS) == {"own-reason"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.enable_socket  # The browser is driven over a local socket; the page itself is a file.
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_the_page_fits_and_is_quiet(html: str, browser: Any, tmp_path: Path, width: int) -> None:
    file = tmp_path / "quality.html"
    file.write_text(html, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri(), wait_until="load")
    assert [url for url in asked if url != file.as_uri() and not url.startswith("data:")] == []
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].filter(image => !image.alt || !image.naturalWidth).length") == 0
    assert page.evaluate("document.images.length") == len(MEASURES)
    outside = page.evaluate(
        """[...document.querySelectorAll('h1, h2, h3, p, dd, li, figcaption, th, td')]
        .filter(e => !e.closest('.scroll') && e.getClientRects().length)
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1)
        .map(e => e.textContent.trim().slice(0, 40))"""
    )
    assert outside == []
    lost = "[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => !document.querySelector(a.hash)).length"
    assert page.evaluate(lost) == 0
    page.close()


def test_the_page_needs_no_torch():
    check = "import sys, openbrainmass.report.quality_page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
