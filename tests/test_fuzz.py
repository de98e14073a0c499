"""A small sample of tests/fuzz.py; how to run more is said there."""

import pytest

from tests.fuzz import cases


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_whatever_is_wrong_is_one_line_that_names_the_key(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    assert dict(cases(60, seed)) == {}
    assert [file.name for file in tmp_path.iterdir()] == []  # nothing is written by a check
