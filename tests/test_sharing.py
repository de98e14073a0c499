"""sharing.py: as many threads as other programs leave cores free."""

import subprocess
import sys
import time

import pytest
import torch

from tem_taichi import sharing
from tem_taichi.sharing import Sharing, free_cores


def test_free_cores_are_those_that_others_left(monkeypatch):
    monkeypatch.setattr(sharing.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert free_cores((0.0, 0.0, 0.0), (2.0, 8.0, 8.0)) == 8  # all of the use is our own
    assert free_cores((0.0, 0.0, 0.0), (2.0, 10.0, 4.0)) == 5
    assert free_cores((0.0, 5.0, 1.0), (1.0, 15.0, 1.5)) == 1  # never none
    assert free_cores((0.0, 0.0, 0.0), (1.0, 1.0, 1.1)) == 8  # clocks of processes tick coarsely


@pytest.fixture
def unfixed(monkeypatch):
    """Two threads that nobody asked for."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_follow_what_is_free_and_come_back(unfixed, monkeypatch):
    free = iter([1, 2, 1])
    monkeypatch.setattr(sharing, "free_cores", lambda *_: next(free))
    monkeypatch.setattr(sharing, "_SHORTEST", 0.0)
    with Sharing() as share:
        assert torch.get_num_threads() == 1
        share()
        assert torch.get_num_threads() == 2
        share()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2 and share.counts == [1, 2]


def test_the_users_own_number_stays(unfixed, monkeypatch):
    monkeypatch.setattr(sharing, "free_cores", lambda *_: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with Sharing() as share:
        assert torch.get_num_threads() == 2
    assert share.counts == [2]


def test_a_busy_core_is_seen():
    """Another process that does nothing but count takes at least half a core of those there are."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            time.sleep(0.2)
            before = sharing._now()
            time.sleep(0.6)
            wall, used, own = (b - a for a, b in zip(before, sharing._now(), strict=True))
        finally:
            other.kill()
    assert used - own > 0.5 * wall * 0.5  # the clocks' hundredths, and whoever else is there
