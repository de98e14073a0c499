"""Biological assemblies: which chains of a file are copied, and where to.

gemmi 0.7 expands an mmCIF operator product such as (1-60)(61-88) to its first factor only, so
mmCIF operators are read here; those of PDB files (REMARK 350) have no products and come from gemmi.
"""

import itertools
import math
import re
from dataclasses import dataclass

import gemmi
import numpy as np

_MOST_OPERATORS = 100_000
"""Of an assembly, each a product: the largest of the PDB have some thousand."""


@dataclass(frozen=True)
class Generator:
    """Chains that are copied by the same operators x' = rotation x + shift.

    Attributes:
        chains: their names.
        by_label: whether these are mmCIF's label_asym_id (gemmi's subchains), not author chains.
        rotations: shape (K, 3, 3).
        shifts: [A], shape (K, 3).
    """

    chains: tuple[str, ...]
    by_label: bool
    rotations: np.ndarray
    shifts: np.ndarray


def assembly_generators(structure: gemmi.Structure, document: gemmi.cif.Document,
                        name: str) -> list[Generator]:
    """What makes up one biological assembly of a file.

    Args:
        structure: as gemmi read it.
        document: the mmCIF document it came from, empty for a PDB file.
        name: id of the assembly, such as "1".

    Raises:
        ValueError: if the file has no such assembly, or not all of its operators.
    """
    if len(document):
        found = _from_mmcif(document[0], name)
        known = list(dict.fromkeys(
            row.str(0) for row in document[0].find("_pdbx_struct_assembly_gen.", ["assembly_id"])))
    else:
        found = _from_remark_350(structure, name)
        known = [assembly.name for assembly in structure.assemblies]
    if not found:
        allowed = f"one of {', '.join(known)}" if known else "None, since the file defines none"
        raise ValueError(f"assembly={name!r}: must be {allowed}")
    return found


def _from_remark_350(structure: gemmi.Structure, name: str) -> list[Generator]:
    return [Generator(tuple(part.chains), False,
                      np.array([operator.transform.mat.tolist() for operator in part.operators]),
                      np.array([operator.transform.vec.tolist() for operator in part.operators]))
            for assembly in structure.assemblies if assembly.name == name
            for part in assembly.generators if len(part.operators)]


def _from_mmcif(block: gemmi.cif.Block, name: str) -> list[Generator]:
    numbers = [f"matrix[{i}][{j}]" for i in "123" for j in "123"] + [f"vector[{i}]" for i in "123"]
    operators = {}
    for row in block.find("_pdbx_struct_oper_list.", ["id", *numbers]):
        operator = np.eye(4)
        values = [gemmi.cif.as_number(row[i]) for i in range(1, 13)]
        operator[:3, :3], operator[:3, 3] = np.reshape(values[:9], (3, 3)), values[9:]
        operators[row.str(0)] = operator
    generators = []
    for row in block.find("_pdbx_struct_assembly_gen.",
                          ["assembly_id", "oper_expression", "asym_id_list"]):
        if row.str(0) == name:
            try:
                products = _operator_products(row.str(1))
            except ValueError as error:
                raise ValueError(f"assembly={name!r}: {error}") from error
            unknown = {one for factors in products for one in factors
                       if one not in operators or not np.isfinite(operators[one]).all()}
            if unknown:
                raise ValueError(f"assembly={name!r}: the file lacks its operators "
                                 f"{', '.join(sorted(unknown))}")
            matrices = np.array([np.linalg.multi_dot([np.eye(4), *(operators[one] for one in each)])
                                 for each in products])
            chains = tuple(chain.strip() for chain in row.str(2).split(","))
            generators.append(Generator(chains, True, matrices[:, :3, :3], matrices[:, :3, 3]))
    return generators


def _operator_products(expression: str) -> list[tuple[str, ...]]:
    """The operators that an expression combines, each product from left to right.

    (1,2)(3-5) are the six products of 1 or 2 with 3, 4 or 5, the rightmost acting first
    (mmCIF dictionary, _pdbx_struct_assembly_gen.oper_expression).
    """
    groups = [group.replace(" ", "").split(",")
              for group in re.findall(r"\(([^()]*)\)", expression) or [expression]]
    spans = [[re.fullmatch(r"(\d+)-(\d+)", part) for part in group] for group in groups]
    # Counted before any is made.
    count = math.prod(sum(max(int(span[2]) - int(span[1]) + 1, 0) if span else 1 for span in group)
                      for group in spans)
    if count > _MOST_OPERATORS:
        raise ValueError(f"has {count:,} operators: must have at most {_MOST_OPERATORS:,}")
    factors = [[name for part, span in zip(group, group_spans, strict=True)
                for name in (map(str, range(int(span[1]), int(span[2]) + 1)) if span else [part])]
               for group, group_spans in zip(groups, spans, strict=True)]
    return list(itertools.product(*factors))
