"""Atomic models as tensors: what scatters, where, how blurred and how much of it."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import gemmi
import numpy as np
import torch

from tem_taichi import device
from tem_taichi.arguments import check_array, to_tensor
from tem_taichi.files.pdb import find_structure, parse_structure
from tem_taichi.machine import check_memory
from tem_taichi.specimen.assemblies import Generator, assembly_generators
from tem_taichi.specimen.hydrogens import bonded_hydrogens

_MAX_NUMBER = 98
"""Heaviest element (Cf) of the scattering-factor tables."""

_PER_ATOM = 400.0
"""Memory while an assembly is built [bytes]."""

# gemmi keeps three letters of a residue name in PDB files: TIP3 becomes TIP.
_WATERS = b"HOH DOD WAT SOL H2O SPC TIP TIP3 TIP4 TP3 TP4 T3P T4P".split()

_UNITS = {"numbers": "1", "positions": "A", "b_factors": "A^2", "occupancies": "1",
          "is_water": "1"}

_WATER_VOLUME = 1e3 / 30.75
"""A^3 for each molecule of ice at 0.92 g/cm^3."""

_VOLUMES = {"H": 5.15, "C": 16.44, "N": 2.49, "O": 9.13, "Mg": 17.16, "P": 5.73, "S": 19.86,
            "Ca": 31.89, "Mn": 9.20, "Fe": 7.99, "Cu": 8.78, "Zn": 9.85}


@dataclass(frozen=True)
class Atoms:
    """Independent atoms; arrays are made tensors.

    Attributes:
        numbers: atomic numbers, int64, shape (N,).
        positions: x, y, z [A], shape (N, 3).
        b_factors: isotropic `B = 8 pi^2 <u^2>` [A^2], shape (N,).
        occupancies: how many atoms each entry stands for, shape (N,); above 1 only for
            hydrogens that share their parent's position.
        is_water: which atoms belong to water molecules, bool, shape (N,).

    Raises:
        ValueError: for unequal lengths, elements other than 1 to 98, values that are not finite, or
            negative B-factors.
    """

    numbers: torch.Tensor
    positions: torch.Tensor
    b_factors: torch.Tensor
    occupancies: torch.Tensor
    is_water: torch.Tensor

    def __post_init__(self) -> None:
        given = {field.name: to_tensor(field.name, getattr(self, field.name))
                 for field in fields(self)}
        numbers = given["numbers"]
        for name, value in given.items():
            wanted = (*numbers.shape[:1], 3) if name == "positions" else numbers.shape[:1] or (0,)
            check_array(name, value, tuple(wanted), _UNITS[name])
            if name not in ("numbers", "is_water") and not value.is_floating_point():
                given[name] = value.to(torch.get_default_dtype())
        if numbers.is_complex() or bool(((numbers < 1) | (numbers > _MAX_NUMBER)
                                         | (numbers != numbers.long())).any()):
            raise ValueError(f"numbers: must be atomic numbers from 1 to {_MAX_NUMBER}")
        if bool((given["b_factors"].detach() < 0).any()):
            raise ValueError(f"b_factors={float(given['b_factors'].detach().min()):g}: must be 0 "
                             "or positive [A^2]")
        given |= {"numbers": numbers.long(), "is_water": given["is_water"].bool()}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.numbers.shape[0]

    def __getitem__(self, rows: torch.Tensor | slice) -> "Atoms":
        """The atoms that an index, mask or slice over N selects."""
        return Atoms(*(getattr(self, field.name)[rows] for field in fields(self)))

    def here(self) -> "Atoms":
        """The same atoms on the device and in the precision in use."""
        where = device.current().torch_device
        return Atoms(self.numbers.to(where), device.as_tensor(self.positions),
                     device.as_tensor(self.b_factors), device.as_tensor(self.occupancies),
                     self.is_water.to(where))

    def centred(self) -> "Atoms":
        """The same atoms with the centre of their bounding box at the origin."""
        if not len(self):
            return self
        low, high = self.positions.amin(dim=0), self.positions.amax(dim=0)
        return replace(self, positions=self.positions - (low + high) / 2)


def concatenate(*parts: Atoms) -> Atoms:
    """All atoms of several sets, in order."""
    return Atoms(*(torch.cat([getattr(part, field.name) for part in parts])
                   for field in fields(Atoms)))


def read_structure(source: str | Path, assembly: str | int | None = None, model: int | str = 1,
                   hydrogens: str = "file", altlocs: str = "all") -> Atoms:
    """Read the atoms of a PDB or mmCIF file, or of a PDB entry, where the file puts them.

    Anisotropic displacements are ignored in favour of the isotropic B, deuterium is hydrogen, and
    a file whose occupancies are all 0, as some molecular-dynamics programs write, is read as if
    they were all 1.

    Args:
        source: a .pdb, .ent, .cif or .mmcif file, each also as .gz, or a PDB id ("4v1w" comes with
            the package; others are downloaded once into a cache, see `find_structure`).
        assembly: biological assembly to build with the operators of the file, such as "1"; None
            takes the coordinates as they are.
        model: which of the file's models, counted from 1, or "all" for their sum. Models are
            alternatives: where an atom's occupancies add up to 1 over all models (within the
            rounding of two decimals each), the chosen model's atom counts fully. Atoms are
            matched by chain, residue number and name; no other occupancy is touched, such as
            that of an ensemble whose every model is complete.
        hydrogens: "file" as they are; "none" without any; "parent" adds, to each residue that has
            none, its hydrogens at the positions and with the B-factors of the heavy atoms they
            are bonded to (one entry for each heavy atom, n hydrogens as n times its occupancy).
            It knows amino acids, nucleotides and water; other residues get none.
        altlocs: "all" keeps each alternate conformation at its occupancy; "highest" keeps the
            most occupied one of each atom at the residue's whole occupancy.

    Returns:
        The atoms; added hydrogens come after the others of a copy.

    Raises:
        FileNotFoundError: if the file or entry cannot be found.
        ValueError: if the file is no readable structure; if an atom has an unknown element or one
            beyond Z = 98, a coordinate that is not finite, a negative B-factor or an occupancy
            outside 0 to 1; if an option is not one of those above.
    """
    for name, value, allowed in (("hydrogens", hydrogens, ("file", "parent", "none")),
                                 ("altlocs", altlocs, ("all", "highest"))):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
    path = find_structure(source)
    structure, document = parse_structure(path)
    table = _table(structure)
    _check(table, path)
    table = _choose_model(table, model, path)
    if altlocs == "highest":
        table = _highest(table)
    if hydrogens == "none":
        table = table.take(table.numbers != 1)
    elif hydrogens == "parent":
        table = _with_hydrogens(table)
    if assembly is not None:
        try:
            table = _assemble(table, assembly_generators(structure, document, str(assembly)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not len(table.numbers):
            raise ValueError(f"{path}: assembly={str(assembly)!r}: names no chain that has atoms")
    return _atoms(table)


def read_residues(source: str | Path) -> tuple[Atoms, np.ndarray, tuple[float, ...]]:
    """The atoms of a file's first model, all conformations, and which residue each is part of.

    Args:
        source: as in `read_structure`.

    Returns:
        The atoms, the number of each one's residue from 0, (N,), and the edges of the file's unit
        cell [A], which are 1 where it states none.

    Raises:
        FileNotFoundError: if the file or entry cannot be found.
        ValueError: if the file is no readable structure.
    """
    path = find_structure(source)
    structure, _ = parse_structure(path)
    table = _table(structure)
    _check(table, path)
    table = _choose_model(table, 1, path)
    cell = structure.cell
    return (_atoms(table), _group(*table.residues(), table.residue_names),
            (cell.a, cell.b, cell.c))


def displaced_volumes(atoms: Atoms) -> torch.Tensor:
    """Volume of solvent that each atom displaces when it is fully occupied.

    The values of Fraser et al. 1978 as CRYSOL has them (Svergun et al. 1995, J. Appl. Cryst.
    28:768); other elements get the sphere of gemmi's van der Waals radius, an upper estimate for
    metal ions. A water molecule displaces exactly one molecule of ice, 1/(30.75 nm^-3), so that
    water in ice has no mean contrast: hydrogens take their 5.15 A^3 and the oxygen the rest, or
    all of it if no water has hydrogens.

    Returns:
        Volumes [A^3], shape (N,); multiply by the occupancies to sum them.
    """
    elements = [gemmi.Element(number) for number in range(_MAX_NUMBER + 1)]
    table = device.as_tensor([_VOLUMES.get(element.name, 4 / 3 * math.pi * element.vdw_r**3)
                              for element in elements])
    volumes = table[atoms.numbers]
    bonded = 2 if bool((atoms.is_water & (atoms.numbers == 1)).any()) else 0
    water_oxygen = atoms.is_water & (atoms.numbers == 8)
    return torch.where(water_oxygen, _WATER_VOLUME - bonded * _VOLUMES["H"], volumes)


@dataclass(frozen=True)
class _Table:
    """A file's atoms as numpy columns, with the labels that tell them apart."""

    numbers: np.ndarray
    positions: np.ndarray
    b_factors: np.ndarray
    occupancies: np.ndarray
    is_water: np.ndarray
    serials: np.ndarray
    names: np.ndarray
    altlocs: np.ndarray
    residue_names: np.ndarray
    residue_numbers: np.ndarray
    insertion_codes: np.ndarray
    chains: np.ndarray
    subchains: np.ndarray
    models: np.ndarray

    def take(self, rows: np.ndarray) -> "_Table":
        return _Table(*(getattr(self, field.name)[rows] for field in fields(self)))

    def residues(self) -> tuple[np.ndarray, ...]:
        """The columns that together name a residue of a model."""
        return self.chains, self.residue_numbers, self.insertion_codes


