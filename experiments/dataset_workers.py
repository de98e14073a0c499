"""A data set of eight samples by every launcher, of whose workers one is killed half way.

    python -m experiments.dataset_workers [--only joblib,ray,submitit_local] [--samples N]

By joblib, by Ray on a cluster of two nodes that is started here, and by submitit. Each set is
compared, file by file, with one that a single process made; the table is in results/.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from experiments.runs import RESULTS

SCENE = """
defaults: [simulate, override specimen: empty, _self_]
shape: [96, 96]
pixel_size: 8.0
tilts: {scheme: dose_symmetric, minimum: -60, maximum: 60, step: 6}
specimen:
  ice: {thickness: 400}
  particles:
    ferritin: {structure: 4v1w, count: 6}
    protein: {globule: 500, count: 8}
"""
SET = """
scene: scene.yaml
name: eight
vary:
  optics.defocus: {uniform: [25000, 45000]}
  specimen.particles.protein.count: {integer: [0, 12]}
"""
TABLE = RESULTS / "dataset_workers.md"
HEAD = ("| launcher | worker killed after | samples there | files that differ | of |",
        "| --- | --- | --- | --- | --- |")
OWN = ("metadata.json", "scene.yaml", "config.json")
"""Files that hold times and places, which differ."""
MARKS = {"joblib": "loky", "ray": "ray::", "submitit_local": "submitit.core._submit"}
"""What the command line of a worker has in it."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(MARKS))
    parser.add_argument("--samples", type=int, default=8)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scene.yaml").write_text(SCENE)
        (folder / "set.yaml").write_text(SET + f"samples: {chosen.samples}\n")
        finished(command(folder, "alone", "joblib", "workers=1"))
        wanted = sums(folder / "alone")
        rows = kept()
        for launcher in chosen.only.split(","):
            with cluster(launcher) as words:
                run = command(folder, launcher, launcher, "workers=2", *words)
                after = kill_one(run, MARKS[launcher])
                finished(run)
            found = sums(folder / launcher)
            names = {file for file in {*wanted, *found} if not file.endswith(OWN)}
            differ = sorted(file for file in names if wanted.get(file) != found.get(file))
            there = len(list((folder / launcher / "checksums").iterdir()))
            rows[launcher] = (f"| {launcher} | {after:.0f} s | {there} of {chosen.samples} | "
                              f"{len(differ)} | {len(names)} |")
            print(rows[launcher], *differ[:5], sep="\n", flush=True)
            TABLE.write_text("\n".join((*HEAD, *rows.values())) + "\n")


def kept() -> dict[str, str]:
    """Rows that the table has, of other launchers."""
    lines = TABLE.read_text().splitlines()[len(HEAD):] if TABLE.is_file() else []
    return {line.split("|")[1].strip(): line for line in lines}


def command(folder: Path, output: str, launcher: str, *words: str) -> subprocess.Popen:
    """Begin to make the set."""
    return subprocess.Popen([
        sys.executable, "-m", "tem_taichi.dataset", "set.yaml", f"output={output}",
        f"launcher={launcher}", *words], cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)})


def finished(run: subprocess.Popen) -> None:
    if run.wait() != 0:
        raise RuntimeError("the set is not made")


def kill_one(run: subprocess.Popen, mark: str) -> float:
    """Kill a worker that has computed for some seconds; seconds since the run began."""
    begun = time.monotonic()
    while run.poll() is None:
        for process in psutil.Process().children(recursive=True):  # no one else's
            with suppress(psutil.NoSuchProcess):
                words = " ".join(process.cmdline())
                if mark in words and "tracker" not in words and process.cpu_times().user > 5:
                    process.kill()
                    return time.monotonic() - begun
        time.sleep(0.2)
    raise RuntimeError("no worker was there to be killed")


@contextmanager
def cluster(launcher: str) -> Iterator[list[str]]:
    """Two nodes of Ray on this machine, a core each; words that name them."""
    if launcher != "ray":
        yield []
        return
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 10**8}
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)  # of the nodes' workers
    nodes = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        nodes.add_node(**node)
        yield [f"address={nodes.address}"]
    finally:
        nodes.shutdown()
        ray.shutdown()


def sums(folder: Path) -> dict[str, str]:
    """Checksum of every file of a set's samples."""
    lines = [line.split("  ", 1) for file in (folder / "checksums").iterdir()
             for line in file.read_text().splitlines()]
    return {name: digest for digest, name in lines}


if __name__ == "__main__":
    main()
