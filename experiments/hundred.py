"""A hundred labelled samples: killed, cut short, gone on with, and some made again by themselves.

    TEM_TAICHI_CACHE=../shared/data/atoms python -m experiments.hundred FOLDER [--samples 100]

Makes picker_set.yaml in FOLDER. The whole run is killed once, with four samples to go one of two
workers, and a finished file is cut short; the same command repairs it all. Then ten samples are
made alone elsewhere and compared byte by byte. What is done is kept in FOLDER, so that the command
goes on where it ended; the table is in results/.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from experiments.dataset_workers import OWN, kill_one, sums
from experiments.runs import RESULTS, add_row, machine, rows_of

HERE = Path(__file__).parent
LAST = 4
"""Samples that two workers make, of whom one is killed."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--alone", type=int, default=10)
    chosen = parser.parse_args()
    folder, count = chosen.folder.resolve(), chosen.samples
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    done = {row["step"]: row for row in rows_of(rows)}

    def step(name: str, work: Any) -> None:
        if name not in done:
            row = {"step": name, **machine(), **work()}
            add_row(rows, row)
            print(row, flush=True)

    first, third = max(count - LAST, 1), max(count // 3, 1)
    made, alone = folder / "set", folder / "alone"
    step("killed", lambda: watched(made, [f"samples={first}", "workers=1"],
                                   lambda run: kill_at(run, made, third)))
    step("gone on", lambda: watched(made, [f"samples={first}", "workers=1"]))
    step("two workers, one killed", lambda: watched(
        made, [f"samples={count}", "workers=2"], lambda run: kill_one(run, "loky")))
    step("a file cut short", lambda: cut(made, count))
    step("alone", lambda: watched(alone, [
        f"samples={count}", "workers=1",
        f"only=[{','.join(map(str, range(0, count, max(count // chosen.alone, 1))))}]"]))
    step("compared", lambda: compared(made, alone))
    write_table(rows_of(rows), made, count)


def watched(output: Path, words: list[str], during: Any = None) -> dict[str, Any]:
    """Make the set; clock and CPU seconds, greatest memory [MB], and samples at the end."""
    there, begun = samples(output), time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "tem_taichi.dataset", str(HERE / "picker_set.yaml"),
         f"output={output}", *words],
        env=os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"})
    spent: dict[int, float] = {}
    peak = [0]
    watch = threading.Thread(target=_watch, args=(run, spent, peak))
    watch.start()
    killed = during(run) if during is not None else None
    status = run.wait()
    watch.join()
    return {"seconds": time.monotonic() - begun, "cpu_s": sum(spent.values()),
            "megabytes": peak[0] / 1e6, "made": samples(output) - there,
            "there": samples(output), "status": status, "killed_after_s": killed}


def _watch(run: subprocess.Popen, spent: dict[int, float], peak: list[int]) -> None:
    """CPU seconds of each process of a run, and the greatest memory of all at once."""
    while run.poll() is None:
        memory = 0
        try:
            parent = psutil.Process(run.pid)
            for process in (parent, *parent.children(recursive=True)):
                try:
                    times = process.cpu_times()
                    spent[process.pid] = times.user + times.system
                    memory += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            break
        peak[0] = max(peak[0], memory)
        time.sleep(1.0)


def samples(output: Path) -> int:
    """Whole samples in a set."""
    return len(list((output / "checksums").glob("*.sha256")))


def kill_at(run: subprocess.Popen, output: Path, count: int) -> float:
    """Kill all of a run while it makes the sample after so many; seconds since it began."""
    begun = time.monotonic()
    while run.poll() is None and samples(output) < count:
        time.sleep(0.5)
    time.sleep(10.0)
    parent = psutil.Process(run.pid)
    for process in (*parent.children(recursive=True), parent):
        process.send_signal(signal.SIGKILL)
    return time.monotonic() - begun


def cut(output: Path, count: int) -> dict[str, Any]:
    """Cut a file short, and make the set again: what was repaired, to the same bytes."""
    name = f"five_{count // 2:04d}"
    file = output / "samples" / name / "shrec" / "model_0" / "reconstruction.mrc"
    before = sums(output)
    content = file.read_bytes()[:100_000]
    file.unlink()  # its hard links in the projects keep their bytes
    file.write_bytes(content)
    found = watched(output, [f"samples={count}", "workers=1"])
    after = sums(output)
    return found | {"differ": [one for one in {*before, *after} if not one.endswith(OWN)
                               and before.get(one) != after.get(one)]}


def compared(output: Path, alone: Path) -> dict[str, Any]:
    """Files of samples made alone against those of the set, byte by byte."""
    here, there = sums(output), sums(alone)
    names = [name for name in there if not name.endswith(OWN)]
    differ = [name for name in names if (output / name).read_bytes() != (alone / name).read_bytes()]
    prefixes = {name.split("/")[1] for name in there if name.startswith("samples/")}
    missing = [name for name in here if name.startswith(
        tuple(f"samples/{one}/" for one in prefixes)) and name not in there]
    return {"files": len(names), "differ": differ + missing, "samples": len(prefixes)}


def write_table(rows: list[dict[str, Any]], made: Path, count: int) -> None:
    """Write results/hundred.md."""
    size = sum(file.stat().st_size for file in {
        file.stat().st_ino: file for file in made.rglob("*") if file.is_file()}.values())
    lines = ["| step | samples made | clock min | CPU s | CPU s a sample | memory MB | failed | |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        if "cpu_s" not in row or (row["step"] == "alone" and not row["made"]):
            continue
        end = "killed" if row["status"] < 0 else f"{row['there']} there"
        if "differ" in row:
            end += f", repaired; {len(row['differ'])} files differ from before"
        each = f"{row['cpu_s'] / row['made']:.1f}" if row["made"] else ""
        failed = "" if row["status"] < 0 else "0" if row["status"] == 0 else "some"
        lines.append(f"| {row['step']} | {row['made']} | {row['seconds'] / 60:.1f} | "
                     f"{row['cpu_s']:.0f} | {each} | {row['megabytes']:.0f} | {failed} | {end} |")
    all_made = [row for row in rows if "cpu_s" in row and row["step"] != "alone"]
    cpu = sum(row["cpu_s"] for row in all_made)
    one = next(row for row in rows if row["step"] == "compared")
    lines += ["", f"All {count}: {cpu:.0f} CPU s, {cpu / 120:.0f} min of two cores; on this "
              f"machine, whose load was {min(row['load'] for row in rows):.0f} to "
              f"{max(row['load'] for row in rows):.0f} on {rows[0]['cores']} cores, "
              f"{sum(row['seconds'] for row in all_made) / 60:.0f} min of the clock, most of them "
              f"by one worker. {size / 1e9:.1f} GB on disk. Of {one['samples']} samples made again "
              f"alone {len(one['differ'])} of {one['files']} files differ."]
    (RESULTS / "hundred.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