def _atoms(table: _Table) -> Atoms:
    where = device.current().torch_device
    return Atoms(torch.as_tensor(table.numbers, device=where), device.as_tensor(table.positions),
                 device.as_tensor(table.b_factors), device.as_tensor(table.occupancies),
                 torch.as_tensor(table.is_water, device=where))


def _table(structure: gemmi.Structure) -> _Table:
    flat = gemmi.FlatStructure(structure)

    def text(characters: object) -> np.ndarray:
        rows = np.ascontiguousarray(characters)
        return rows.view(f"S{rows.shape[1]}")[:, 0]

    residue_names = text(flat.residue_names)
    occupancies = flat.occ.astype(float)
    return _Table(
        # gemmi numbers deuterium after the last element, as an element of its own.
        numbers=np.where(flat.element_names == b"D", 1, flat.elements).astype(np.int64),
        positions=flat.pos.copy(), b_factors=flat.b_iso.astype(float),
        occupancies=occupancies if occupancies.any() else np.ones_like(occupancies),
        is_water=np.isin(residue_names, _WATERS), serials=flat.serials.copy(),
        names=text(flat.atom_names), altlocs=flat.altlocs.copy(), residue_names=residue_names,
        residue_numbers=flat.resnums.copy(), insertion_codes=flat.icodes.copy(),
        chains=text(flat.chain_ids), subchains=text(flat.subchains), models=flat.model_num.copy())


