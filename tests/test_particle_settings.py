"""A particle in YAML: the key that is there decides its kind, and the kind which keys it has."""

from dataclasses import fields

import pytest
import yaml

from tem_taichi.fit import main as fit
from tem_taichi.scene.load import load_scene
from tem_taichi.scene.particle import SOURCES, MapSettings, ParticleSettings
from tem_taichi.scene.settings import Scene, SpecimenSettings, particle_of
from tem_taichi.scene.show import to_yaml
from tem_taichi.scene.typed import from_plain, to_plain

EACH = {
    "structure": {"structure": "4v1w", "assembly": "1", "hydrogens": "none"},
    "map": {"map": "a.mrc", "voxel_size": 2.0, "map_scale": 0.5},
    "fiducial": {"fiducial": 50.0, "b_factor": 0.6},
    "globule": {"globule": 50.0},
    "vesicle": {"vesicle": 300.0},
    "membrane": {"membrane": [200.0, 100.0], "bend": 900.0},
}
PLACES = [
    {"count": 3, "gap": 5.0}, {"placement": "lattice", "copies": [2, 1, 1]},
    {"placement": "listed", "positions": [[1.0, 2.0, 3.0]], "orientations": [[0.0, 9.0, 0.0]]},
    {"placement": "listed", "file": "a.star"},
    {"placement": "helix", "rise": 30.0, "twist": -20.0, "length": 90.0, "inclination": 2.0},
    {"placement": "sphere", "radius": 300.0, "even": True, "count": 4},
]
BEFORE = """\
structure: null
assembly: null
model: "1"
altlocs: "all"
hydrogens: "parent"
b_factor: null
map: null
voxel_size: null
map_scale: 1.0
fiducial: null
globule: null
vesicle: null
membrane: null
bend: null
placement: "random"
count: 1
gap: 0.0
rise: null
twist: null
length: null
axis_distance: null
inclination: 5.0
spacing: null
copies: [1, 1, 1]
positions: null
orientations: null
file: null
"""
"""Every key at its default, as `--show` and outputs of 0.1.0 have them."""


def one(content):
    return from_plain(Scene, {"specimen": {"particles": {"p": content}}}).specimen.particles["p"]


@pytest.mark.parametrize("source", EACH)
@pytest.mark.parametrize("place", PLACES)
def test_a_kind_has_its_own_keys_and_is_read_back(source, place, tmp_path):
    particle = one({**EACH[source], **place})
    assert type(particle.source) is SOURCES[source] and particle.made_from == source
    plain = to_plain(particle)
    assert plain.items() >= {**EACH[source], **place}.items()
    others = {f.name for kind in SOURCES.values() for f in fields(kind)}
    assert not plain.keys() & (others - {f.name for f in fields(SOURCES[source])})
    assert ("rise" in plain) == (place.get("placement") == "helix")
    assert ("radius" in plain) == (place.get("placement") == "sphere")
    file, scene = tmp_path / "s.yaml", Scene(specimen=SpecimenSettings(particles={"p": particle}))
    file.write_text(to_yaml(scene), encoding="utf-8")
    assert load_scene(file) == scene
    for line in to_yaml(scene).partition('"p":')[2].partition("microscope:")[0].splitlines()[1:]:
        assert "  # " in line or line.startswith("        - ["), line  # rows of a table


@pytest.mark.parametrize("source", EACH)
@pytest.mark.parametrize("place", PLACES)
def test_scenes_of_before_are_the_same(source, place):
    """All keys of all kinds stood there, those without effect at their defaults."""
    given = {**EACH[source], **place}
    assert one({**yaml.safe_load(BEFORE), **given}) == one(given)
    # Base files may give what another choice of placement leaves without effect.
    assert one({"count": 7, "inclination": 9.0, **given}).source == one(given).source


@pytest.mark.parametrize(("content", "said"), [
    ({"globule": 50, "hydrogens": "none"}, 'p.hydrogens="none": no such key; a globule has globule,'
     " placement, count, gap,"),
    ({"structure": "4v1w", "voxel_size": 2}, "p.voxel_size=2: no such key; a structure has "
     "structure, assembly, model, altlocs, hydrogens, b_factor, placement,"),
    ({"map": "a.mrc", "scale": 2}, "p.scale=2: no such key; did you mean map_scale? A map has"),
    ({"membrane": [9, 9], "bent": 2}, "p.bent=2: no such key; did you mean bend? A membrane has"),
    ({"vesicle": 300, "b_factor": 1.0}, "p.b_factor=1.0: no such key; a vesicle has vesicle,"),
    ({"vesicle": 300, "map_scale": "x"}, 'p.map_scale="x": must be a number'),
    ({"globule": "x"}, 'p.globule="x": must be a number'),
    ([1], "p=[1]: must be a mapping of structure, assembly,"),
])
def test_a_key_of_another_kind_is_refused_in_one_line(content, said):
    with pytest.raises(ValueError) as error:
        one(content)
    assert f"specimen.particles.{said}" in str(error.value) and "\n" not in str(error.value)


def test_in_python_the_keys_of_yaml_or_the_kinds_themselves():
    assert particle_of(map="a.mrc", map_scale=2, count=3).source == MapSettings("a.mrc", None, 2.0)
    with pytest.raises(ValueError, match=r"particle\.colour=1: no such key; a globule has globule"):
        particle_of(globule=5.0, colour=1)
    with pytest.raises(ValueError, match=r'p.placement="random": must be helix where rise'):
        SpecimenSettings(particles={"p": ParticleSettings(
            particle_of(globule=5.0).source,
            helix=particle_of(globule=5.0, **PLACES[-2]).helix)})


def test_files_are_found_and_changed():
    particle = particle_of(map="a.mrc", placement="listed", file="b.star")
    assert particle.files == ["a.mrc", "b.star"] and particle_of(globule=5.0).files == []
    assert particle.with_files(lambda name: name and f"x/{name}").files == ["x/a.mrc", "x/b.star"]


def test_a_recipe_prints_its_particles_as_it_reads_them(tmp_path, capsys):
    words = ["input=a.mrc", "particles={ball:{globule:5,count:2}}"]
    assert fit(["recipe=twin", *words, "--show"]) == 0
    shown = capsys.readouterr().out
    ball = yaml.safe_load(shown)["particles"]["ball"]
    assert (ball["globule"], ball["count"]) == (5.0, 2) and "source" not in ball
    (tmp_path / "mine.yaml").write_text(shown)
    assert fit([f"recipe={tmp_path / 'mine.yaml'}", "--show"]) == 0
    assert capsys.readouterr().out == shown
