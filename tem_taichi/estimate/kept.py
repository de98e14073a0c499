"""What a long estimate has found so far, kept for the same run to go on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tem_taichi.files.records import Records
from tem_taichi.files.unfinished import key_of, load_part, save_part


@dataclass(frozen=True)
class Kept:
    """Numbers and pictures by their names."""

    folder: Path | None = None
    """Of `unfinished.unfinished`; None = nothing is kept."""
    about: str = ""
    """Key of all that decides them."""

    def numbers(self, name: str, compute: Callable[[], list[float]]) -> list[float]:
        """Some numbers, computed unless they are there."""
        if self.folder is None:
            return compute()
        key = key_of([self.about, name])
        part = load_part(self.folder, key, ("numbers",))
        if part is None:
            part = {"numbers": compute()}
            self.folder.mkdir(parents=True, exist_ok=True)
            save_part(self.folder, key, part)
        return [float(number) for number in part["numbers"]]

    def picture(self, name: str, like: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """A picture of the shape and type of another, computed unless it is there."""
        if self.folder is None:
            return compute()
        records = Records(self.folder, key_of([self.about, name]), (1, 1, *like.shape),
                          np.dtype(str(like.dtype).removeprefix("torch.")))
        if records.find(0) is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            records.save(0, [compute().detach().cpu().numpy()], {})
        return torch.as_tensor(np.array(records.arrays()[0, 0])).to(like.device)

    def state(self, name: str) -> Path | None:
        """File for the state of a run, which outlives it; None = nothing is kept."""
        if self.folder is None:
            return None
        key = key_of([self.about, name, "state"])
        self.folder.mkdir(parents=True, exist_ok=True)
        save_part(self.folder, key, {"state": name})
        return self.folder / f"{key}.records"