def _check(table: _Table, path: Path) -> None:
    """Refuse a table with an atom that cannot scatter, naming the first."""
    occupancies, b_factors = table.occupancies, table.b_factors
    faults = (
        ("unknown element", table.numbers == 0),
        (f"element beyond Z = {_MAX_NUMBER}", table.numbers > _MAX_NUMBER),
        ("coordinates must be finite [A]", ~np.isfinite(table.positions).all(axis=1)),
        ("B-factor must be 0 or positive [A^2]", ~((b_factors >= 0) & np.isfinite(b_factors))),
        ("occupancy must be from 0 to 1", ~((occupancies >= 0) & (occupancies <= 1))),
    )
    for fault, bad in faults:
        if bad.any():
            row = int(np.argmax(bad))
            name, residue, chain = (column[row].decode("latin-1") for column in
                                    (table.names, table.residue_names, table.chains))
            raise ValueError(f"{path}: atom {table.serials[row]} ({name} of residue {residue} "
                             f"{table.residue_numbers[row]}, chain {chain}): {fault}")


def _group(*columns: np.ndarray) -> np.ndarray:
    """Integers from 0 that agree where all columns agree, shape (N,)."""
    label = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        distinct, code = np.unique(column, return_inverse=True)
        label = np.unique(label * len(distinct) + code, return_inverse=True)[1]
    return label


