import gzip
import math
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from platformdirs.macos import MacOS
from platformdirs.unix import Unix
from platformdirs.windows import Windows
from scipy.spatial import cKDTree

from tem_taichi import device
from tem_taichi.files import pdb as pdb_files
from tem_taichi.specimen import assemblies, hydrogens
from tem_taichi.specimen.atoms import Atoms, concatenate, displaced_volumes, read_structure

ICE_MOLECULE = 1e3 / 30.75


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Any download fails, and the cache is empty, unless a test says otherwise."""
    import Bio.PDB  # noqa: F401

    def refuse(url, filename):
        raise OSError("no route to host")

    monkeypatch.setattr(sys.modules["Bio.PDB.PDBList"], "urlretrieve", refuse)
    monkeypatch.setenv("TEM_TAICHI_CACHE", str(tmp_path / "cache"))


def atom(name="CA", residue="ALA", xyz=(1.0, 2.0, 3.0), element=None, occupancy=1.0, b=20.0,
         altloc=" ", chain="A", number=1, serial=1):
    """One PDB line."""
    element = name[0] if element is None else element
    return (f"HETATM{serial:5d} {' ' + name:<4}{altloc}{residue:>3} {chain}{number:4d}    "
            "{:8.3f}{:8.3f}{:8.3f}".format(*xyz)
            + f"{occupancy:6.2f}{b:6.2f}          {element:>2}\n")


def write(folder: Path, text: str, name="some.pdb") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def models(*texts: str) -> str:
    return "".join(f"MODEL {i + 1:8d}\n{text}ENDMDL\n" for i, text in enumerate(texts))


CIF_COLUMNS = ("group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id "
               "label_seq_id Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_asym_id")
# Four turns of 90 degrees about z (1 to 4); nothing and a shift along x (5 and 6), which comes
# first in the product and does not commute with the turns.
CIF_ASSEMBLY = """data_toy
loop_
_pdbx_struct_assembly_gen.assembly_id
_pdbx_struct_assembly_gen.oper_expression
_pdbx_struct_assembly_gen.asym_id_list
1 (1-4)(5,6) P
1 5 Q
2 5 P,Q
loop_
_pdbx_struct_oper_list.id
""" + "".join(f"_pdbx_struct_oper_list.matrix[{i}][{j}]\n" for i in (1, 2, 3) for j in (1, 2, 3)) \
    + "".join(f"_pdbx_struct_oper_list.vector[{i}]\n" for i in (1, 2, 3)) + """
