"""Every acceptance case is claimed by a test, and the page that says so is current."""

from __future__ import annotations

from tests.cases import CASES, PAGE, claims, expanded, page


def test_every_case_is_claimed():
    found = claims()
    assert [case for case in CASES if not found.get(case)] == []


def test_the_page_is_current():
    assert PAGE.read_text() == page()


def test_ids_in_a_text():
    assert expanded("S-CKPT-01, 03: x; S-PKG-02 to 04 and S-SEC-05") == [
        "S-CKPT-01", "S-CKPT-03", "S-PKG-02", "S-PKG-03", "S-PKG-04", "S-SEC-05"]
