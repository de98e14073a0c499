import json
from pathlib import Path

import numpy as np
import pytest

from tem_taichi.files.io import write_json


def test_json_comes_back_in_order(tmp_path):
    content = {"program": "tem_taichi", "angle": np.float32(0.5), "n": np.int64(3), "name": "Å",
               "array": np.arange(3), "path": Path("a/b"), "nested": {"z": 1, "a": [True, None]}}
    write_json(tmp_path / "a.json", content)
    back = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert back == {"program": "tem_taichi", "angle": 0.5, "n": 3, "name": "Å", "array": [0, 1, 2],
                    "path": "a/b", "nested": {"z": 1, "a": [True, None]}}
    assert list(back) == list(content)
    assert list(back["nested"]) == ["z", "a"]


@pytest.mark.parametrize("bad", [np.nan, np.float32("inf"), np.array([1, np.nan]), object(), {1}])
def test_json_refuses_what_it_can_not_hold(tmp_path, bad):
    with pytest.raises(ValueError, match=r"a\.json: "):
        write_json(tmp_path / "a.json", {"value": bad})
    assert not list(tmp_path.iterdir())
