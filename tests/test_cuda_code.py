"""What Taichi makes of the kernels for a GPU, and what it asks of the driver, without a GPU.

The driver is that of reference/fake_cuda.c, so that nothing is computed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc")
ASSEMBLER = shutil.which("ptxas")

pytestmark = pytest.mark.skipif(sys.platform != "linux" or COMPILER is None,
                                reason="needs Linux and a C compiler")

BEGIN = """
import os
import taichi as ti
import torch
from tem_taichi import device, multislice
from tem_taichi.noise.draws import deposit, poisson
from tem_taichi.specimen import gridding
from tem_taichi.specimen.filling import fills
from tem_taichi.specimen.hash_grid import Levels, encoded
from tem_taichi.specimen.ice import ice_slice
from tem_taichi.specimen.ice_shape import IceShape
from tem_taichi.specimen.octree import Octree, project_octree, uniform
from tem_taichi.specimen.potential import peng_table
from tem_taichi.specimen.rays import Rays, project
from tem_taichi.specimen.slabs import Slabs, sliced
from tem_taichi.specimen.splatting import narrow, splat
from tem_taichi.streams import Key

# torch has no GPU here: its tensors are the host's, which the driver takes for the device's.
device._start(True, ti.f32)
device._current = device.Device("gpu", torch.device("cpu"), torch.float32)
torch.Tensor.pin_memory = lambda tensor: tensor
assert ti.cfg.arch == ti.cuda

def say(text):
    with open(os.environ["FAKE_CUDA_LOG"], "a") as file:
        print(text, file=file)
"""
EVERYTHING = """
say("begin")
slices = torch.rand(3, 16, 16, dtype=torch.complex64, requires_grad=True)
number = torch.tensor(200.0, requires_grad=True)
multislice(slices, 1.0, number, number).abs().sum().backward()
x = (16 * torch.rand(9)).requires_grad_()
index = torch.zeros(9, dtype=torch.int64)
splat(torch.zeros(2, 16, 16), x, x, index, x, x, index + 6, peng_table()).sum().backward()
narrow(torch.zeros(1, 16, 16, dtype=torch.complex64))
ice_slice((16, 16), 1.5, 10.0, seed=1, stream=0, index=0)
lens = IceShape(20.0, 30.0, 10.0, carbon_thickness=10.0)
fills(lens, torch.eye(3), (16, 16), 2.0, [-5.0], 10.0)
grid = torch.rand(1, 8, 8, 5, 2)
frames, places = torch.rand(2, 3, 3, requires_grad=True), torch.rand(2, 2, requires_grad=True)
planes = gridding.sample(grid, frames, places, torch.zeros(1), 8)
planes.real.sum().backward()
gridding.spread(4 + torch.rand(9, 3), torch.rand(1, 9), (16, 16, 16))
patches = torch.rand(2, 8, 8, requires_grad=True)
windows = torch.ones(32), torch.ones(32)
gridding.add(torch.zeros(2, 16, 16), patches, torch.ones(2), index[:2], index[:2],
             torch.zeros(2, 2, dtype=torch.int64), windows).sum().backward()
deposit(poisson(torch.ones(4, 4), Key(0, "noise")), 0.5, Key(0, "noise"))
volume, turn = torch.rand(4, 16, 16, requires_grad=True), torch.eye(3)[None].requires_grad_()
rays = Rays(turn, torch.zeros(1, 2), (4, 16, 16), 1.0, (16, 16), 1.0)
project(volume, rays).sum().backward()
sliced(volume, rays, Slabs(-3.0, 2.0, 3, 0, 3)).sum().backward()
tree = uniform((1, 1, 1), 1, 1, 4, 1.0)
field = Octree(tree, torch.rand(8, 4, 4, 4, requires_grad=True))
seen = Rays(torch.eye(3)[None], torch.zeros(1, 2), tree.shape, 1.0, (16, 16), 1.0)
project_octree(field, seen).sum().backward()
field.at(torch.rand(5, 3)).sum().backward()
levels = Levels(3, 2, 9, 64)
encoded(levels.start().requires_grad_(), torch.rand(5, 3).requires_grad_(), levels).sum().backward()
say("end")
ti.sync()
"""
KERNELS = {"transmit", "transmit_adjoint", "propagate", "propagate_adjoint", "splat_tiles",
           "adjoint", "noise_pair", "poisson", "deposit", "fill", "spread", "sample",
           "add_patches", "add_patches_adjoint", "multiply", "gather_each", "scatter_each",
           "slopes", "gather_slabs_each", "scatter_slabs_each", "slab_slopes", "expand", "restrict",
           "take", "take_adjoint",
           "features", "scatter_features_each", "feature_slopes"}


def run(folder: Path, code: str) -> list[str]:
    """What the driver is asked; the code of kernels is in the folder then."""
    subprocess.run([COMPILER, "-shared", "-fPIC", "-w", "-o", folder / "libcuda.so",
                    HERE / "reference/fake_cuda.c"], check=True)
    (folder / "libcuda.so.1").symlink_to("libcuda.so")
    log = folder / "log"
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(folder), "FAKE_CUDA_LOG": str(log), "FAKE_CUDA_PTX": str(folder),
        "TI_OFFLINE_CACHE_FILE_PATH": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BEGIN + code], text=True,
                          capture_output=True, env=environment, timeout=300, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


def entries(folder: Path) -> dict[str, str]:
    """Code of each kernel by its name; not of what Taichi itself brings."""
    codes = {}
    for file in folder.glob("*.ptx"):
        text = file.read_text()
        if name := re.search(r"\.entry (\w+?)_c\d+_\d+_kernel", text):
            codes[name[1]] = text
    return codes


def test_kernels_run_on_the_null_stream_and_nothing_waits(tmp_path):
    """So torch's default stream orders them, and they take accurate sines of single precision."""
    lines, codes = run(tmp_path, EVERYTHING), entries(tmp_path)
    asked, after = lines[lines.index("begin") + 1:lines.index("end")], lines[lines.index("end"):]
    assert "wait for 0" in after  # as ti.sync asks for: so it is known to be seen
    assert codes.keys() == KERNELS
    assert len([line for line in asked if line.startswith("launch")]) > len(KERNELS)
    assert all(re.fullmatch(r"(copy|launch of \d+ threads a block on) 0", line) for line in asked)
    # A splat's block is a tile.
    assert "launch of 64 threads a block on 0" in asked
    assert not [name for name, code in codes.items() if re.search(r"(sin|cos)\.approx", code)]
    if ASSEMBLER:
        for name, code in codes.items():
            (tmp_path / "code").write_text(code)
            done = subprocess.run([ASSEMBLER, "-arch=sm_90", "-v", tmp_path / "code", "-o",
                                   os.devnull], text=True, capture_output=True)
            assert done.returncode == 0, (name, done.stderr)
            assert not re.search("[1-9][0-9]* bytes spill", done.stderr), name
