"""torch's threads sleep soon where they wait for each other, unless the user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def python(code, **environment):
    """What a process of its own prints and warns of, begun without settings of OpenMP."""
    env = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], env=env | environment,
                          capture_output=True, text=True, check=True)
    return done.stdout.split(), done.stderr


SPINNING = """
import time
{first}
import torch
torch.set_num_threads(2)
values = torch.ones(1 << 18)
values.mul_(1)
begun = time.process_time()
for _ in range(40):
    values.mul_(1)
    time.sleep(0.005)
print((time.process_time() - begun) / 40)
"""


@pytest.mark.skipif(sys.platform != "linux" or (os.cpu_count() or 1) < 2,
                    reason="threads spin where there are cores for them")
def test_threads_do_not_spin_while_there_is_nothing_to_do():
    """In CPU time, which does not depend on what else the machine does: 7 and 0.4 ms here."""
    usual, ours = (float(python(SPINNING.format(first=first))[0][0])
                   for first in ("", "import tem_taichi"))
    assert ours < usual / 3
    assert ours < 2e-3


SHOWN = "import os, tem_taichi; print(os.environ.get('OMP_WAIT_POLICY'), " \
        "os.environ.get('GOMP_SPINCOUNT'))"


def test_the_users_own_setting_wins():
    assert python(SHOWN)[0][0] == "None" and int(python(SHOWN)[0][1]) > 0
    assert python(SHOWN, OMP_WAIT_POLICY="active")[0] == ["active", "None"]
    assert python(SHOWN, GOMP_SPINCOUNT="7")[0] == ["None", "7"]


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
def test_one_warning_where_torch_came_first():
    code = ("import torch; torch.set_num_threads(2)\nimport tem_taichi\n"
            "tem_taichi.init('cpu'); tem_taichi.init('cpu', 'float64')")
    assert python(code)[1].count("torch was imported before tem_taichi") == 1
    assert "before tem_taichi" not in python(code, OMP_WAIT_POLICY="passive")[1]


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not HUGE.exists() or "[madvise]" not in HUGE.read_text(),
                    reason="huge pages are given to who asks for them")
def test_large_arrays_are_in_large_pages():
    code = ("import {first}, torch\na = torch.ones(1 << 25)\n"
            "text = open('/proc/self/smaps_rollup').read()\n"
            "print(text.split('AnonHugePages:')[1].split()[0])")
    assert int(python(code.format(first="tem_taichi"))[0][0]) > 100_000  # of 134 MB [kB]
    assert python(code.format(first="tem_taichi"), THP_MEM_ALLOC_ENABLE="0")[0][0] == "0"
