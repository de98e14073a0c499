import json
import os
from pathlib import Path

import pytest

from tem_taichi.files import folder
from tem_taichi.files.folder import check_new_folder, new_folder


def everything(root: Path) -> dict[str, bytes | None]:
    """Names below root, with the contents of files."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None
            for p in root.rglob("*")}


def make_output(final: Path, text: str = "old") -> None:
    final.mkdir(parents=True)
    (final / "metadata.json").write_text(json.dumps({"program": "tem_taichi"}))
    (final / "images.mrc").write_text(text)


def fill(final: Path, overwrite: bool = False) -> None:
    with new_folder(final, overwrite) as partial:
        (partial / "metadata.json").write_text(json.dumps({"program": "tem_taichi"}))
        (partial / "images.mrc").write_text("new")


def test_folder_appears_only_at_the_end(tmp_path):
    final = tmp_path / "runs" / "one"
    with new_folder(final) as partial:
        assert partial.parent == final.parent
        assert partial.name.startswith(".one.partial-")
        assert not final.exists()
        (partial / "below").mkdir()
        (partial / "below" / "file").write_text("text")
    assert everything(tmp_path) == {"runs": None, "runs/one": None, "runs/one/below": None,
                                    "runs/one/below/file": b"text"}


def test_folder_has_ordinary_permissions(tmp_path):
    fill(tmp_path / "one")
    (tmp_path / "ordinary").mkdir()
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_interruption_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "a" / "b" / "c") as partial:
        (partial / "file").write_text("half")
        raise error
    assert everything(tmp_path) == {}


def test_interruption_leaves_older_parents_and_neighbours(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "b" / "c"):
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
    for attempt in (check_new_folder, fill):
        with pytest.raises(ValueError, match=r"one: exists already; .* overwrite=true$"):
            attempt(tmp_path / "one")
    assert everything(tmp_path) == before


def test_overwrite_replaces_own_output_whole(tmp_path):
    make_output(tmp_path / "one")
    (tmp_path / "one" / "stale").write_text("of the old run")
    fill(tmp_path / "one", overwrite=True)
    assert (tmp_path / "one" / "images.mrc").read_text() == "new"
    assert set(everything(tmp_path)) == {"one", "one/images.mrc", "one/metadata.json"}


@pytest.mark.parametrize("metadata", [None, "not json", "[]", '{"program": "other"}', "{}"])
def test_overwrite_refuses_what_is_not_ours(tmp_path, metadata):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    if metadata is not None:
        (tmp_path / "thesis" / "metadata.json").write_text(metadata)
    before = everything(tmp_path)
    for attempt in (check_new_folder, fill):
        with pytest.raises(ValueError, match=r"thesis: is no output of tem_taichi"):
            attempt(tmp_path / "thesis", True)
    assert everything(tmp_path) == before


def test_interrupted_overwrite_keeps_the_old(tmp_path):
    make_output(tmp_path / "one")
    before = everything(tmp_path)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "one", True) as partial:
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
    after = before | {"one/images.mrc": b"new"} if done else before
    assert everything(tmp_path) == after


def test_folder_taken_within_the_swap_loses_neither(tmp_path, monkeypatch):
    make_output(tmp_path / "one")
    rename = Path.rename

    def slow(source, target):
        if "partial" in source.name:  # the old output is aside: the place is free for a moment
            make_output(tmp_path / "one", "another run's")
        return rename(source, target)

    monkeypatch.setattr(folder.Path, "rename", slow)
    with pytest.raises(OSError):
        fill(tmp_path / "one", overwrite=True)
    kept = [content for name, content in everything(tmp_path).items() if "images" in name]
    assert sorted(kept) == [b"another run's", b"old"]


def test_folder_taken_during_the_run_is_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match="exists already"), new_folder(tmp_path / "one"):
        make_output(tmp_path / "one", "another run's")
    assert (tmp_path / "one" / "images.mrc").read_text() == "another run's"
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_impossible_places_are_refused_early(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: is a file"):
        check_new_folder(tmp_path / "file", True)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        check_new_folder(tmp_path / "file" / "below" / "one")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (Path("."), tmp_path):
        with pytest.raises(ValueError, match="is the current folder or above it"):
            check_new_folder(place, True)


def test_no_permission_is_said_early(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"no permission to write in"):
        check_new_folder(tmp_path / "a" / "one")


def test_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "one").symlink_to(tmp_path / "scratch")
    fill(tmp_path / "one")
    assert (tmp_path / "one").is_symlink()
    assert (tmp_path / "scratch" / "images.mrc").read_text() == "new"
