import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tem_taichi.files import folder, workplace
from tem_taichi.files.folder import check_new_folder, new_folder
from tem_taichi.files.workplace import clear_leftovers


def everything(root: Path) -> dict[str, bytes | None]:
    """Names below root, with the contents of files."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None
            for p in root.rglob("*")}


def fill(final: Path, overwrite: bool = False, text: str = "new", command: str = "simulate",
         inputs: Sequence[Path] = ()) -> None:
    with new_folder(final, command, overwrite, inputs) as partial:
        (partial / "metadata.json").write_text(json.dumps({"program": "tem_taichi"}))
        (partial / "images.mrc").write_text(text)
        (partial / "imod" / "empty").mkdir(parents=True)
        (partial / "imod" / "a.tlt").write_text("0")


def make_output(final: Path, text: str = "old") -> None:
    fill(final, text=text)


def check(final: Path, overwrite: bool = False, **keywords) -> None:
    check_new_folder(final, keywords.pop("command", "simulate"), overwrite, **keywords)


def test_folder_appears_only_at_the_end(tmp_path):
    final = tmp_path / "runs" / "one"
    with new_folder(final, "simulate") as partial:
        assert partial.parent.parent == final.parent
        assert partial.parent.name.startswith(".one.partial-")
        assert not final.exists()
        (partial / "below").mkdir()
        (partial / "below" / "file").write_text("text")
    after = everything(tmp_path)
    metadata = json.loads(after.pop("runs/one/metadata.json"))
    assert after == {"runs": None, "runs/one": None, "runs/one/below": None,
                     "runs/one/below/file": b"text"}
    assert metadata["command"] == "simulate" and list(metadata["files"]) == ["below/file"]


def test_folder_has_ordinary_permissions(tmp_path):
    fill(tmp_path / "one")
    (tmp_path / "ordinary").mkdir()
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_interruption_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "a" / "b" / "c", "simulate") as partial:
        (partial / "file").write_text("half")
        raise error
    assert everything(tmp_path) == {}


def test_interruption_leaves_older_parents_and_neighbours(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "b" / "c", "simulate"):
        fill(tmp_path / "a" / "b" / "neighbour")
        raise KeyboardInterrupt
    assert {"a", "a/b", "a/b/neighbour"} < set(everything(tmp_path))
    assert not [name for name in everything(tmp_path) if "partial" in name]


def test_empty_folder_may_be_used(tmp_path):
    (tmp_path / "one").mkdir()
    fill(tmp_path / "one")
    assert (tmp_path / "one" / "images.mrc").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_existing_output_is_kept(tmp_path):
    make_output(tmp_path / "one")
    before = everything(tmp_path)
    for attempt in (check, fill):
        with pytest.raises(ValueError, match=r"one: exists already; .* overwrite=true$"):
            attempt(tmp_path / "one")
    assert everything(tmp_path) == before


def test_overwrite_replaces_own_output_whole(tmp_path):
    make_output(tmp_path / "one")
    (tmp_path / "one" / "imod" / "a.tlt").unlink()  # that something is gone does no harm
    fill(tmp_path / "one", overwrite=True)
    assert (tmp_path / "one" / "images.mrc").read_text() == "new"
    assert set(everything(tmp_path)) == {f"one{end}" for end in (
        "", "/images.mrc", "/metadata.json", "/imod", "/imod/empty", "/imod/a.tlt")}


def link(folder: Path, name: str, target: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


@pytest.mark.parametrize(("change", "named"), [
    (lambda one: (one / "notes.txt").write_text("mine"),
     r"holds notes\.txt, which its own run did not write"),
    (lambda one: (one / "imod" / "a.xf").write_text("mine"), r"holds imod/a\.xf, which its own"),
    (lambda one: (one / "mine").mkdir(), "holds mine, which its own run did not write"),
    (lambda one: fill(one / "sub" / "run"), "holds sub/run/images.mrc, sub/run/imod/a.tlt, "
     "sub/run/imod/empty and 1 more, which its own run did not write"),
    (lambda one: link(one, "data", "/"), "holds data, which its own run did not write"),
    (lambda one: (one / "imod/empty/x").write_text("mine"), "holds imod/empty/x, which its own"),
    (lambda one: (one / "images.mrc").write_text("ald"), r"holds images\.mrc, which was changed"),
    (lambda one: link(one, "images.mrc", "metadata.json"), r"images\.mrc, which was changed"),
    (lambda one: link(one, "metadata.json", "../kept.json"), "is no output of tem_taichi"),
], ids=["file", "file below", "folder", "output below", "link", "file in an empty folder",
        "other content", "link for a file", "link for the list"])
def test_overwrite_keeps_what_no_run_wrote(tmp_path, change, named):
    make_output(tmp_path / "one")
    shutil.copy(tmp_path / "one" / "metadata.json", tmp_path / "kept.json")
    change(tmp_path / "one")
    before = everything(tmp_path)
    for attempt in (check, fill):
        with pytest.raises(ValueError, match=named):
            attempt(tmp_path / "one", True)
    assert everything(tmp_path) == before


def test_what_appears_in_the_swap_is_kept_too(tmp_path, monkeypatch):
    make_output(tmp_path / "one")
    rename = Path.rename

    def slow(source, target):
        if source.name == "one":
            (source / "notes.txt").write_text("mine")
        return rename(source, target)

    monkeypatch.setattr(folder.Path, "rename", slow)
    with pytest.raises(ValueError, match=r"one: holds notes\.txt"):
        fill(tmp_path / "one", overwrite=True)
    assert (tmp_path / "one" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "one" / "images.mrc").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_overwrite_replaces_only_what_the_same_command_wrote(tmp_path):
    make_output(tmp_path / "one")
    for attempt in (check, fill):
        with pytest.raises(ValueError, match="was written by simulate, not by fit recipe=ctf"):
            attempt(tmp_path / "one", True, command="fit recipe=ctf")
    assert (tmp_path / "one" / "images.mrc").read_text() == "old"


def test_output_without_a_list_is_left_to_its_owner(tmp_path):
    """As version 0.1.0 wrote it."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "metadata.json").write_text(json.dumps({"program": "tem_taichi"}))
    for attempt in (check, fill):
        with pytest.raises(ValueError, match=r"by an older version.*remove it yourself"):
            attempt(tmp_path / "one", True)


