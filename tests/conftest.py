from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real structures and outside programs' results."""
    if not (SHARED / "reference").is_dir():
        pytest.skip("no folder ../shared beside the checkout with data and reference results")
    return SHARED
