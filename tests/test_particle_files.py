import numpy as np
import pandas as pd
import pytest
import starfile

from tem_taichi.files.particles import read_placements, write_particles
from tem_taichi.rotations import euler_to_matrix, matrix_to_euler, random_rotations

NUMBERS = ["x", "y", "z", "rot", "tilt", "psi"]
COORDINATES = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]
ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]

# Half a unit of the sixth decimal, which is what a star file has.
WRITTEN = 5.1e-7


def particles(n: int = 6) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.uniform(-2000, 2000, (n, 3)), columns=NUMBERS[:3])
    table[NUMBERS[3:]] = np.stack(matrix_to_euler(random_rotations(n, rng)), -1)
    table["kind"] = [("spike", "membrane", "70S")[i % 3] for i in range(n)]
    return table


def write(path, table: pd.DataFrame, **options) -> None:
    optics = {"tomogram": "TS_01", "pixel_size": 2.62, "voltage": 300.0,
              "spherical_aberration": 2.7, "amplitude_contrast": 0.07}
    write_particles(path, table, **(optics | options))


def write_star(path, table: dict[str, object] | pd.DataFrame, name: str = "particles") -> None:
    """A star file by the independent writer."""
    starfile.write({name: pd.DataFrame(table)}, path)


def write_text(path, text: str):
    path.write_text(text)
    return path


# --- RELION's particles.star --------------------------------------------------------------------

def test_starfile_reads_what_relion_needs(tmp_path):
    table = particles()
    write(tmp_path / "particles.star", table)
    star = starfile.read(tmp_path / "particles.star", parse_as_string=["temParticle"])
    assert list(star) == ["optics", "particles"]
    assert star["optics"].to_dict("records") == [{
        "rlnOpticsGroup": 1, "rlnOpticsGroupName": "opticsGroup1", "rlnVoltage": 300.0,
        "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.07,
        "rlnTomoTiltSeriesPixelSize": 2.62, "rlnImagePixelSize": 2.62}]
    written = star["particles"]
    np.testing.assert_allclose(written[COORDINATES + ANGLES], table[NUMBERS], atol=WRITTEN)
    assert set(written.rlnTomoName) == {"TS_01"} and set(written.rlnOpticsGroup) == {1}
    assert written.rlnTomoParticleName.tolist() == [f"TS_01/{i}" for i in range(1, 7)]
    assert written.temParticle.tolist() == table.kind.tolist()


def test_star_file_says_it_is_relion_5s_and_not_when(tmp_path):
    write(tmp_path / "particles.star", particles())
    comments = [line for line in (tmp_path / "particles.star").read_text().splitlines()
                if line.startswith("#")]
    assert comments == ["# version 50001"]


def test_poses_come_back(tmp_path):
    table = particles()
    write(tmp_path / "particles.star", table)
    back = read_placements(tmp_path / "particles.star")
    assert list(back) == [*NUMBERS, "kind"]
    np.testing.assert_allclose(back[NUMBERS], table[NUMBERS], atol=WRITTEN)
    assert back.kind.tolist() == table.kind.tolist()


def test_kind_that_looks_like_a_number_stays_a_name(tmp_path):
    write(tmp_path / "particles.star", particles(2).assign(kind="1e05"))
    assert read_placements(tmp_path / "particles.star").kind.tolist() == ["1e05", "1e05"]


def test_no_particles(tmp_path):
    write(tmp_path / "particles.star", particles(0))
    star = starfile.read(tmp_path / "particles.star")
    assert len(star["particles"]) == 0 and len(star["optics"]) == 1
    assert set(COORDINATES + ANGLES) < set(star["particles"])
    back = read_placements(tmp_path / "particles.star")
    assert list(back) == [*NUMBERS, "kind"] and len(back) == 0
    assert len(read_placements(write_text(tmp_path / "a.csv", "x,y,z\n"))) == 0


