"""What the site has beside the files of this folder, made when it is built, so never out of date.

A hook of MkDocs, see mkdocs.yml: the reference of each room from its docstrings; what stands
for `<!-- scene -->`, `<!-- recipes -->`, `<!-- shipped -->` and `<!-- rooms -->` in pages, and for
parts of the README, `<!-- README: In Python -->`; figures, notebooks, experiments and changes from
where they are in the repository.
"""

import ast
import io
import json
import logging
import posixpath
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from rooms import below  # beside this file, where MkDocs looks for what a hook imports

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tem_taichi"
BESIDE_DOCS = ("CHANGELOG.md", "experiments/README.md", "experiments/figures/*.png",
               "notebooks/*.ipynb")
"""Files of the repository that the site has too, at the same path."""
PROGRAMS = ("cli", "dataset", "fit", "simulate")
ALONE = {"batches": "experiment", "experiment": "experiment"}
"""Pages of modules that stand in no folder and not on the ground floor."""
log = logging.getLogger("mkdocs.hooks.generated")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference and the repository's own files."""
    for pattern in BESIDE_DOCS:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    rooms = rooms_of_modules()
    for room, modules in rooms.items():
        files.append(File.generated(config, f"api/{room}.md", content=room_page(room, modules)))
    files.append(File.generated(config, "api/index.md", content=index_page(rooms)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put in the tables, and lead links to the repository's files to where the site has them."""
    tables = {"scene": scene_table, "recipes": recipe_settings, "shipped": shipped,
              "rooms": rooms_table}
    markdown = re.sub(rf"<!-- ({'|'.join(tables)}) -->", lambda m: tables[m[1]](), markdown)
    here = posixpath.dirname(page.file.src_uri)
    markdown = moved(markdown, here if page.file.generated_by else f"docs/{here}", here)
    return re.sub("<!-- README: (.*) -->", lambda m: moved(of_readme(m[1]), "", here), markdown)


def moved(markdown: str, folder: str, here: str) -> str:
    """Markdown from a folder of the repository with its links as from a folder of the site."""
    def move(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if (ROOT / target).is_dir():  # which the site has not
            return link[1]
        if not (ROOT / target).exists():
            return link[0]
        place = posixpath.relpath(target.removeprefix("docs/"), here or ".")
        return f"[{link[1]}]({place}{link[3] or ''})"

    return re.sub(r"\[([^]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)", move, markdown)


def of_readme(heading: str) -> str:
    """What the README has below a heading."""
    return (ROOT / "README.md").read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]


def on_post_build(config: MkDocsConfig) -> None:
    """Warn, which `--strict` takes for an error, of whatever a reader's browser would fetch."""
    outside = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=[\"']?"
                         r"(?:https?:)?//[^>]*>|(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*")
    site = Path(config.site_dir)
    for path in (*site.rglob("*.html"), *site.rglob("*.css")):
        for found in outside.findall(path.read_text(encoding="utf-8")):
            log.warning("%s fetches %s", path.relative_to(site), found)


def summary(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]


def rooms_of_modules() -> dict[str, list[str]]:
    """Modules of the reference by room; modules that stand in none are the ground floor."""
    rooms: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (path.stem != "experiment", path)):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in PROGRAMS or parts[-1] == "__init__":
            continue
        room = parts[0] if len(parts) > 1 else ALONE.get(parts[0], "ground")
        rooms.setdefault(room, []).append(".".join(("tem_taichi", *parts)))
    rooms["kernels"] = [f"kernels.{path.stem}" for path in sorted((ROOT / "kernels").glob("*.py"))
                        if path.stem != "__init__"]
    return rooms


def about(room: str) -> str:
    """What a room is for, in a line."""
    if room == "ground":
        return "What every room may use: physics, grids, devices, random numbers, checks."
    if room == "kernels":
        return summary(ROOT / "kernels/__init__.py")
    folder = PACKAGE / room / "__init__.py"
    return summary(folder if folder.exists() else PACKAGE / f"{room}.py")


def room_page(room: str, modules: list[str]) -> str:
    """The reference of a room: each of its modules from its docstrings."""
    return "\n\n".join([f"# {room.capitalize()}", about(room),
                        *(f"::: {module}" for module in modules)]) + "\n"


def index_page(rooms: Mapping[str, list[str]]) -> str:
    """The rooms and what each is for."""
    lines = [f"- [{room}]({room}.md): {about(room)}" for room in rooms]
    return "\n".join(["# Reference", "", "Every public name, its units and shapes, room by room "
                      "([architecture](../architecture.md)).", "", *lines]) + "\n"


def rooms_table() -> str:
    """What each room is for and which it may know, the lowest first."""
    table = below()
    order = sorted(table, key=lambda room: len(table[room]))
    return "\n".join(["| room | what it is for | may know, beside the ground floor |",
                      "| --- | --- | --- |",
                      *(f"| {room} | {about(room)} | {', '.join(sorted(table[room])) or 'none'} |"
                        for room in order)])


@cache
def documented(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass, those that it inherits included."""
    from tem_taichi.scene.show import documentation

    found: dict[str, str] = {}
    for base in kind.__mro__[:-1]:
        found = documentation(base) | found
    return found


def scene_table() -> str:
    """Every key of a scene, its default and meaning, from the settings' classes."""
    from tem_taichi.scene.settings import Scene

    return "\n".join(section(Scene, "", "## At the top"))


def section(kind: type, key: str, heading: str) -> Iterator[str]:
    """A table of the keys of one class of settings, then of the classes within it."""
    hints = get_type_hints(kind)
    yield f"{heading}\n\n{' '.join((kind.__doc__ or '').split())}\n"
    inside = {field.name: [*classes(hints[field.name])] for field in fields(kind)}
    plain = [field for field in fields(kind) if not inside[field.name]]
    if plain:
        yield "| key | default | meaning |\n| --- | --- | --- |"
        yield from (row(kind, field) for field in plain)
        yield ""
    for field in fields(kind):
        place = f"{key}.{field.name}".lstrip(".")
        if get_origin(hints[field.name]) in (Mapping, dict):
            place += ".NAME"
        for part in inside[field.name]:
            if field.metadata.get("beside"):  # its keys stand beside those of this one
                yield from section(part, key, f"### {fields(part)[0].name}: {key}")
            else:
                yield from section(part, place, f"## {place}")


def row(kind: type, field: Field[Any]) -> str:
    """One key of a class of settings."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    default = "" if value is MISSING else f"`{json.dumps(value)}`"
    about = re.sub(r"`[^`]*`|[|*_]", lambda sign: sign[0] if len(sign[0]) > 1 else f"\\{sign[0]}",
                   escape(documented(kind)[field.name], quote=False))
    return f"| `{field.name}` | {default} | {about} |"


def classes(hint: Any) -> Iterator[type]:
    """The dataclasses that a type is made of."""
    if is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for part in get_args(hint):
        yield from classes(part)


def printed(program: Any, *words: str) -> str:
    """What a program prints, without the warnings of what it imports."""
    said = io.StringIO()
    with redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if program(list(words)) not in (0, None):
            raise RuntimeError(f"{words}: failed")
    return said.getvalue()


def recipe_settings() -> str:
    """What `--show` prints of each recipe."""
    from tem_taichi.fit import main
    from tem_taichi.recipes.load import recipe_names

    return "\n".join(f"### {name}\n\n{line}\n\n```yaml\n{printed(main, f'recipe={name}', '--show')}"
                     "```\n" for name, line in recipe_names().items())


def shipped() -> str:
    """What `--list` prints."""
    from tem_taichi.simulate import main

    return f"```text\n{printed(main, '--list')}```"
