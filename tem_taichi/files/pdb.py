"""PDB and mmCIF files: found on disk, in the package, in a cache or at the wwPDB, and parsed.

gemmi parses, not Biopython: it gives a file's atoms as arrays and reads the operators of PDB
files, where Biopython builds a Python object for every atom (4V5D, 148,020 atoms: 0.4 against
5.6 s) and knows no assemblies. Biopython only downloads.
"""

import contextlib
import io
import os
import re
import socket
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import gemmi
from platformdirs import user_cache_path

from tem_taichi.files.packed import content_of

_FORMATS = {
    ".pdb": gemmi.CoorFormat.Pdb,
    ".ent": gemmi.CoorFormat.Pdb,
    ".cif": gemmi.CoorFormat.Mmcif,
    ".mmcif": gemmi.CoorFormat.Mmcif,
}
_SUFFIXES = tuple(suffix + packed for suffix in _FORMATS for packed in ("", ".gz"))
_SHIPPED = Path(__file__).resolve().parent.parent / "data"
_PDB_ID = re.compile(r"(?:pdb_0000)?([1-9][a-z0-9]{3})")
_TIMEOUT = 30.0

_PDB_NUMBERS = {"x": (30, 38), "y": (38, 46), "z": (46, 54), "occupancy": (54, 60),
                "B-factor": (60, 66)}
"""Columns of an atom's numbers in a PDB file, counted from 0."""

# float() takes these letters, which gemmi reads as 0, or up to where they begin.
_NO_DIGITS = re.compile(rb"[^-+ .\d\r]")


def find_structure(source: str | Path) -> Path:
    """The file that a path or a PDB id means, downloaded if it is nowhere on this machine.

    A file of that name wins over an id. An id (4v1w or pdb_00004v1w, in any case) is looked for
    in the package's own data, then in the cache folder (the environment variable
    TEM_TAICHI_CACHE, or else tem_taichi/structures in the platform's cache), then at the wwPDB.

    Args:
        source: a file name or a PDB id.

    Raises:
        FileNotFoundError: if there is no such file, or the entry cannot be downloaded.
        ValueError: if source is a folder.
    """
    path = Path(os.path.expanduser(source))
    if path.is_file():
        return path
    pdb_id = _PDB_ID.fullmatch(str(source).lower())
    if pdb_id is None:
        if path.is_dir():
            raise ValueError(f"{source}: is a folder; name a file ({', '.join(_SUFFIXES)})")
        raise FileNotFoundError(f"{source}: no such file, nor is it a PDB id such as 4v1w")
    shipped = _SHIPPED / f"{pdb_id[1]}.cif.gz"
    if shipped.is_file():
        return shipped
    folder = cache_folder()
    wanted = {pdb_id[1] + suffix for suffix in _SUFFIXES}
    if folder.is_dir():
        for cached in sorted(folder.iterdir()):
            if cached.name.lower() in wanted and cached.is_file():
                return cached
    return _download(pdb_id[1], folder)


def cache_folder() -> Path:
    """Where downloaded structures are kept."""
    if chosen := os.environ.get("TEM_TAICHI_CACHE"):
        return Path(chosen).expanduser()
    # No folder of an author or called Cache on Windows, where earlier versions had none.
    return user_cache_path("tem_taichi", appauthor=False, opinion=False) / "structures"


def parse_structure(path: Path) -> tuple[gemmi.Structure, gemmi.cif.Document]:
    """The content of a .pdb, .ent, .cif or .mmcif file, each also as .gz.

    Returns:
        The structure, its atoms in the file's order, and the mmCIF document it came from (empty
        for a PDB file).

    Raises:
        ValueError: if the file is empty, damaged, of another kind, or holds no atoms.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = "".join(suffixes[:-1][-1:] if packed else suffixes[-1:])
    if kind not in _FORMATS:
        raise ValueError(f"{path}: the name must end in one of {', '.join(_SUFFIXES)}")
    try:
        content = content_of(path, packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not content.strip():
        raise ValueError(f"{path}: is empty")
    if _FORMATS[kind] == gemmi.CoorFormat.Pdb:
        _check_pdb_numbers(content, path)
    document = gemmi.cif.Document()
    try:
        structure = gemmi.read_structure_string(content, merge_chain_parts=False,
                                                format=_FORMATS[kind], save_doc=document)
    except (ValueError, RuntimeError, IndexError) as error:
        reason = str(error).partition("\n")[0].removeprefix("string:")
        raise ValueError(f"{path}: is not a readable structure ({reason})") from error
    if not any(model.count_atom_sites() for model in structure):
        raise ValueError(f"{path}: holds no atoms")
    if len(document):
        _check_mmcif_numbers(document[0], path)
    return structure, document


def _check_pdb_numbers(content: bytes, path: Path) -> None:
    """Refuse numbers of atoms that gemmi would read as 0, or only up to their first fault.

    An occupancy or B-factor may be blank, if it is so for all atoms: some would else be 0.
    """
    blank: dict[str, int] = {}
    filled: set[str] = set()
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line[:4].upper() not in (b"ATOM", b"HETA"):  # as gemmi tells
            continue
        for name, (first, last) in _PDB_NUMBERS.items():
            text = line[first:last]
            try:
                if _NO_DIGITS.search(text):
                    raise ValueError
                float(text)
                filled.add(name)
            except ValueError:
                if text.strip() or first < 54:
                    shown = line.decode("latin-1").rstrip()
                    raise ValueError(
                        f"{path}: line {number} has no readable coordinates, occupancy or "
                        f"B-factor in columns 31 to 66, {name}={text.decode('latin-1')!r}: "
                        f"{shown!r}") from None
                if len(line.rstrip(b"\r")) > first + 4:  # gemmi gives shorter ones 1 and 20
                    blank.setdefault(name, number)
    for name in sorted(filled & set(blank)):
        raise ValueError(f"{path}: line {blank[name]} leaves the {name} blank, which other lines "
                         "give: must be given for all atoms or for none")


def _check_mmcif_numbers(block: gemmi.cif.Block, path: Path) -> None:
    """Refuse +-1, which gemmi reads as -1; it leaves other faults as not a number."""
    for item in ("Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv"):
        for row, text in enumerate(block.find_values(f"_atom_site.{item}"), start=1):
            if text[:2] == "+-":
                raise ValueError(f"{path}: atom {row} of _atom_site has {item}={text!r}: must be "
                                 "a number")


@contextlib.contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Let no connection wait for ever: Biopython sets no time limit itself."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download(pdb_id: str, folder: Path) -> Path:
    """Fetch an entry's mmCIF file into a folder, complete or not at all."""
    from Bio.PDB import PDBList  # here, since most structures need no download

    said = io.StringIO()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (tempfile.TemporaryDirectory(dir=folder) as half, _network_timeout(_TIMEOUT),
              contextlib.redirect_stdout(said)):
            # On failure PDBList prints why and returns None, or the path of a file not there.
            found = PDBList(pdb=half, verbose=False).retrieve_pdb_file(
                pdb_id, pdir=half, file_format="mmCif")
            if found is None or not Path(found).is_file():
                raise FileNotFoundError(" ".join(said.getvalue().split()) or "nothing came back")
            parse_structure(Path(found))
            return Path(found).replace(folder / f"{pdb_id}.cif")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FileNotFoundError(
            f"{pdb_id}: not in {folder} and not downloaded ({reason}); put the file there by hand "
            f"as {pdb_id}.cif, or name another folder in TEM_TAICHI_CACHE") from error