@pytest.mark.parametrize(("change", "words"), [
    ({"x": np.nan}, r"row 1, column x: 'nan' must be a finite number"),
    ({"kind": "two words"}, "name 'two words': must have no space"),
    ({"kind": ""}, "name '': must have no space, quote or #, nor be empty"),
    ({"kind": "a#b"}, "name 'a#b'"),
])
def test_particles_that_no_star_file_holds(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "particles.star", particles().assign(**change))
    assert not list(tmp_path.iterdir())


def test_missing_columns_and_bad_tomogram(tmp_path):
    with pytest.raises(ValueError, match="columns tilt, kind are missing"):
        write(tmp_path / "a.star", particles().drop(columns=["kind", "tilt"]))
    with pytest.raises(ValueError, match="name 'my tomogram'"):
        write(tmp_path / "a.star", particles(0), tomogram="my tomogram")


# --- placements ---------------------------------------------------------------------------------

def test_csv_with_everything(tmp_path):
    path = write_text(tmp_path / "a.csv", "\ufeffx, y ,z,rot,tilt,psi,kind\n"
                      "1,2,3,10,20,30,1e5\n-4.5,5e1,6,-10,0,180, spike \n")
    expected = pd.DataFrame({"x": [1, -4.5], "y": [2, 50.0], "z": [3, 6.0], "rot": [10, -10.0],
                             "tilt": [20, 0.0], "psi": [30, 180.0], "kind": ["1e5", "spike"]})
    pd.testing.assert_frame_equal(read_placements(path), expected)


def test_csv_without_angles_means_unrotated(tmp_path):
    back = read_placements(write_text(tmp_path / "a.csv", "z,y,x\n1,2,3\n"))
    assert list(back) == NUMBERS
    assert back.iloc[0].tolist() == [3, 2, 1, 0, 0, 0]


def test_star_without_angles_and_kind(tmp_path):
    write_star(tmp_path / "a.star", dict(zip(COORDINATES, [[1.5], [2.5], [3.5]], strict=True)),
               name="")
    back = read_placements(tmp_path / "a.star")
    assert list(back) == NUMBERS
    assert back.iloc[0].tolist() == [1.5, 2.5, 3.5, 0, 0, 0]


def test_refined_shift_and_box_rotation_are_put_into_the_pose(tmp_path):
    # RELION, ParticleSet::getPosition and getMatrix3x3: a point p of the reference, in A, is at
    # position - B offset + B A p.
    table = particles()
    rng = np.random.default_rng(1)
    box = np.stack(matrix_to_euler(random_rotations(6, rng)), -1)
    offset = rng.normal(size=(6, 3))
    star = table[NUMBERS].set_axis(COORDINATES + ANGLES, axis=1)
    star[["rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi"]] = box
    star[["rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst"]] = offset
    starfile.write({"particles": star}, tmp_path / "a.star", float_format="%.12f")
    back = read_placements(tmp_path / "a.star")

    point = np.array([10.0, -20.0, 35.0])
    turn = euler_to_matrix(*box.T)
    turned = turn @ euler_to_matrix(*table[NUMBERS[3:]].to_numpy().T) @ point
    expected = table[NUMBERS[:3]].to_numpy() - (turn @ offset[..., None])[..., 0] + turned
    placed = back[NUMBERS[:3]] + euler_to_matrix(*back[NUMBERS[3:]].to_numpy().T) @ point
    np.testing.assert_allclose(placed, expected, atol=1e-9)  # 12 decimals of angles times 40 A
    assert np.linalg.norm(back[NUMBERS[:3]] - table[NUMBERS[:3]], axis=1).min() > 0.1


def test_star_is_read_anew_after_a_broken_one(tmp_path):
    path = write_text(tmp_path / "a.star", "data_particles\n\nloop_\n_a #1\n_b #2\n1 2 3\n")
    with pytest.raises(ValueError, match="can't be read as a star file"):
        read_placements(path)
    write(path, particles(2))
    assert len(read_placements(path)) == 2


