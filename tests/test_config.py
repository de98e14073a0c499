"""Values of a scene: what is refused and how it is said."""

import ast
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest

import tem_taichi
from tem_taichi.checks import shown
from tem_taichi.scene.particle import SOURCES, ParticleSettings
from tem_taichi.scene.placing import HelixSettings, PlacingSettings, SphereSettings
from tem_taichi.scene.settings import (
    DetectorSettings,
    IceSettings,
    InteractionSettings,
    MicroscopeSettings,
    Scene,
    SpecimenSettings,
    TiltSettings,
    particle_of,
)
from tem_taichi.scene.show import documentation
from tem_taichi.scene.typed import from_plain, to_plain

NAN, INF = float("nan"), float("inf")


def particle(**values):
    return {"specimen": {"particles": {"p": {"structure": "4v1w", **values}}}}


@pytest.mark.parametrize(("content", "said"), [
    ({"pixel_size": -1.0}, "pixel_size=-1.0: must be from 0.01 to 1000 [A]"),
    ({"pixel_size": NAN}, "pixel_size=nan: must be"),
    ({"name": "x" * 101}, "'.', at most 100 in all"),
    ({"specimen": {"particles": {"p" * 101: {"structure": "4v1w"}}}}, "must be names of letters"),
    ({"pixel_size": INF}, "pixel_size=inf: must be"),
    ({"dose": 0}, "dose=0.0: must be above 0, up to 1e+06 [e-/A^2]"),
    ({"dose": "3"}, 'dose="3": must be a number'),
    ({"dose": True}, "dose=true: must be a number"),
    ({"dose": None}, "dose=null: must be a number"),
    ({"dose": {"x": 1}}, 'dose={"x": 1}: must be a number'),
    ({"seed": 1.5}, "seed=1.5: must be a whole number"),
    ({"seed": -1}, "seed=-1: must be a whole number from 0 to"),
    ({"seed": 2**63}, "seed=9223372036854775808: must be"),
    ({"overwrite": "maybe"}, 'overwrite="maybe": must be true or false'),
    ({"overwrite": 1}, "overwrite=1: must be true or false"),
    ({"shape": 32}, "shape=32: must be a list"),
    ({"shape": [32]}, "shape=[32]: must be two whole numbers from 16 to 16384"),
    ({"shape": [32.5, 32]}, "shape[0]=32.5: must be a whole number"),
    ({"shape": [8, 32]}, "shape=[8, 32]: must be"),
    ({"output": " "}, 'output=" ": must be the name of a folder'),
    ({"name": "../x"}, 'name="../x": must be letters'),
    ({"name": "a\n"}, 'name="a\\n": must be letters'),
    ({"pixelsize": 2}, "pixelsize=2: no such key; did you mean pixel_size?"),
    ({"xyz": 2}, "xyz=2: no such key; must be one of name, seed"),
    ({"microscope": 3}, "microscope=3: must be a mapping of name, voltage"),
    ({"microscope": {"voltage": 0}}, "microscope.voltage=0.0: must be from 10 to 3000 [kV]"),
    ({"microscope": {"voltag": 1}}, "microscope.voltag=1: no such key; did you mean voltage?"),
    ({"microscope": {"aperture": 0}}, "microscope.aperture=0.0: must be above 0"),
    ({"optics": {"amplitude_contrast": 1}}, "optics.amplitude_contrast=1.0: must be in [0, 1)"),
    ({"detector": {"kind": "film"}}, 'detector.kind="film": must be one of integrating, counting'),
    ({"detector": {"dqe": 0}}, "detector.dqe=0.0: must be from 0.0001 to 1"),
    ({"tilts": {"scheme": "listed"}}, "tilts.angles=null: must be a list of angles"),
    ({"tilts": {"angles": [1]}}, "tilts.angles=[1.0]: must be null for scheme: dose_symmetric"),
    ({"tilts": {"step": 0}}, "tilts.step=0.0: must be from 0.01"),
    ({"tilts": {"start": 70}}, "tilts.start=70.0: must be from -60 to 60"),
    ({"tilts": {"minimum": 10, "maximum": 0}}, "tilts.minimum=10.0: must be at most tilts.maximum"),
    ({"tilts": {"scheme": "listed", "angles": [0, NAN]}}, "tilts.angles[1]=nan: must be"),
    ({"tilts": {"shifts": [[0, 0], [1]]}}, "tilts.shifts[1]=[1.0]: must be 2 numbers"),
    ({"tilts": {"errors": {"dose": 0.3}}}, "tilts.errors.dose=0.3: must be in [0, 0.3)"),
    ({"interaction": {"slice_thickness": 700}},
     "interaction.slice_thickness=700.0: must be at most specimen.ice.thickness=600 [A]"),
    ({"interaction": {"oversampling": 1.2}}, "interaction.oversampling=1.2: must be a multiple"),
    ({"compute": {"dtype": "float16"}}, 'compute.dtype="float16": must be one of'),
    ({"specimen": {"size": [1, 0]}}, "specimen.size=[1.0, 0.0]: must be 2 positive numbers"),
    ({"specimen": {"particles": None}}, "specimen.particles=null: must be a mapping of names"),
    ({"specimen": {"particles": {"../q": {"structure": "a"}}}}, 'specimen.particles="../q": must'),
    ({"specimen": {"particles": {"p": {}}}}, "specimen.particles.p.structure=null: must be given"),
    (particle(map="a.mrc"), "specimen.particles.p.structure"),
    (particle(coutn=1), "specimen.particles.p.coutn=1: no such key; did you mean count?"),
    (particle(count=-1), "specimen.particles.p.count=-1: must be"),
    (particle(model=0), 'specimen.particles.p.model="0": must be a MODEL number'),
    (particle(structure=1e10), "specimen.particles.p.structure=10000000000.0: must be text"),
    (particle(b_factor=INF), "specimen.particles.p.b_factor=inf: must be"),
    (particle(copies=[1, 1]), "specimen.particles.p.copies=[1, 1]: must be three"),
    (particle(positions=[[0, 0, 0]]), "null for placement: random"),
    (particle(placement="listed"), "specimen.particles.p.positions=null: must be given"),
    (particle(placement="listed", positions=[[0, 0, NAN]]), "specimen.particles.p.positions[0]="),
    (particle(orientations=[[0, 0]]), "specimen.particles.p.orientations[0]=[0.0, 0.0]: must be 3"),
])
def test_refused_in_one_line(content, said):
    with pytest.raises(ValueError) as error:
        from_plain(Scene, content)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_plain_data_becomes_the_scene():
    scene = from_plain(Scene, {
        "name": 5, "seed": 1e3, "dose": 2, "shape": [64, 32.0],
        "specimen": {"ice": {"mean_free_path": None}, "particles": {1: {
            "structure": "4v1w", "assembly": 1, "placement": "listed", "positions": [[1, 2, 3]]}}},
    })
    assert scene == Scene(
        name="5", seed=1000, dose=2.0, shape=[64, 32],
        specimen=SpecimenSettings(ice=IceSettings(mean_free_path=None), particles={
            "1": particle_of(structure="4v1w", assembly="1", placement="listed",
                             positions=[[1.0, 2.0, 3.0]])}))
    assert type(scene.dose) is float and type(scene.seed) is int and type(scene.shape[1]) is int


