import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Several tests run at once, and results are compared to the last bit, which the number of threads
# decides; what is about threads sets them by itself. Before torch is loaded, which reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tem_taichi.device import init

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real structures and outside programs' results."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("no folder ../shared beside the checkout with data and reference results")
    return SHARED


@pytest.fixture(autouse=True)
def single_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test starts in float32 on the CPU; `double` asks for float64."""
    if "double" not in request.fixturenames:
        init("cpu", "float32")
    yield


@pytest.fixture
def double() -> Iterator[None]:
    """Compute in float64."""
    init("cpu", "float64")
    yield
    init("cpu", "float32")


@pytest.fixture(scope="session", autouse=True)
def signals_of_a_terminal() -> None:
    """What runs the tests in the background has these ignored, and processes inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named after their argument: a gzip file says when it was made, and tests that run
    side by side must have the same names in every process."""
    return argname if isinstance(val, bytes) else None