1 1 0 0 0 1 0 0 0 1 0 0 0
2 0 -1 0 1 0 0 0 0 1 0 0 0
3 -1 0 0 0 -1 0 0 0 1 0 0 0
4 0 1 0 -1 0 0 0 0 1 0 0 0
5 1 0 0 0 1 0 0 0 1 0 0 0
6 1 0 0 0 1 0 0 0 1 10 0 0
loop_
""" + "".join(f"_atom_site.{column}\n" for column in CIF_COLUMNS.split())


def cif(*rows: str) -> str:
    return CIF_ASSEMBLY + "".join(f"{row}\n" for row in rows)


TOY = cif("ATOM 1 C CA . ALA P 1 1.0 2.0 3.0 1.0 10 A", "HETATM 2 O O . HOH Q . 5 6 7 0.5 20 A")


# --- what a file says -------------------------------------------------------------------------

def test_a_pdb_file_is_read_in_order_and_not_moved(tmp_path):
    path = write(tmp_path, atom("N", xyz=(-7.5, 0, 2), b=11, serial=1)
                 + atom("ZN", "ZN", xyz=(100.125, 3, 4), element="ZN", occupancy=0.25, serial=2)
                 + atom("O", "HOH", xyz=(0, 0, 0), serial=3))
    atoms = read_structure(path)
    assert atoms.numbers.tolist() == [7, 30, 8]
    assert atoms.positions.tolist() == [[-7.5, 0, 2], [100.125, 3, 4], [0, 0, 0]]
    assert atoms.b_factors.tolist() == [11, 20, 20]
    assert atoms.occupancies.tolist() == [1, 0.25, 1]
    assert atoms.is_water.tolist() == [False, False, True]


def test_tensors_live_where_the_device_says(tmp_path):
    atoms = read_structure(write(tmp_path, atom()))
    wanted = device.current()
    assert atoms.numbers.dtype == torch.int64 and atoms.is_water.dtype == torch.bool
    for tensor in (atoms.positions, atoms.b_factors, atoms.occupancies):
        assert tensor.dtype == wanted.dtype
        assert tensor.device.type == wanted.torch_device.type
    assert atoms.positions.requires_grad_(True).is_leaf


@pytest.mark.parametrize("name", ["a.pdb", "a.ENT", "a.pdb.gz", "my.model.ent.gz"])
def test_every_pdb_suffix(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(atom().encode()) if name.endswith("gz") else atom().encode())
    assert len(read_structure(str(path))) == 1


@pytest.mark.parametrize("name", ["a.cif", "a.mmcif", "a.cif.gz", "a.mmCIF.gz"])
def test_every_mmcif_suffix(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(TOY.encode()) if name.endswith("gz") else TOY.encode())
    atoms = read_structure(path)
    assert atoms.positions.tolist() == [[1, 2, 3], [5, 6, 7]]


def test_deuterium_is_hydrogen(tmp_path):
    path = write(tmp_path, atom("D1", "DOD", element="D") + atom("O", "DOD", serial=2))
    assert read_structure(path).numbers.tolist() == [1, 8]
    assert read_structure(path, hydrogens="none").numbers.tolist() == [8]


def test_occupancies_that_were_never_filled_in_count_as_one(tmp_path):
    path = write(tmp_path, atom(occupancy=0) + atom("CB", occupancy=0, serial=2))
    assert read_structure(path).occupancies.tolist() == [1, 1]
    path = write(tmp_path, atom(occupancy=0) + atom("CB", occupancy=0.5, serial=2))
    assert read_structure(path).occupancies.tolist() == [0, 0.5]


# --- what is refused --------------------------------------------------------------------------

def refused(path, *words, error=ValueError, **options):
    with pytest.raises(error) as caught:
        read_structure(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
    return message


@pytest.mark.parametrize(("line", "words"), [
    (atom("QQ", "UNX", element="X", number=7, serial=9),
     ("atom 9 (QQ of residue UNX 7, chain A)", "unknown element")),
    (atom("FM", "FM", element="FM"), ("FM", "Z = 98")),
    (atom(b=-1), ("CA", "B-factor")),
    (atom(occupancy=1.5), ("CA", "occupancy")),
    (atom(occupancy=-0.5), ("CA", "occupancy")),
    (atom().replace("   2.000", "     nan"), ("line 2", "31 to 66")),
    (atom().replace("   2.000", "********"), ("line 2", "31 to 66")),
    (atom().replace("   2.000", "        "), ("line 2", "31 to 66")),
    (atom().replace(" 20.00", "******"), ("line 2", "31 to 66")),
    (atom()[:40] + "\n", ("line 2",)),
    *((atom().replace("   2.000", f"{text:>8}"), ("line 2", "31 to 66", f"y='{text:>8}'"))
      for text in ("-", "12-3.4", "1 2", "1.2.3", "+-1.20", ".", "--1 ", "1e2", "1_0")),
    *((atom()[:54] + f"{text:>6}" + atom()[60:], ("line 2", f"occupancy='{text:>6}'"))
      for text in ("-", "1-0.10", "1 1", ".")),
    *((atom()[:60] + f"{text:>6}" + atom()[66:], ("line 2", f"B-factor='{text:>6}'"))
      for text in ("-", "1-0.10", "1 1", ".")),
    (atom().replace("   2.000", "  12-3.4").lower(), ("line 2", "y='  12-3.4'")),
    (atom()[:54] + " " * 6 + atom()[60:], ("line 2", "occupancy blank")),
    (atom()[:60] + " " * 6 + atom()[66:], ("line 2", "B-factor blank")),
])
def test_a_pdb_atom_that_cannot_scatter_is_named(tmp_path, line, words):
    path = write(tmp_path, atom("C") + line)
    refused(path, path, *words)


@pytest.mark.parametrize(("row", "word"), [
    ("ATOM 1 C CA . ALA P 1 ? 2 3 1 10 A", "finite"),
    ("ATOM 1 C CA . ALA P 1 1e999 2 3 1 10 A", "finite"),
    ("ATOM 1 C CA . ALA P 1 abc 2 3 1 10 A", "finite"),
    ("ATOM 1 C CA . ALA P 1 1 2 3 nan 10 A", "occupancy"),
    ("ATOM 1 C CA . ALA P 1 1 2 3 1 nan A", "B-factor"),
    ("ATOM 1 C CA . ALA P 1 1 2 3 1 inf A", "B-factor"),
    *((f"ATOM 1 C CA . ALA P 1 {text} 2 3 1 10 A", "finite")
      for text in ("-", "12-3.4", "1.2.3", ".", "1_0", "1,5")),
    *((f"ATOM 1 C CA . ALA P 1 1 2 3 {text} 10 A", "occupancy") for text in ("-", "1-3.4")),
    *((f"ATOM 1 C CA . ALA P 1 1 2 3 1 {text} A", "B-factor") for text in ("-", "1-3.4")),
])
def test_an_mmcif_atom_that_cannot_scatter_is_named(tmp_path, row, word):
    path = write(tmp_path, cif(row), "some.cif")
    refused(path, path, "CA of residue ALA 1, chain A", word)


def test_two_signs_in_an_mmcif_file(tmp_path):
    path = write(tmp_path, cif("ATOM 1 C CA . ALA P 1 1 +-2 3 1 10 A"), "some.cif")
    refused(path, path, "atom 1", "Cartn_y='+-2'")


@pytest.mark.parametrize("columns", [slice(54, 60), slice(60, 66), slice(54, 66)])
def test_a_column_that_is_blank_for_all_atoms(tmp_path, columns):
    """As some molecular-dynamics programs write: occupancy 1, B-factor 0."""
    width = columns.stop - columns.start
    text = "".join(line[:columns.start] + " " * width + line[columns.stop:]
                   for line in (atom(), atom("CB", serial=2)))
    atoms = read_structure(write(tmp_path, text))
    assert atoms.occupancies.tolist() == [1, 1]
    assert atoms.b_factors.tolist() == ([20, 20] if columns == slice(54, 60) else [0, 0])


@pytest.mark.parametrize(("text", "value"), [
    ("   +1.50", 1.5), ("     .5 ", 0.5), ("5.      ", 5.0), ("-999.999", -999.999)])
def test_numbers_of_a_pdb_file_in_any_place(tmp_path, text, value):
    path = write(tmp_path, atom().replace("   2.000", text))
    assert float(read_structure(path).positions[0, 1]) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.pdb", b"", ("empty",)),
    ("a.cif", b" \n", ("empty",)),
    ("a.pdb", b"Dear all,\nhere is text.\n", ("no atoms",)),
    ("a.cif", b"Dear all,\nhere is text.\n", ("not a readable structure",)),
    ("a.cif", b"data_nothing\n", ("no atoms",)),
    ("a.cif", TOY.encode()[:-8], ("not a readable structure",)),
    ("a.cif", b"\xff\xfe\x00\x01", ("not a readable structure",)),
    ("a.pdb.gz", atom().encode(), ("cannot be read", "gzip")),
    ("a.pdb.gz", gzip.compress(atom().encode() * 50)[:-20], ("cannot be read",)),
    ("a.cif.gz", gzip.compress(TOY.encode())[:12] + b"\xff" * 40, ("cannot be read",)),
    ("a.xyz", atom().encode(), (".pdb", ".cif.gz")),
    ("a", atom().encode(), (".pdb",)),
])
def test_a_bad_file_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, path, *words)


def test_missing_files_and_folders(tmp_path):
    refused(tmp_path / "none.pdb", "none.pdb", "no such file", error=FileNotFoundError)
    refused(tmp_path, "folder")


@pytest.mark.parametrize(("option", "value"), [
    ("hydrogens", "all"), ("altlocs", "A"), ("model", 0), ("model", 2), ("model", -1),
    ("model", True), ("model", "first"), ("assembly", "1")])
def test_unknown_options_are_named(tmp_path, option, value):
    refused(write(tmp_path, atom()), f"{option}={value!r}", "must be", **{option: value})


# --- PDB ids ----------------------------------------------------------------------------------

@pytest.mark.parametrize("pdb_id", ["4v1w", "4V1W", "pdb_00004v1w"])
def test_apoferritin_comes_with_the_package(pdb_id):
    atoms = read_structure(pdb_id)
    assert len(atoms) == 32736
    assert len(read_structure(pdb_id, assembly=1)) == 32736


def test_shipped_apoferritin_is_the_pdb_entry(shared):
    ours, original = read_structure("4v1w"), read_structure(shared / "data/atoms/4v1w.cif.gz")
    for name in ("numbers", "positions", "b_factors", "occupancies", "is_water"):
        assert torch.equal(getattr(ours, name), getattr(original, name))
    flat, wanted = (gemmi.FlatStructure(pdb_files.parse_structure(path)[0]) for path in
                    (pdb_files.find_structure("4v1w"), shared / "data/atoms/4v1w.cif.gz"))
    for name in ("atom_names", "residue_names", "chain_ids", "subchains", "resnums", "serials"):
        assert np.array_equal(getattr(flat, name), getattr(wanted, name))


def test_a_file_wins_over_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("4v1w").mkdir()
    assert len(read_structure("4v1w")) == 32736
    Path("4v1w").rmdir()
    Path("4v1w").write_text(atom())
    refused("4v1w", "must end in")


@pytest.mark.parametrize("name", ["9abc.cif", "9ABC.cif"])
def test_a_file_put_into_the_cache_by_hand(tmp_path, name):
    (tmp_path / "cache").mkdir()
    write(tmp_path / "cache", TOY, name)
    assert len(read_structure("9abc")) == 2


def serve(monkeypatch, content: bytes):
    """The wwPDB's stand-in under Biopython's real downloader; returns the list of its visits."""
    urls = []

    def retrieve(url, filename):
        urls.append(url)
        Path(filename).write_bytes(content)

    monkeypatch.setattr(sys.modules["Bio.PDB.PDBList"], "urlretrieve", retrieve)
    return urls


def test_an_entry_is_downloaded_once(tmp_path, monkeypatch, capsys):
    urls = serve(monkeypatch, gzip.compress(TOY.encode()))
    assert len(read_structure("9ABC")) == 2
    assert len(read_structure("pdb_00009abc")) == 2
    assert len(urls) == 1 and urls[0].endswith("/9abc.cif.gz")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["9abc.cif"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [
    gzip.compress(TOY.encode())[:-9], gzip.compress(TOY.encode()[:-8]), b"<html>log in</html>",
    gzip.compress(b""), b""])
def test_half_a_download_is_not_kept(tmp_path, monkeypatch, content):
    serve(monkeypatch, content)
    refused("9abc", "9abc", tmp_path / "cache", "by hand", error=FileNotFoundError)
    assert list((tmp_path / "cache").iterdir()) == []


def test_offline(tmp_path, capsys):
    refused("9abc", "no route to host", tmp_path / "cache", "9abc.cif", "TEM_TAICHI_CACHE",
            error=FileNotFoundError)
    assert list((tmp_path / "cache").iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_downloader_that_names_a_file_it_did_not_write(tmp_path, monkeypatch):
    class Downloader:
        def __init__(self, **options):
            pass

        def retrieve_pdb_file(self, pdb_id, pdir, file_format):
            return f"{pdir}/{pdb_id}.cif"

    monkeypatch.setattr("Bio.PDB.PDBList", Downloader)
    refused("9abc", "nothing came back", error=FileNotFoundError)


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setenv("TEM_TAICHI_CACHE", str(write(tmp_path, "", "occupied")))
    refused("9abc", "TEM_TAICHI_CACHE", error=FileNotFoundError)


def test_the_cache_of_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("TEM_TAICHI_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pdb_files.cache_folder() == tmp_path / "tem_taichi" / "structures"


@pytest.mark.skipif(sys.platform == "win32", reason="its folders are not those of the variables")
@pytest.mark.parametrize(("system", "root"), [
    (Windows, "AppData/Local"), (MacOS, "Library/Caches"), (Unix, ".cache")])
def test_an_old_cache_stays_in_use_on_every_platform(monkeypatch, tmp_path, system, root):
    """Where versions 0.1 looked, which knew the three systems by name."""
    for name in ("TEM_TAICHI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("platformdirs.windows.get_win_folder",
                        lambda name: str(tmp_path / "AppData" / "Local"))
    monkeypatch.setattr(pdb_files, "user_cache_path", lambda *name, **options: system(
        *name, **options).user_cache_path)
    assert pdb_files.cache_folder() == tmp_path / root / "tem_taichi" / "structures"


# --- assemblies -------------------------------------------------------------------------------

def test_assembly_operators_multiply_and_name_label_chains(tmp_path):
    atoms = read_structure(write(tmp_path, TOY, "toy.cif"), assembly=1)
    turned = [turn for x in (1, 11) for turn in [(x, 2), (-2, x), (-x, -2), (2, -x)]]
    wanted = {(*xy, 3) for xy in turned} | {(5, 6, 7)}
    assert {tuple(position) for position in atoms.positions.tolist()} == wanted
    assert len(atoms) == 9
    # B, occupancy and kind go with the atom: the water has one copy, the carbon eight.
    assert atoms.b_factors[atoms.is_water].tolist() == [20]
    assert atoms.occupancies.sum().item() == 8.5


def test_assembly_defaults_to_the_coordinates_of_the_file(tmp_path):
    path = write(tmp_path, TOY, "toy.cif")
    assert len(read_structure(path)) == len(read_structure(path, assembly="2")) == 2
    refused(path, path, "assembly='3'", "1, 2", assembly=3)


@pytest.mark.parametrize(("expression", "products"), [
    ("1", [("1",)]),
    ("1,3-5", [("1",), ("3",), ("4",), ("5",)]),
    ("(X0)(1-2)", [("X0", "1"), ("X0", "2")]),
    ("(1, 2)(P)(7,8)", [("1", "P", "7"), ("1", "P", "8"), ("2", "P", "7"), ("2", "P", "8")]),
])
def test_operator_expressions(expression, products):
    assert assemblies._operator_products(expression) == products


def test_an_assembly_without_its_operators_is_refused(tmp_path):
    path = write(tmp_path, TOY.replace("(5,6)", "(5-7,X)"), "toy.cif")
    refused(path, path, "assembly='1'", "operators 7, X", assembly=1)
    path = write(tmp_path, TOY.replace("1 10 0 0", "1 ? 0 0"), "toy.cif")
    refused(path, "operators 6", assembly=1)


def test_identity_assembly_of_an_mmcif_file_is_the_file(shared):
    # 1AKI's own assembly: all label chains under the identity.
    path = shared / "data/atoms/1AKI.cif"
    assert torch.equal(read_structure(path, assembly=1).positions, read_structure(path).positions)


BIOMT = """REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000        4.00000
REMARK 350   BIOMT2   2  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   2  0.000000  0.000000 -1.000000        0.00000
"""


def test_assembly_of_a_pdb_file_takes_the_named_chains(tmp_path):
    path = write(tmp_path, BIOMT + atom(chain="A") + atom(chain="B", serial=2))
    atoms = read_structure(path, assembly="1")
    assert atoms.positions.tolist() == [[1, 2, 3], [3, 2, -3]]
    path = write(tmp_path, BIOMT + atom(chain="C"))
    refused(path, "assembly='1'", "no chain", assembly=1)


def test_assembly_includes_added_hydrogens(tmp_path):
    path = write(tmp_path, BIOMT + atom("CB"))
    atoms = read_structure(path, assembly=1, hydrogens="parent")
    assert atoms.numbers.tolist() == [6, 1, 6, 1]
    assert torch.equal(atoms.positions[2], atoms.positions[3])


def test_tobacco_mosaic_virus_as_gemmi_assembles_it(shared):
    path = shared / "data/atoms/2OM3.pdb"
    ours = read_structure(path, assembly=1).positions.cpu().numpy()
    structure = gemmi.read_structure(str(path))
    model = gemmi.make_assembly(structure.assemblies[0], structure[0],
                                gemmi.HowToNameCopiedChain.Short)
    wanted = np.array([site.atom.pos.tolist() for site in model.all()])
    assert ours.shape == wanted.shape == (49 * 1279, 3)
    # float32 near 200 A resolves 1.5e-5 A; atoms are more than 1 A apart, so pairing is unique.
    distance, partner = cKDTree(wanted).query(ours)
    assert distance.max() < 5e-5
    assert len(np.unique(partner)) == len(ours)


def test_zika_virus_is_centred_by_its_symmetry(shared):
    path = shared / "data/atoms/5IRE.pdb"
    unit, virus = read_structure(path), read_structure(path, assembly="1")
    assert len(virus) == 661440 == 60 * len(unit)
    # The rotations of an icosahedral group add up to zero. The operators are printed to 1e-6 and
    # act on coordinates of about 250 A; their small shifts are below 1e-4 A.
    assert virus.positions.double().mean(dim=0).abs().max() < 1e-3
    radius = virus.positions.double().norm(dim=1).reshape(60, -1)
    assert (radius - unit.positions.double().norm(dim=1)).abs().max() < 2e-3


# --- models -----------------------------------------------------------------------------------

def test_models_at_shared_occupancy_count_fully_when_chosen(tmp_path):
    path = write(tmp_path, models(*(atom(xyz=(i, 0, 0), occupancy=0.2) for i in range(5))))
    for number in range(1, 6):
        atoms = read_structure(path, model=number)
        assert atoms.positions[:, 0].tolist() == [number - 1]
        assert atoms.occupancies.tolist() == [1]
    everything = read_structure(path, model="all")
    assert len(everything) == 5
    assert everything.occupancies.sum().item() == pytest.approx(1, abs=1e-6)


def test_thirds_round_to_one(tmp_path):
    path = write(tmp_path, models(*[atom(occupancy=0.33)] * 3))
    assert read_structure(path).occupancies.tolist() == [1]


def test_complete_models_keep_their_occupancies(tmp_path):
    path = write(tmp_path, models(*[atom() + atom("CB", occupancy=0.5)] * 4))
    assert read_structure(path, model=3).occupancies.tolist() == [1, 0.5]


def test_models_of_unequal_length(tmp_path):
    path = write(tmp_path, models(atom(occupancy=0.4), atom("N", occupancy=0.5)
                                  + atom(occupancy=0.6)))
    assert read_structure(path, model=1).occupancies.tolist() == [1]
    # N has 0.5 over both models: the other half of it is nowhere, so nothing is made up.
    assert read_structure(path, model=2).occupancies.tolist() == [0.5, 1]


def test_alternates_within_a_model_share_its_scale(tmp_path):
    text = atom(altloc="A", occupancy=0.3) + atom(altloc="B", occupancy=0.2)
    path = write(tmp_path, models(text, text))
    assert read_structure(path).occupancies.tolist() == pytest.approx([0.6, 0.4], abs=1e-6)


def test_model_numbers_count_from_one_whatever_the_file_calls_them(tmp_path):
    path = write(tmp_path, models(atom("C"), atom("N")).replace("       1", "       0")
                 .replace("       2", "       7"))
    assert read_structure(path, model=1).numbers.tolist() == [6]
    assert read_structure(path, model=2).numbers.tolist() == [7]


def test_tobacco_mosaic_virus_model_weighs_what_the_sum_weighs(shared):
    path = shared / "data/atoms/2OM3.pdb"
    one, every = read_structure(path), read_structure(path, model="all")
    assert (len(one), len(every)) == (1279, 5 * 1279)
    assert one.occupancies.unique().tolist() == [1]
    assert every.occupancies.sum().item() == pytest.approx(1279, rel=1e-6)


# --- alternate conformations ------------------------------------------------------------------

def test_alternate_conformations(tmp_path):
    path = write(tmp_path, atom("N") + atom(altloc="A", xyz=(1, 0, 0), occupancy=0.4)
                 + atom(altloc="B", xyz=(2, 0, 0), occupancy=0.6)
                 + atom("ZN", "ZN", element="ZN", occupancy=0.3, number=2))
    assert len(read_structure(path)) == 4
    atoms = read_structure(path, altlocs="highest")
    assert atoms.numbers.tolist() == [7, 6, 30]
    assert atoms.positions[1].tolist() == [2, 0, 0]
    assert atoms.occupancies.tolist() == pytest.approx([1, 1, 0.3], abs=1e-6)


def test_equal_conformations_are_not_mixed(tmp_path):
    path = write(tmp_path, "".join(
        atom(name, altloc=altloc, xyz=(x, 0, 0), occupancy=0.5)
        for name in ("CA", "CB", "CG") for altloc, x in (("B", 2), ("A", 1))))
    assert read_structure(path, altlocs="highest").positions[:, 0].tolist() == [1, 1, 1]


def test_two_residues_at_one_place_are_not_mixed(tmp_path):
    serine = [atom(name, "SER", altloc="A", occupancy=0.4) for name in ("N", "CB", "OG")]
    threonine = [atom(name, "THR", altloc="B", occupancy=0.6) for name in ("N", "CB", "CG2")]
    atoms = read_structure(write(tmp_path, "".join(serine + threonine)), altlocs="highest")
    assert atoms.numbers.tolist() == [7, 6, 6]
    assert atoms.occupancies.tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_a_label_without_alternatives_invents_no_occupancy(tmp_path):
    path = write(tmp_path, atom(altloc="A", occupancy=0.5))
    assert read_structure(path, altlocs="highest").occupancies.tolist() == [0.5]
    every = models(*[atom(altloc=label, occupancy=0.2) for label in "ABCDE"])
    atoms = read_structure(write(tmp_path, every), altlocs="highest", model="all")
    assert atoms.occupancies.tolist() == pytest.approx([0.2] * 5, abs=1e-6)


# --- hydrogens --------------------------------------------------------------------------------

@pytest.mark.parametrize("residue", sorted(hydrogens._ATOMS))
def test_hydrogen_counts_of_the_chemical_formulas(residue):
    # gemmi tabulates the free compound; a link in a chain takes H2O from it, neutral pH one
    # hydrogen of Asp, Glu and a phosphate, and gemmi's histidine is charged.
    names = [atom[:-1].encode() for atom in hydrogens._ATOMS[residue].split()]
    counted = hydrogens.bonded_hydrogens(np.array([residue.encode()] * len(names)),
                                         np.array(names))
    acid = residue in ("ASP", "GLU", "HIS") or len(residue) < 3
    assert counted.sum() == gemmi.find_tabulated_residue(residue).hydrogen_count - 2 - acid
    assert counted.min() > 0


def test_lysozyme_has_the_hydrogens_of_its_formula(shared):
    path = shared / "data/atoms/1AKI.cif"
    atoms = read_structure(path, hydrogens="parent")
    protein = atoms[~atoms.is_water]
    # C613 H959 N193 O185 S10 neutral (reduced); 6 Lys + 11 Arg - 7 Asp - 2 Glu add 8, and the two
    # chain ends, counted as a chain's middle, lack one each.
    added = protein.numbers == 1
    assert protein.occupancies[added].sum().item() == 959 + 8 - 2
    assert [int((protein.numbers == z).sum()) for z in (6, 7, 8, 16)] == [613, 193, 185, 10]
    assert int((atoms.is_water & (atoms.numbers == 8)).sum()) == 78
    assert int((atoms.is_water & (atoms.numbers == 1)).sum()) == 78


def test_added_hydrogens_sit_on_their_parents(tmp_path):
    path = write(tmp_path, atom("CB", xyz=(1, 2, 3), b=33, occupancy=0.5)
                 + atom("O", xyz=(4, 5, 6)) + atom("O", "HOH", xyz=(7, 8, 9), number=2)
                 + atom("C1", "LIG", number=3))
    atoms = read_structure(path, hydrogens="parent")
    assert atoms.numbers.tolist() == [6, 8, 8, 6, 1, 1]
    assert atoms.positions[4:].tolist() == [[1, 2, 3], [7, 8, 9]]
    assert atoms.occupancies[4:].tolist() == [1.5, 2]
    assert atoms.b_factors[4:].tolist() == [33, 20]
    assert atoms.is_water.tolist() == [False, False, True, False, False, True]


def test_hydrogens_in_the_file_are_not_added_again(tmp_path):
    path = write(tmp_path, atom("CA") + atom("HA") + atom("CB") + atom("CB", number=2))
    atoms = read_structure(path, hydrogens="parent")
    assert atoms.numbers.tolist() == [6, 1, 6, 6, 1]
    assert atoms.occupancies.tolist() == [1, 1, 1, 1, 3]
    assert read_structure(path, hydrogens="none").numbers.tolist() == [6, 6, 6]


# --- displaced solvent ------------------------------------------------------------------------

def bare(numbers, is_water=False) -> Atoms:
    numbers = torch.as_tensor(numbers, device=device.current().torch_device)
    n = len(numbers)
    return Atoms(numbers, device.as_tensor(np.zeros((n, 3))), device.as_tensor(np.zeros(n)),
                 device.as_tensor(np.ones(n)), torch.full_like(numbers, is_water, dtype=bool))


def test_displaced_volume_of_every_element():
    volumes = displaced_volumes(bare(range(1, 99)))
    assert volumes[[0, 5, 6, 7, 15]].tolist() == pytest.approx([5.15, 16.44, 2.49, 9.13, 19.86])
    # The smallest is nitrogen; no atom is larger than a sphere of 3.5 A radius.
    assert volumes.min().item() == pytest.approx(2.49)
    assert volumes.max().item() < 4 / 3 * math.pi * 3.5**3


@pytest.mark.parametrize("numbers", [[8], [8, 1, 1], [1, 8, 1, 8, 1, 1]])
def test_water_displaces_its_own_volume_of_ice(numbers):
    atoms = bare(numbers, is_water=True)
    # float32 sums of six numbers near 20.
    assert displaced_volumes(atoms).sum().item() == pytest.approx(
        numbers.count(8) * ICE_MOLECULE, rel=1e-6)


@pytest.mark.parametrize("option", ["file", "parent", "none"])
def test_water_of_a_crystal_displaces_ice_with_and_without_hydrogens(shared, option):
    atoms = read_structure(shared / "data/atoms/1AKI.cif", hydrogens=option)
    water = atoms[atoms.is_water]
    # Crystal waters are partly occupied, and hydrogens as much as their oxygen.
    molecules = water.occupancies[water.numbers == 8].sum().item()
    displaced = (displaced_volumes(water) * water.occupancies).sum().item()
    assert displaced == pytest.approx(molecules * ICE_MOLECULE, rel=1e-5)


def test_simulated_water_displaces_ice(shared):
    # CHARMM's TIP3 in a bilayer: 3659 whole molecules.
    atoms = read_structure(shared / "data/atoms/dppc_n128.pdb")
    displaced = displaced_volumes(atoms)[atoms.is_water].double().sum().item()
    assert int(atoms.is_water.sum()) == 3 * 3659
    assert displaced == pytest.approx(3659 * ICE_MOLECULE, rel=1e-6)


def test_water_without_element_columns_is_recognised(shared):
    # GROMACS writes neither elements nor occupancies for this box.
    atoms = read_structure(shared / "data/atoms/tip3p_box.pdb")
    assert bool(atoms.is_water.all()) and atoms.occupancies.unique().tolist() == [1]
    assert atoms.numbers.unique().tolist() == [1, 8]


def test_lysozyme_displaces_its_partial_specific_volume(shared):
    atoms = read_structure(shared / "data/atoms/1AKI.cif", hydrogens="parent")
    protein = atoms[~atoms.is_water]
    volume = (displaced_volumes(protein) * protein.occupancies).sum().item()
    # 0.73 cm^3/g (proteins: 0.72 to 0.75, hence 3 %) times 14.3 kDa, 1.66054e-24 g each.
    assert volume == pytest.approx(0.73 * 14.3e3 * 1.66054, rel=0.03)


# --- Atoms ------------------------------------------------------------------------------------

def test_centred_moves_the_bounding_box_and_keeps_the_gradient():
    atoms = bare([6, 7, 8])
    positions = device.as_tensor([[0.0, 0, 0], [1, 3, 3], [10, 4, -5]]).requires_grad_(True)
    moved = Atoms(atoms.numbers, positions, atoms.b_factors, atoms.occupancies,
                  atoms.is_water).centred()
    assert moved.positions.amin(dim=0).tolist() == [-5, -2, -4]
    assert moved.positions.amax(dim=0).tolist() == [5, 2, 4]
    moved.positions[1].square().sum().backward()
    # Moving all atoms together changes nothing, so the gradient sums to zero; no entry does.
    assert positions.grad is not None and positions.grad.sum(dim=0).tolist() == [0, 0, 0]
    assert positions.grad[1].abs().min() > 0


def test_concatenate_and_index_undo_each_other():
    both = concatenate(bare([6, 7]), bare([8], is_water=True))
    assert both.numbers.tolist() == [6, 7, 8]
    assert both[both.is_water].numbers.tolist() == [8]
    assert both[:2].numbers.tolist() == [6, 7]
    assert len(both[torch.tensor([2, 0])]) == 2


def test_atoms_of_unequal_length_are_refused():
    atoms = bare([6, 7])
    with pytest.raises(ValueError, match=r"positions .* must be \(2, 3\)"):
        Atoms(atoms.numbers, atoms.positions[:1], atoms.b_factors, atoms.occupancies,
              atoms.is_water)