@pytest.mark.parametrize("name", ["one/images.mrc", "link.mrc", "one/../one/imod/a.tlt"])
def test_an_input_is_never_overwritten(tmp_path, monkeypatch, name):
    make_output(tmp_path / "one")
    (tmp_path / "link.mrc").symlink_to("one/images.mrc")
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    for attempt in (check, fill):
        with pytest.raises(ValueError, match=f"one: holds {name}, which this run reads"):
            attempt(Path("one"), True, inputs=["one.pdb", name])
    assert everything(tmp_path) == before


@pytest.mark.parametrize("metadata", [None, "not json", "[]", '{"program": "other"}', "{}"])
def test_overwrite_refuses_what_is_not_ours(tmp_path, metadata):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    if metadata is not None:
        (tmp_path / "thesis" / "metadata.json").write_text(metadata)
    before = everything(tmp_path)
    for attempt in (check, fill):
        with pytest.raises(ValueError, match=r"thesis: is no output of tem_taichi"):
            attempt(tmp_path / "thesis", True)
    assert everything(tmp_path) == before


def test_interrupted_overwrite_keeps_the_old(tmp_path):
    make_output(tmp_path / "one")
    before = everything(tmp_path)
    with pytest.raises(KeyboardInterrupt), \
            new_folder(tmp_path / "one", "simulate", True) as partial:
        (partial / "file").write_text("half")
        raise KeyboardInterrupt
    assert everything(tmp_path) == before


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_overwrite_interrupted_in_the_swap_loses_nothing(tmp_path, monkeypatch, failing, when):
    make_output(tmp_path / "one")
    before = everything(tmp_path)
    calls = []
    rename = Path.rename

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == failing and when == "before":
            raise KeyboardInterrupt
        result = rename(source, target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(folder.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "one", overwrite=True)
    done = (failing, when) == (2, "after")
    after = everything(tmp_path)
    assert after.keys() == before.keys()
    assert after["one/images.mrc"] == (b"new" if done else b"old")


def test_folder_taken_within_the_swap_loses_neither(tmp_path, monkeypatch):
    make_output(tmp_path / "one")
    rename, taken = Path.rename, []

    def slow(source, target):
        if source.name == "output" and not taken:  # the place is free for a moment
            taken.append(True)
            make_output(tmp_path / "one", "another run's")
        return rename(source, target)

    monkeypatch.setattr(folder.Path, "rename", slow)
    monkeypatch.setattr(workplace, "_PATIENCE", 0)  # as where a file system knows no locks
    with pytest.raises(OSError):
        fill(tmp_path / "one", overwrite=True)
    kept = [content for name, content in everything(tmp_path).items() if "images" in name]
    assert sorted(kept) == [b"another run's", b"old"]


def test_folder_taken_during_the_run_is_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match="exists already"), \
            new_folder(tmp_path / "one", "simulate"):
        make_output(tmp_path / "one", "another run's")
    assert (tmp_path / "one" / "images.mrc").read_text() == "another run's"
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_impossible_places_are_refused_early(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: is a file"):
        check(tmp_path / "file", True)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        check(tmp_path / "file" / "below" / "one")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (Path("."), tmp_path):
        with pytest.raises(ValueError, match="is the current folder or above it"):
            check(place, True)


def test_no_permission_is_said_early(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"no permission to write in"):
        check(tmp_path / "a" / "one")


def test_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "one").symlink_to(tmp_path / "scratch")
    fill(tmp_path / "one")
    assert (tmp_path / "one").is_symlink()
    assert (tmp_path / "scratch" / "images.mrc").read_text() == "new"


