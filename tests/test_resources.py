"""Memory and time are counted before anything is built, and what cannot fit is refused."""

import gzip
import subprocess
import sys
import time
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest

from tem_taichi import machine
from tem_taichi.files.mrc import read_volume
from tem_taichi.files.packed import content_of
from tem_taichi.instrument.groups import group_size
from tem_taichi.scene.load import load_scene
from tem_taichi.series import cost
from tem_taichi.series.cost import foreseen_memory
from tem_taichi.series.plan import plan
from tem_taichi.simulate import main
from tem_taichi.specimen.assemblies import assembly_generators
from tem_taichi.specimen.atoms import read_structure
from tem_taichi.specimen.filling import fill
from tem_taichi.specimen.ice_shape import IceShape

P = "specimen.particles.p"
EMPTY = ["specimen=empty", "compute.arch=cpu"]
MB = 1e6


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p.pdb").write_text("HETATM    1 AU   AU  A   1       0.000   0.000   0.000  1.00 80.00"
                             "          AU\nEND\n")
    return tmp_path


@pytest.fixture
def small_machine(monkeypatch):
    """A container of 2 GB."""
    for place in ("machine.memory_limit", "series.cost.memory_limit",
                  "files.packed.memory_limit"):
        monkeypatch.setattr(f"tem_taichi.{place}", lambda: 2e9)


def groups(root, own, **limits):
    """Control groups with limits in files, as a kernel shows them."""
    (root / "own").write_text(own)
    for file, text in limits.items():
        place = root / file.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_name(place.name.replace("_max", ".max").replace("_limit", ".limit")).write_text(
            text)


@pytest.mark.parametrize(("own", "limits", "limit"), [
    ("0::/job/step\n", {"job__memory_max": "3000000000\n", "job__step__memory_max": "max\n"}, 3e9),
    ("0::/\n", {"memory_max": "1000000000\n"}, 1e9),
    # A container whose own group is shown as the root of all.
    ("0::/docker/abc\n", {"memory_max": "4000000000\n"}, 4e9),
    ("5:cpu:/x\n4:memory:/job\n", {"memory__job__memory_limit_in_bytes": "2000000000\n"}, 2e9),
    ("0::/job\n", {}, 64e9),
])
def test_limit_of_a_container(tmp_path, monkeypatch, own, limits, limit):
    groups(tmp_path, own, **limits)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN", tmp_path / "own")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 64e9}))
    assert machine.memory_limit() == limit


