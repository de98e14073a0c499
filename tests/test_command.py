"""What all commands share: how they stop, and what they do when nobody reads what they print."""

import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

import tem_taichi
from tem_taichi.cli.command import guarded

ROOT = Path(tem_taichi.__file__).parent.parent


def script(text, *, stdout=subprocess.PIPE, **keywords):
    """Python that runs `guarded(work, "nothing is written")` with a `work` of its own."""
    code = f"{text}\nimport sys\nfrom tem_taichi.cli.command import guarded\n" \
           "sys.exit(guarded(work, 'nothing is written'))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=stdout, text=True,
                            stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
                            **keywords)


@pytest.mark.parametrize(("error", "status", "said"), [
    (None, 0, ""), (ValueError("dose=-1: must be\n above 0"), 2, "error: dose=-1: must be above 0"),
    (MemoryError(), 2, "error: MemoryError"),
    (KeyboardInterrupt(), 130, "interrupted: nothing is written"),
])
def test_exit_status(capsys, error, status, said):
    def work():
        if error is not None:
            raise error

    assert guarded(work, "nothing is written") == status
    assert capsys.readouterr().err.strip() == said


def test_interruption_that_says_more(capsys):
    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("2 of 61 images") from error

    assert guarded(work, "nothing is written") == 143
    assert capsys.readouterr().err == "interrupted: 2 of 61 images\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_stop_as_ctrl_c_does(capsys, name):
    number, cleaned = getattr(signal, name), []

    def work():
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            os.kill(os.getpid(), number)  # impatient: must not cut the cleaning short
            cleaned.append(True)

    assert signal.getsignal(number) is signal.SIG_DFL
    assert guarded(work, "nothing is written") == 128 + number
    assert capsys.readouterr().err == "interrupted: nothing is written\n" and cleaned
    assert signal.getsignal(number) is signal.SIG_DFL


def test_signals_that_are_handled_already_stay_so():
    """As under nohup, which ignores SIGHUP; and outside the main thread, which gets no signals."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert guarded(lambda: os.kill(os.getpid(), signal.SIGHUP), "") == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    found = []
    out = sys.stdout
    thread = threading.Thread(target=lambda: found.append(guarded(lambda: None, "")))
    thread.start()
    thread.join()
    assert found == [0] and sys.stdout is out


def test_work_goes_on_when_its_reader_is_gone(tmp_path):
    """As in `... | true`: the results are what counts."""
    reader, writer = os.pipe()
    os.close(reader)
    with script("def work():\n"
                "    for n in range(3):\n"
                "        print('x' * 100_000)\n"
                "    open('done', 'w').close()\n"
                "    print('the last line stays in the buffer')", stdout=writer,
                cwd=tmp_path) as run:
        os.close(writer)
        assert run.communicate(timeout=60)[1] == ""
    assert run.returncode == 0 and (tmp_path / "done").is_file()


def test_errors_keep_their_status_when_nobody_reads_them():
    reader, writer = os.pipe()
    os.close(reader)
    code = ("import sys\nfrom tem_taichi.cli.command import guarded\n"
            "def work(): raise ValueError('dose')\nsys.exit(guarded(work, ''))")
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=writer, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    os.close(writer)
    assert done.returncode == 2


def test_warnings_are_one_line(capsys):
    def work():
        warnings.simplefilter("always")
        warnings.warn("the file is\nodd", stacklevel=1)

    before = warnings.showwarning
    assert guarded(work, "") == 0
    assert capsys.readouterr().err == "warning: the file is odd\n"
    assert warnings.showwarning is before