@pytest.mark.parametrize("links", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "a/b"}])
@pytest.mark.parametrize("name", ["a", "a/below/one"])
def test_link_in_a_circle_is_refused(tmp_path, links, name):
    for link_name, target in links.items():
        (tmp_path / link_name).symlink_to(target)
    for attempt in (check, fill, clear_leftovers):
        with pytest.raises(ValueError, match=r"[Ss]ymlink loop|leads in a circle"):
            attempt(tmp_path / name)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    fill(Path("~/one"))
    assert (tmp_path / "home" / "one" / "images.mrc").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["home"]
    with pytest.raises(ValueError, match=r"^~nobody_of_this_name/x: "):
        check(Path("~nobody_of_this_name/x"))


@pytest.mark.parametrize(("name", "said"), [
    ("x" * 250, "has a name that is too long .* at most 237 letters"),
    ("\u00e9" * 125, "has a name that is too long"), (f"{'x' * 256}/one", "too long"),
    ("/".join(40 * ["x" * 100]), "is too long for the file system: must have at most 3584"),
])
def test_what_the_file_system_would_refuse_is_refused_early(tmp_path, name, said):
    with pytest.raises((ValueError, OSError), match=said):
        check(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_longest_name_that_is_accepted_can_be_made(tmp_path):
    make_output(tmp_path / ("x" * 237))
    fill(tmp_path / ("x" * 237), overwrite=True)


def test_mount_point_is_refused_early(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()  # as a container's volume is
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "one")
    with pytest.raises(ValueError, match="one: is where a file system is mounted"):
        check(tmp_path / "one")


# --- what killed runs leave ---

def killed(place: Path, moment: str = "yield") -> None:
    """A process that fills an output over and over, killed at that line of `new_folder`."""
    code = f"""
import os, signal, sys, json
from pathlib import Path
from tem_taichi.files import folder
rename = Path.rename
def slow(source, target):
    kill("before " + source.name)
    rename(source, target)
    kill("after " + source.name)
def kill(moment):
    if moment == {moment!r}:
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = slow
with folder.new_folder({str(place)!r}, "simulate", True) as partial:
    (partial / "images.mrc").write_text("new")
    kill("yield")
"""
    root = str(Path(folder.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root},
                          timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("moment", "text", "said"), [
    ("yield", "old", "is removed$"),
    ("before one", "old", "is removed$"),
    ("after one", "old", "is removed; one, which it was replacing, is back in its place$"),
    ("after output", "new", "is removed$"),
])
def test_what_a_killed_run_leaves_is_cleared(tmp_path, moment, text, said):
    make_output(tmp_path / "one")
    whole = everything(tmp_path)
    killed(tmp_path / "one", moment)
    hidden = [name for name in os.listdir(tmp_path) if name.startswith(".one.partial-")]
    assert len(hidden) == 1
    # By a run to another output beside it, too.
    with pytest.warns(UserWarning, match=rf"{hidden[0]}: left by a run that was killed, {said}"):
        clear_leftovers(tmp_path / "two")
    assert (tmp_path / "one" / "images.mrc").read_text() == text
    if text == "old":
        assert everything(tmp_path) == whole
    assert os.listdir(tmp_path) == ["one"]


def test_what_lives_is_left_alone(tmp_path):
    (tmp_path / ".one.partial-thesis").mkdir()
    (tmp_path / ".one.unfinished").mkdir()
    with new_folder(tmp_path / "one", "simulate") as partial:
        (partial / "images.mrc").write_text("new")
        clear_leftovers(tmp_path / "one")
        assert (partial / "images.mrc").is_file()
    assert sorted(os.listdir(tmp_path)) == [".one.partial-thesis", ".one.unfinished", "one"]


def test_what_cannot_be_told_is_mentioned(tmp_path):
    """As version 0.1.0 left it, without a lock; not what is so young that its lock may come."""
    place = tmp_path / ".one.partial-0123abcd"
    place.mkdir()
    (place / "images.mrc").write_text("half")
    clear_leftovers(tmp_path / "one")
    os.utime(place, (time.time() - 100, time.time() - 100))
    with pytest.warns(UserWarning, match="partial-0123abcd: seems to be left by an earlier run"):
        clear_leftovers(tmp_path / "one")
    assert (place / "images.mrc").is_file()


def test_an_empty_one_is_removed(tmp_path):
    """Killed between making its folder and locking it."""
    empty = tmp_path / ".out.partial-00000000"
    empty.mkdir()
    os.utime(empty, (0, 0))
    clear_leftovers(tmp_path / "out")
    assert not empty.exists()


def test_runs_that_replace_the_same_output_at_once_take_turns(tmp_path):
    """None fails, nothing stays beside the output, and that is whole."""
    def replace(number: int) -> None:
        for _ in range(15):
            with new_folder(tmp_path / "out", "simulate", overwrite=True) as place:
                for file in range(20):
                    (place / f"{file}").write_text(f"{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(replace, range(4)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert len({(tmp_path / "out" / f"{file}").read_text() for file in range(20)}) == 1


def test_the_disk_has_all_files_before_they_get_their_names(tmp_path, monkeypatch):
    """Else a power failure could leave hollow files, after what they were made of is gone."""
    known = set()

    def settle(descriptor):
        assert not (tmp_path / "out").exists()
        known.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(folder.os, "fsync", settle)
    with new_folder(tmp_path / "out", "simulate") as place:
        (place / "a.mrc").write_text("a")
        (place / "sub").mkdir()
        (place / "sub" / "b.mrc").write_text("b")
    made = list((tmp_path / "out").rglob("*"))
    assert len(made) == 4 and {path.stat().st_ino for path in made} <= known