@pytest.mark.parametrize(("words", "said"), [
    (["shape=[8192,8192]"], "GB of memory, the machine has 2.0 GB"),
    (["formats=[shrec]", "shape=[1024,1024]"], "volumes of 3.15e+08 voxels"),
    (["formats=[copick]", "shape=[1024,1024]"], "volumes of 3.15e+08 voxels"),
    ([f"{P}.structure=p.pdb", f"{P}.placement=lattice", f"{P}.copies=[1000,1000,100]"],
     f"{P}.copies=[1000, 1000, 100]: needs about 50.0 GB of memory"),
    ([f"{P}.structure=p.pdb", f"{P}.placement=helix", f"{P}.count=1000000", f"{P}.rise=0.1",
      f"{P}.twist=1", f"{P}.length=1000"], f"{P}.count=1000000: 10,000 copies each: needs about"),
    ([f"{P}.map=big.mrc"], f"{P}.map: "),
])
def test_what_cannot_fit_is_refused_at_once(here, small_machine, capsys, words, said):
    with mrcfile.new("big.mrc") as mrc:
        mrc.set_data(np.zeros((2, 2, 2), np.float32))
        mrc.voxel_size = 2.0
        mrc.header.nx = mrc.header.ny = mrc.header.nz = 1000
    begun = time.process_time()
    assert main([*EMPTY, *words, "--check"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("words", [
    ["tilts.step=0.01", "tilts.minimum=-89", "tilts.maximum=89"],  # 17,800 tilts
    ["interaction.slice_thickness=0.1", "specimen.ice.thickness=100000"],
])
def test_more_than_a_day_asks_for_force(here, capsys, monkeypatch, words):
    monkeypatch.setattr("tem_taichi.series.cost.memory_limit", lambda: 1e12)
    words = [*EMPTY, "shape=[2048,2048]", *words, "--check"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "force=false: " in err and "must be true for more than a day" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("shape", "words", "peak"), [
    (512, [], 0.80), (1024, [], 1.20), (2048, [], 2.46), (4096, [], 3.91),
    (2048, ["interaction.oversampling=1", "interaction.margin=0"], 1.33),
    (2048, ["interaction.oversampling=1", "interaction.margin=0", "interaction.mode=projection",
            "detector.halves=true", "specimen.ice.granularity=0"], 0.96),
])
def test_memory_is_that_of_measured_runs(shape, words, peak):
    """Peaks of runs on a CPU [GB], with 1.35 A pixels in 200 nm of ice."""
    scene = load_scene(None, [f"shape=[{shape},{shape}]", "pixel_size=1.35", "compute.arch=cpu",
                              "specimen.ice.thickness=2000",
                              "tilts={scheme: listed, angles: [0]}", *words])
    planned = plan(scene)
    memory = sum(foreseen_memory(scene, planned.instrument, np.zeros(1))) + cost._BASE
    assert memory == pytest.approx(planned.memory)
    assert memory == pytest.approx(peak * 1e9, rel=0.3)  # they are said to be within a third


def test_very_many_slices_take_no_more_room_than_few():
    """Slices of 0.1 A in 0.1 mm of ice were held a thousand at once."""
    for n_slices, pixels in ((10**7, 800**2), (500, 3000**2), (100, 7000**2)):
        held = group_size(n_slices, pixels)
        assert held >= 2
        assert held == 2 or held * pixels <= 6 * 3500**2
    assert group_size(100, 2000**2) == 6


def test_force_lets_it_run(here):
    from tem_taichi.series.cost import DAY, check_time

    check_time(load_scene(None, [*EMPTY, "force=true"]), 2 * DAY, 1)
    check_time(load_scene(None, EMPTY), 0.9 * DAY, 1)
    with pytest.raises(ValueError, match="force=false"):
        check_time(load_scene(None, EMPTY), 2 * DAY, 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's")
def test_maps_take_little_memory():
    """All of whose voxels are kept: 414 bytes each before, 90 to 130 now; 140 are reckoned with."""
    code = ("import numpy as np, tem_taichi; tem_taichi.init('cpu')\n"
            "from tem_taichi.specimen.maps import map_gaussians\n"
            "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1]"
            ".split()[0])\n"
            "v = np.random.default_rng(0).standard_normal((128,) * 3).astype(np.float32)\n"
            "map_gaussians(v[:16, :16, :16].copy(), 2.0)  # which loads what it needs\n"
            "before = peak(); map_gaussians(v, 2.0); print(1024 * (peak() - before) / v.size)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 140


def test_assembly_of_too_many_operators(tmp_path):
    """Four spans of a hundred are 10^8 products, which are counted and not made."""
    text = ("data_x\n_pdbx_struct_assembly_gen.assembly_id 1\n"
            "_pdbx_struct_assembly_gen.oper_expression (1-100)(1-100)(1-100)(1-100)\n"
            "_pdbx_struct_assembly_gen.asym_id_list A\n")
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"assembly='1': has 100,000,000 operators"):
        assembly_generators(gemmi.Structure(), gemmi.cif.read_string(text), "1")
    assert time.process_time() - begun < 1


def test_assembly_of_too_many_atoms(monkeypatch):
    monkeypatch.setattr("tem_taichi.machine.memory_limit", lambda: 1e6)
    with pytest.raises(ValueError, match=r"assembly: [0-9,]+ atoms: needs about"):
        read_structure("4v1w", assembly=1)


def test_gzip_bombs(tmp_path, small_machine):
    """Files of a few kB that unpack to 260 MB and more; a structure's, and behind a map's data."""
    bomb = tmp_path / "bomb.pdb.gz"
    zeros = bytes(1 << 20)
    with gzip.open(bomb, "wb", 9) as file:
        for _ in range(260):
            file.write(zeros)
    with pytest.raises(ValueError, match=r"bomb\.pdb\.gz: .*once unpacked"):
        read_structure(bomb)
    with pytest.raises(ValueError, match="holds more than"):
        content_of(bomb, True)
    mrc = tmp_path / "map.mrc"
    with mrcfile.new(mrc) as small:
        small.set_data(np.ones((4, 4, 4), np.float32))
        small.voxel_size = 1.0
    assert read_volume(mrc)[0].shape == (4, 4, 4)
    packed = tmp_path / "map.mrc.gz"
    with gzip.open(packed, "wb") as file:
        file.write(mrc.read_bytes())
    assert read_volume(packed)[0].shape == (4, 4, 4)
    with gzip.open(packed, "ab") as file:
        for _ in range(20):
            file.write(zeros)
    with pytest.raises(ValueError, match="unpacks to more data than its header says"):
        read_volume(packed)


@pytest.mark.parametrize("radius", [1e-3, 1.0])
def test_a_hole_smaller_than_an_atom_ends(radius):
    import torch

    shape = IceShape(200.0, 300.0, radius, carbon_thickness=100.0, carbon_edge=1e-3)
    begun = time.process_time()
    part = fill(shape, torch.eye(3), (16, 16), 2.0, 0.0, 20.0)
    assert time.process_time() - begun < 5
    assert bool(((part >= 0) & (part <= 1)).all())


def test_absurd_magnitudes_of_a_fit(here, capsys):
    from tem_taichi.fit import main as fit

    np.zeros(1).tofile("a.mrc")
    assert fit(["recipe=ctf", "input=a.mrc", "astigmatism=1e9"]) == 2
    assert "astigmatism=1000000000.0: must be from 0 to 100000 [A]" in capsys.readouterr().err
