"""Draws rooms.svg: the rooms of the package, and which may know which.

    python docs/rooms.py

The arrows are those of the table BELOW in tests/test_package.py, to which a test holds imports.
"""

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "rooms.svg"
PLACES = {  # column and row, from the ground
    "files": (0, 0), "scene": (0, 1), "specimen": (1, 1), "instrument": (1, 2), "noise": (2, 2),
    "experiment": (1, 3), "batches": (2, 3), "compat": (3, 3), "series": (0, 4), "inverse": (2, 4),
    "export": (0, 5), "estimate": (2, 5), "recipes": (2, 6),
}
WIDE, HIGH, STEP_X, STEP_Y, EDGE = 212, 46, 236, 78, 14
TOP = 1 + max(row for _, row in PLACES.values())
STYLE = ("text{font-family:sans-serif;font-size:12px;fill:#333333}"
         ".name{font-size:15px;font-weight:bold;fill:#00695c}"
         "rect{fill:#ffffff;stroke:#00897b;stroke-width:1.5}.band{fill:#e0f2f1}"
         "path{fill:none;stroke:#607d8b;stroke-width:1.5;marker-end:url(#tip)}polygon{fill:#607d8b}")
SAYS = {
    "files": "formats, read and written", "scene": "what YAML may say",
    "specimen": "what scatters electrons", "instrument": "what forms its image",
    "noise": "what a camera records", "experiment": "where the three meet",
    "batches": "many images in a call", "compat": "models of other programs",
    "series": "from a scene to its images", "inverse": "from images to numbers",
    "export": "for other programs", "estimate": "special solvers", "recipes": "of fit, a file each",
}


def below() -> dict[str, set[str]]:
    """Rooms that each room may know, beside the ground floor."""
    tree = ast.parse((ROOT / "tests" / "test_package.py").read_text("utf-8"))
    table = next(node.value for node in tree.body if isinstance(node, ast.Assign)
                 and ast.unparse(node.targets[0]) == "BELOW")
    return {room: known - {"ground"} for room, known in ast.literal_eval(table).items()}


def arrows(table: dict[str, set[str]]) -> list[tuple[str, str]]:
    """What each room may know, but for what it reaches by way of others."""
    def reached(room: str) -> set[str]:
        return table[room].union(*map(reached, table[room]))

    return [(room, known) for room in table for known in sorted(table[room])
            if not any(known in reached(other) for other in table[room])]


def middle(room: str) -> tuple[float, float]:
    """Of its box [pixel]."""
    column, row = PLACES[room]
    return EDGE + WIDE / 2 + column * STEP_X, EDGE + HIGH / 2 + (TOP - row) * STEP_Y


def box(x: float, y: float, wide: float, name: str, says: str, kind: str = "room") -> str:
    """A box about x, y with a name and what it is."""
    return (f'<rect class="{kind}" x="{x - wide / 2:g}" y="{y - HIGH / 2:g}" width="{wide:g}" '
            f'height="{HIGH}" rx="5"/><text class="name" x="{x:g}" y="{y - 4:g}" '
            f'text-anchor="middle">{name}</text><text x="{x:g}" y="{y + 13:g}" '
            f'text-anchor="middle">{escape(says)}</text>')


def arrow(upper: str, lower: str) -> str:
    """From the foot of a box to the head of one below, or from its side to one beyond a column."""
    (x, y), (u, v) = middle(upper), middle(lower)
    lean = (u - x) * 0.18  # so that arrows of one box part
    y, v = y + HIGH / 2, v - HIGH / 2 - 2
    return f'<path d="M{x + lean:g} {y:g}C{x + lean:g} {y + 26:g} {u - lean:g} {v - 26:g} ' \
           f'{u - lean:g} {v:g}"/>'


def draw() -> str:
    """The picture as SVG.

    Raises:
        ValueError: if a room has no place, or one that is not above all that it may know.
    """
    table = below()
    for room, known in table.items():
        if room not in PLACES or any(PLACES[room][1] <= PLACES[one][1] for one in known):
            raise ValueError(f"{room}: must have a place in PLACES above {sorted(known)}")
    wide, high = 4 * STEP_X - (STEP_X - WIDE) + 2 * EDGE, (TOP + 1) * STEP_Y + HIGH + 2 * EDGE
    centre, span = wide / 2, wide - 2 * EDGE
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {high:g}">',
             f"<style>{STYLE}</style>",
             '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
             'markerHeight="7" orient="auto"><polygon points="0,0 8,4 0,8"/></marker>',
             box(centre, EDGE + HIGH / 2, span, "simulate, fit, cli",
                 "the programs: they know every room", "band"),
             box(centre, EDGE + HIGH / 2 + (TOP + 1) * STEP_Y, span,
                 "ground floor: physics, grid, streams, checks, device, bridge ... and the kernels",
                 "every room knows it, and it knows none", "band"),
             *(arrow(*pair) for pair in arrows(table)),
             *(box(*middle(room), WIDE, room, SAYS[room]) for room in table), "</svg>"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
