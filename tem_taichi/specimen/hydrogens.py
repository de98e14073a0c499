"""How many hydrogens each heavy atom of a standard residue carries."""

import numpy as np

# One entry a residue: its atoms, each name followed by its number of hydrogens (the last digit),
# as charged at neutral pH inside a chain: Asp and Glu without, Lys and Arg with their proton, His
# neutral (on NE2), phosphates without. Chain ends count as chain middles and Cys as reduced, which
# errs by two hydrogens for each end or disulphide.
_AMINO = "N1 CA1 "
_RING = "CB2 CD11 CD21 CE11 CE21 "
_SUGAR = "C5'2 C4'1 C3'1 C1'1 "
_RIBOSE = _SUGAR + "C2'1 O2'1 "
_DEOXYRIBOSE = _SUGAR + "C2'2 "
_BASES = {
    "A": "C21 C81 N62",
    "C": "C51 C61 N42",
    "G": "N11 N22 C81",
    "U": "N31 C51 C61",
    "T": "N31 C61 C73",
}
_ATOMS = {
    "ALA": _AMINO + "CB3",
    "ARG": _AMINO + "CB2 CG2 CD2 NE1 NH12 NH22",
    "ASN": _AMINO + "CB2 ND22",
    "ASP": _AMINO + "CB2",
    "CYS": _AMINO + "CB2 SG1",
    "GLN": _AMINO + "CB2 CG2 NE22",
    "GLU": _AMINO + "CB2 CG2",
    "GLY": "N1 CA2",
    "HIS": _AMINO + "CB2 CD21 CE11 NE21",
    "ILE": _AMINO + "CB1 CG12 CG23 CD13",
    "LEU": _AMINO + "CB2 CG1 CD13 CD23",
    "LYS": _AMINO + "CB2 CG2 CD2 CE2 NZ3",
    "MET": _AMINO + "CB2 CG2 CE3",
    "MSE": _AMINO + "CB2 CG2 CE3",
    "PHE": _AMINO + _RING + "CZ1",
    "PRO": "CA1 CB2 CG2 CD2",
    "SER": _AMINO + "CB2 OG1",
    "THR": _AMINO + "CB1 OG11 CG23",
    "TRP": _AMINO + "CB2 CD11 NE11 CE31 CZ21 CZ31 CH21",
    "TYR": _AMINO + _RING + "OH1",
    "VAL": _AMINO + "CB1 CG13 CG23",
    **{base: _RIBOSE + atoms for base, atoms in _BASES.items() if base != "T"},
    **{"D" + base: _DEOXYRIBOSE + atoms for base, atoms in _BASES.items() if base != "U"},
}
_COUNTS = {
    f"{residue} {atom[:-1]}".encode(): int(atom[-1])
    for residue, atoms in _ATOMS.items() for atom in atoms.split()
}


def bonded_hydrogens(residue_names: np.ndarray, atom_names: np.ndarray) -> np.ndarray:
    """Number of hydrogens bonded to each heavy atom.

    Covers the 20 amino acids, selenomethionine and the nucleotides of DNA and RNA, in the middle
    of a chain at neutral pH.

    Args:
        residue_names: names such as b"ALA" or b"DG", byte strings, shape (N,).
        atom_names: PDB version 3 names such as b"CA", byte strings, shape (N,).

    Returns:
        Integers, shape (N,); 0 for any atom or residue outside the table.
    """
    names = np.char.add(np.char.add(residue_names, b" "), atom_names)
    distinct, where = np.unique(names, return_inverse=True)
    counts = np.array([_COUNTS.get(name, 0) for name in distinct.tolist()], dtype=np.int64)
    return counts[where]
