"""Starting Taichi: from several threads, and in processes forked afterwards."""

import os
import subprocess
import sys
import textwrap

import pytest

import tem_taichi
from tem_taichi import device

BEGIN = """
import io, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
import torch
import tem_taichi as tt
from tem_taichi.scene.settings import (
    IceSettings, Scene, SpecimenSettings, TiltSettings, particle_of)
torch.set_num_threads(1)
scene = Scene(shape=[32, 32], tilts=TiltSettings("listed", angles=[0.0]), specimen=SpecimenSettings(
    IceSettings(60.0, granularity=0.0), particles={"p": particle_of(globule=10.0)}))
"""


def run(code: str, words: tuple[str, ...] = ()) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", BEGIN + textwrap.dedent(code), *words], text=True,
                          capture_output=True, timeout=100, cwd=os.path.dirname(
                              os.path.dirname(tem_taichi.__file__)))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_simulations_may_be_in_several_threads():
    """They give the same images, and standard output is as it was, also while they start."""
    assert run("""
        kept = sys.stdout
        with ThreadPoolExecutor(6) as pool:
            done = [pool.submit(tt.simulate, replace(scene, seed=n % 2)) for n in range(6)]
            while not all(one.done() for one in done):
                assert sys.stdout is kept
        alone = [tt.simulate(replace(scene, seed=n)).images for n in range(2)]
        assert all((one.result().images == alone[n % 2]).all() for n, one in enumerate(done))
        assert sys.stdout is kept
        print("same")
        """) == "same\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_says_spawn():
    """Before anything is computed a fork is sound; after it a kernel would wait for ever."""
    assert run("""
        def child(work):
            sys.stdout.flush()
            number = os.fork()
            if number == 0:
                try:
                    work()
                    print("computed")
                except RuntimeError as error:
                    print(error)
                sys.stdout.flush()
                os._exit(0)
            os.waitpid(number, 0)

        child(lambda: tt.simulate(scene))
        tt.simulate(scene)
        child(lambda: tt.simulate(scene))
        child(lambda: tt.detect(torch.ones(4, 4), pixel_size=1.0, dose=1.0))
        """).splitlines() == ["computed", *2 * [
            'tem_taichi had begun to compute before this process was forked, and its threads are '
            'not in it: start processes by spawn, as multiprocessing.get_context("spawn") or '
            'DataLoader(..., multiprocessing_context="spawn")']]


def test_starting_is_silent_and_leaves_print_alone(capsys):
    device.init("cpu", "float64")
    device.init("cpu", "float32")
    assert capsys.readouterr().out == "" and "print" not in vars(device.misc)