@pytest.mark.parametrize(("text", "words"), [
    ("", "can't be read as CSV"),
    ("x,y\n1,2\n", "column z is missing"),
    ("x,y,z,rot\n1,2,3,4\n", "column tilt, psi is missing"),
    ("x,y,z,phi\n1,2,3,4\n", "column 'phi' must be one of x, y, z, rot, tilt, psi, kind"),
    ("x,y,z,x\n1,2,3,4\n", r"column 'x\.1' must be one of"),
    ("x,y,z\n1,2,3\n1,two,3\n", "row 2, column y: 'two' must be a finite number"),
    ("x,y,z\n1,2,3\n1,,3\n", "row 2, column y: '' must be a finite number"),
    ("x,y,z\n1,2,3\n1,2\n", "row 2, column z: '' must be a finite number"),
    ("x,y,z\n1,2,nan\n", "row 1, column z: 'nan' must be a finite number"),
    ("x,y,z\n1,-inf,3\n", "row 1, column y: '-inf' must be a finite number"),
    ("x,y,z\n1,2,3,4\n", "can't be read as CSV"),
    ("x,y,z\n1,2,3\n1,2,3,4\n", "can't be read as CSV"),
    ("1,2,3\n4,5,6\n", "column '1' must be one of"),
    ("x,y,z,kind\n1,2,3,a\n1,2,3,\n", "row 2, column kind: must not be empty"),
])
def test_broken_csv_is_named_in_one_line(tmp_path, text, words):
    check_message(write_text(tmp_path / "a.csv", text), words)


@pytest.mark.parametrize(("table", "words"), [
    ({"rlnCoordinateX": [1], "rlnCoordinateY": [1], "rlnCoordinateZ": [1]},
     "are pixels of a tomogram; needs rlnCenteredCoordinateXAngst, "),
    ({label: [1.0] for label in COORDINATES[:2]}, "column rlnCenteredCoordinateZAngst is missing"),
    ({label: [1.0] for label in [*COORDINATES, "rlnAngleRot"]},
     "column rlnAngleTilt, rlnAnglePsi is missing"),
    ({label: [1.0, np.nan] for label in COORDINATES},
     "row 2, column rlnCenteredCoordinateXAngst: 'nan' must be a finite number"),
    ({label: [1.0, "one"] for label in COORDINATES},
     "row 2, column rlnCenteredCoordinateXAngst: 'one' must be a finite number"),
    ({**{label: [1.0, 2.0] for label in COORDINATES}, "rlnTomoName": ["TS_01", "TS_02"]},
     r"rlnTomoName has several tomograms \(TS_01, TS_02\); keep one"),
])
def test_broken_star_is_named_in_one_line(tmp_path, table, words):
    write_star(tmp_path / "a.star", table)
    check_message(tmp_path / "a.star", words)


@pytest.mark.parametrize("text", ["", "hello\n", "data_particles\n", "data_\n\n_rlnVoltage 300\n",
                                  "data_a\n\nloop_\n_x #1\n1\n\ndata_b\n\nloop_\n_y #1\n1\n"])
def test_star_without_the_table_is_refused(tmp_path, text):
    check_message(write_text(tmp_path / "a.star", text), "star file|needs a table data_particles")


def test_what_is_no_text_or_no_file_is_refused(tmp_path):
    for name in ("a.star", "a.csv"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 4)
        check_message(tmp_path / name, "can't be read|needs a table")
        check_message(tmp_path / "absent" / name, "no such file")
    check_message(tmp_path / "a.txt", r"must end in \.star or \.csv")


def check_message(path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_placements(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_real_star_file_without_positions(shared):
    check_message(shared / "data" / "particles" / "empiar_10076_7.star",
                  "column rlnCenteredCoordinateXAngst")