def _choose_model(table: _Table, model: int | str, path: Path) -> _Table:
    """The atoms of one model at the occupancy of all models that it stands for."""
    if model == "all":
        return table
    distinct, first = np.unique(table.models, return_index=True)
    numbers = distinct[np.argsort(first)]
    if isinstance(model, bool) or not isinstance(model, int) or not 1 <= model <= len(numbers):
        raise ValueError(f"model={model!r}: must be 'all' or from 1 to {len(numbers)} in {path}")
    chosen = table.models == numbers[model - 1]
    if len(numbers) == 1:
        return table
    sites = _group(*table.residues(), table.names)
    everywhere = np.bincount(sites, table.occupancies)
    here = np.bincount(sites, table.occupancies * chosen)
    shared = (np.abs(everywhere - 1) <= 0.005 * len(numbers)) & (here > 0)
    scale = np.divide(1.0, here, out=np.ones_like(here), where=shared)
    return replace(table, occupancies=table.occupancies * scale[sites]).take(chosen)


def _highest(table: _Table) -> _Table:
    """One conformation for each atom that has several."""
    labelled = table.take(table.altlocs != 0)
    if not len(labelled.numbers):
        return table
    residues = _group(labelled.models, *labelled.residues())
    sites = _group(residues, labelled.names)
    whole = np.zeros(residues.max() + 1)
    np.maximum.at(whole, residues, np.bincount(sites, labelled.occupancies)[sites])
    best_first = np.lexsort((labelled.altlocs, -labelled.occupancies))
    # Where two kinds of residue share a place, atoms of both may not be mixed.
    best = best_first[np.unique(residues[best_first], return_index=True)[1]]
    fits = labelled.residue_names == labelled.residue_names[best][residues]
    best_first = best_first[fits[best_first]]
    kept = best_first[np.unique(sites[best_first], return_index=True)[1]]
    occupancies = table.occupancies.copy()
    rows = np.flatnonzero(table.altlocs != 0)[kept]
    occupancies[rows] = np.minimum(whole[residues[kept]], 1)
    keep = table.altlocs == 0
    keep[rows] = True
    return replace(table, occupancies=occupancies).take(keep)


def _with_hydrogens(table: _Table) -> _Table:
    """The table followed by the hydrogens of residues that lack them, on their parents."""
    residues = _group(table.models, *table.residues(), table.residue_names)
    counts = bonded_hydrogens(table.residue_names, table.names)
    counts[table.is_water & (table.numbers == 8)] = 2
    counts[(np.bincount(residues, table.numbers == 1) > 0)[residues]] = 0
    rows = np.concatenate([np.arange(len(counts)), np.flatnonzero(counts)])
    added = np.arange(len(rows)) >= len(counts)
    both = table.take(rows)
    return replace(both, numbers=np.where(added, 1, both.numbers),
                   occupancies=both.occupancies * np.where(added, counts[rows], 1))


def _assemble(table: _Table, generators: list[Generator]) -> _Table:
    """Copies of the table's chains under the operators of a biological assembly."""
    rows, positions = [], []
    copied = []
    for generator in generators:
        labels = table.subchains if generator.by_label else table.chains
        copied.append(np.flatnonzero(np.isin(labels, [name.encode() for name in generator.chains])))
    atoms = sum(len(inside) * len(generator.rotations)
                for inside, generator in zip(copied, generators, strict=True))
    check_memory(f"assembly: {atoms:,} atoms", _PER_ATOM * atoms, "choose another")
    for inside, generator in zip(copied, generators, strict=True):
        for rotation, shift in zip(generator.rotations, generator.shifts, strict=True):
            rows.append(inside)
            positions.append(table.positions[inside] @ rotation.T + shift)
    return replace(table.take(np.concatenate(rows)), positions=np.concatenate(positions))