def test_nothing_given_is_the_defaults():
    assert from_plain(Scene, {}) == Scene()


def test_python_is_checked_as_yaml_is():
    for make in (lambda: MicroscopeSettings(voltage=NAN), lambda: DetectorSettings(gain=0.0),
                 lambda: TiltSettings(scheme="listed"), lambda: InteractionSettings(margin=-1.0)):
        with pytest.raises(ValueError, match="must be"):
            make()


def test_values_are_shown_as_in_yaml_and_cut():
    values = {"null": None, "true": True, '"a"': "a", "-1.0": -1.0, "nan": NAN, "[1, 2]": [1, 2]}
    assert [shown(value) for value in values.values()] == list(values)
    assert shown([1] * 1000, length=7) == "[1, 1, ..."


def dataclasses_of(kind):
    yield kind
    for field in fields(kind):
        if is_dataclass(field.type):
            yield from dataclasses_of(field.type)


def test_settings_stay_as_they_are():
    """No field can be set, and what YAML gives as lists is neither: in Python both are the same."""
    sheet = particle_of(membrane=[1.0, 1.0], placement="helix", rise=1.0, twist=0.0, length=9.0)
    for made in (*(kind() for kind in dataclasses_of(Scene)), sheet, sheet.source, sheet.placing,
                 sheet.helix):
        kind = type(made)
        for field in fields(kind):
            with pytest.raises(FrozenInstanceError):
                setattr(made, field.name, getattr(made, field.name))
            assert not isinstance(getattr(made, field.name), list)
    listed = Scene(shape=[64, 32], tilts=TiltSettings(shifts=[[0.0, 1.0]]))
    assert listed == Scene(shape=(64, 32), tilts=TiltSettings(shifts=((0.0, 1.0),)))
    assert listed.shape == (64, 32) and listed.tilts.shifts == ((0.0, 1.0),)
    assert from_plain(Scene, to_plain(listed)) == listed
    assert to_plain(listed)["tilts"]["shifts"] == [[0.0, 1.0]]


def test_settings_and_things_have_names_of_their_own():
    """A class of settings is called after YAML's noun, and what is made of it without the word."""
    settings = {kind.__name__ for kind in (*dataclasses_of(Scene), *SOURCES.values(),
                                           PlacingSettings, HelixSettings, SphereSettings,
                                           ParticleSettings)}
    assert all(name.endswith("Settings") for name in settings - {"Scene"})
    for file in Path(tem_taichi.__file__).parent.rglob("*.py"):
        if file.parent.name != "scene":
            tree = ast.walk(ast.parse(file.read_text("utf-8")))
            assert not settings & {node.name for node in tree if isinstance(node, ast.ClassDef)}


def test_every_key_is_documented():
    for kind in (*dataclasses_of(Scene), *SOURCES.values(), PlacingSettings, HelixSettings,
                 SphereSettings):
        documented = documentation(kind)
        assert [f.name for f in fields(kind) if not is_dataclass(f.type)
                and f.name not in documented] == []
