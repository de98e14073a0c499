import os
import signal
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


@pytest.fixture(scope="module", autouse=True)
def single_precision_first() -> None:
    """What a module's tests share is made in float32, unless it says otherwise."""
    init("cpu", "float32")


@pytest.fixture(autouse=True)
def single_precision(request: pytest.FixtureRequest) -> None:
    """Every test starts in float32 on the CPU; `double` asks for float64."""
    if "double" not in request.fixturenames:
        init("cpu", "float32")


@pytest.fixture
def double() -> None:
    """Compute in float64."""
    init("cpu", "float64")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In each module tests in float64 come last: a change of precision starts Taichi again and
    loads all kernels anew, which 770 tests would else do twice each."""
    modules = {item.path: number for number, item in reversed(list(enumerate(items)))}
    items.sort(key=lambda item: (modules[item.path], "double" in getattr(item, "fixturenames", ())))


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
