"""The true alignment in other programs' files leads to the gold in the images, with its hand.

Each file is read as that program's source says, and by its readers on PyPI where they are there.
"""

import importlib
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import starfile
from scipy.spatial.transform import Rotation

from tem_taichi import simulate
from tem_taichi.export.formats import write_formats
from tem_taichi.rotations import euler_to_matrix, matrix_to_euler
from tem_taichi.scene.settings import (
    ComputeSettings,
    IceSettings,
    InteractionSettings,
    OpticsSettings,
    Scene,
    SpecimenSettings,
    TiltErrorSettings,
    TiltSettings,
    particle_of,
)

PIXEL, AXIS = 3.0, 85.0
SHAPES = [(72, 80), (73, 81)]
"""Even and odd: programs turn about (n - 1) / 2 or n / 2, which differ by another half pixel."""
# Not in a plane through the beam: the mirror image would lie elsewhere.
POSITIONS = np.array([[40.0, -22.0, 45.0], [-45.0, 30.0, -20.0], [5.0, 35.0, -50.0]])


@pytest.fixture(scope="module", params=SHAPES, ids=["even", "odd"])
def made(request, tmp_path_factory):
    """Scene, series and folder: atoms of gold that absorb, in focus, so dark dots; shifts."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "au.pdb").write_text("HETATM    1 AU   AU  A   1       0.000   0.000   0.000"
                                   "  1.00 80.00          AU\nEND\n")
    atoms = particle_of(structure=str(folder / "au.pdb"), placement="listed",
                        positions=POSITIONS.tolist())
    scene = Scene(
        name="gold", seed=3, shape=list(request.param), pixel_size=PIXEL, dose=400.0,
        formats=["warp", "aretomo", "imod"],
        specimen=SpecimenSettings(ice=IceSettings(thickness=130.0, potential=0.0, granularity=0.0),
                                  damage=0.0, particles={"au": atoms}),
        optics=OpticsSettings(defocus=0.0, astigmatism=-30.0, astigmatism_angle=80.0,
                              phase_shift=5.0, amplitude_contrast=0.5),
        tilts=TiltSettings(minimum=-60, maximum=60, step=20, axis_angle=AXIS,
                           errors=TiltErrorSettings(shift=6.0, angle=0.5)),
        interaction=InteractionSettings(margin=30.0), compute=ComputeSettings(arch="cpu"))
    series = simulate(scene)
    out = folder / "out"
    out.mkdir()
    write_formats(out, replace(series, images=series.noise_free), scene.formats)
    return scene, series, out


def tomogram_points() -> np.ndarray:
    """x, y, z [A] of the atoms in a tomogram whose tilt axis is along y."""
    turn = np.deg2rad(-AXIS)
    x, y, z = POSITIONS.T
    return np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), z],
                    axis=1)


def found(scene, images, pixels) -> float:
    """Part of the places (n, m, 2), x and y from pixel 0, that are dark dots within a pixel."""
    hits = []
    for image, places in zip(images.numpy(), pixels, strict=True):
        dark = 1 - image / np.median(image)
        for x, y in places:
            column, row = round(x), round(y)
            part = dark[max(row - 1, 0):row + 2, max(column - 1, 0):column + 2]
            hits.append(part.size > 0 and part.max() > 0.3 * dark.max())
    return float(np.mean(hits))


def pixels_of(series, shape) -> np.ndarray:
    """Where the atoms are [pixel from 0], from the definition of the geometry, (n, m, 2)."""
    rows = []
    for tilt in series.tilts.itertuples():
        axis = np.deg2rad(tilt.axis_angle)
        turn = Rotation.from_rotvec(np.deg2rad(tilt.tilt_angle)
                                    * np.array([-np.sin(axis), np.cos(axis), 0]))
        rows.append((turn.apply(POSITIONS)[:, :2] + [tilt.shift_x, tilt.shift_y]) / PIXEL
                    + [shape[1] // 2, shape[0] // 2])
    return np.array(rows)


def warp_places(angles, axes, offsets, shape) -> np.ndarray:
    """TiltSeries.GetPositionInAllTilts: Euler(0, angle, -axis), offsets, about n / 2, in A."""
    turns = euler_to_matrix(0, angles, -np.asarray(axes))
    seen = np.einsum("nij,mj->nmi", turns, tomogram_points())[..., :2] + offsets[:, None]
    return seen / PIXEL + np.array([shape[1], shape[0]]) / 2


def imported(folder, names="gold"):
    """ImportAlignments: angles as they are; axis and offsets out of the .xf, transposed."""
    angles = np.loadtxt(folder / f"{names}.tlt")
    rows = np.loadtxt(folder / f"{names}.xf")
    matrices = np.tile(np.eye(3), (len(rows), 1, 1))
    matrices[:, :2, :2] = rows[:, :4].reshape(-1, 2, 2)
    _, _, psi = matrix_to_euler(matrices)
    rot, _, _ = matrix_to_euler(matrices)
    shift = np.einsum("nji,nj->ni", matrices[:, :2, :2], -rows[:, 4:]) * PIXEL
    return angles, rot + psi, shift


def test_gold_is_where_the_geometry_says(made):
    scene, series, _ = made
    assert found(scene, series.noise_free, pixels_of(series, scene.shape)) == 1


def test_warp_imports_its_alignments(made):
    scene, series, folder = made
    places = warp_places(*imported(folder / "warp" / "alignments" / "gold"), scene.shape)
    assert found(scene, series.noise_free, places) == 1
    # Three digits of a shift in pixels.
    np.testing.assert_allclose(places, pixels_of(series, scene.shape), atol=2e-3)
    # IMOD's own files have the tilts of the other hand for Warp, which finds little by them.
    assert found(scene, series.noise_free,
                 warp_places(*imported(folder / "imod"), scene.shape)) < 0.6
    star = starfile.read(folder / "warp" / "tomostar" / "gold.tomostar")
    true = imported(folder / "warp" / "alignments" / "gold")[0]
    np.testing.assert_allclose(true, star["wrpAngleTilt"], atol=5 * 0.5)  # errors of 0.5 deg


def test_warps_metadata_is_the_same_alignment(made):
    scene, series, folder = made
    root = ElementTree.parse(folder / "warp" / "warp_tiltseries" / "gold.xml").getroot()

    def column(name):
        return np.array(root.find(name).text.split(), dtype=float)

    places = warp_places(column("Angles"), column("AxisAngle"),
                         np.stack([column("AxisOffsetX"), column("AxisOffsetY")], 1), scene.shape)
    np.testing.assert_allclose(places, pixels_of(series, scene.shape), atol=1e-4)
    assert root.get("AreAnglesInverted") == "False"  # z runs along the beam
    np.testing.assert_allclose(column("Dose"), series.tilts["prior_dose"], rtol=1e-6)
    nodes = {name: np.array([float(node.get("Value")) for node in root.find(name)]) for name in (
        "GridCTF", "GridCTFDefocusDelta", "GridCTFDefocusAngle", "GridCTFPhase")}
    mean = (series.tilts["defocus_u"] + series.tilts["defocus_v"]) / 2e4
    np.testing.assert_allclose(nodes["GridCTF"], mean, atol=1e-9)
    np.testing.assert_allclose(nodes["GridCTFDefocusDelta"], 30e-4, rtol=1e-6)
    np.testing.assert_allclose(nodes["GridCTFDefocusAngle"], -10)  # V is larger, across 80 deg
    np.testing.assert_allclose(nodes["GridCTFPhase"], 5 / 180, rtol=1e-6)
    for path in root.find("MoviePath").text.split():
        movie = (folder / "warp" / "warp_tiltseries" / path).resolve()
        assert (movie.parent / "average" / movie.name).is_file()


def test_imods_alignment_leads_to_the_gold(made):
    """newstack turns the images about (n - 1) / 2; tilt projects by x cos + z sin."""
    scene, series, folder = made
    rows, tilt = (np.loadtxt(folder / "imod" / f"gold.{end}") for end in ("xf", "tlt"))
    c, s = np.cos(np.deg2rad(tilt))[:, None], np.sin(np.deg2rad(tilt))[:, None]
    x, y, z = tomogram_points().T / PIXEL
    aligned = np.stack([x * c + z * s, np.tile(y, (len(tilt), 1))], axis=-1)
    raw = np.einsum("nij,nmj->nmi", np.linalg.inv(rows[:, :4].reshape(-1, 2, 2)),
                    aligned - rows[:, None, 4:])
    places = raw + (np.array([scene.shape[1], scene.shape[0]]) - 1) / 2
    np.testing.assert_allclose(places, pixels_of(series, scene.shape), atol=2e-3)


def test_imods_commands_name_what_is_there(made):
    scene, _, folder = made
    root = folder / "imod"
    words = {line.split()[0]: line.split()[1:] for file in ("newst.com", "tilt.com")
             for line in (root / file).read_text().splitlines() if not line.startswith("$")}
    for key in ("InputFile", "TransformFile", "TILTFILE", "XTILTFILE"):
        assert (root / words[key][0]).is_file()
    assert words["InputProjections"] == ["gold_ali.mrc"]
    assert [int(n) for n in words["FULLIMAGE"]] == [scene.shape[1], scene.shape[0]]
    assert int(words["THICKNESS"][0]) == 44  # 130 A, even
    assert not np.loadtxt(root / "gold.xtilt").any()
    etomo = dict(line.split("=", 1) for line in (root / "gold.edf").read_text().splitlines())
    stack = root / f"{etomo['Setup.DatasetName']}.{etomo['Setup.RawImageStackExt']}"
    assert stack.is_file() and float(etomo["Setup.ImageRotationA"]) == AXIS
    assert float(etomo["Setup.PixelSize"]) == PIXEL / 10


def test_aretomos_alignment_is_imods(made):
    """AreTomo3's export to IMOD: A = Rz(-ROT), d = -A (TX, TY)."""
    scene, series, folder = made
    lines = (folder / "aretomo" / "gold.aln").read_text().splitlines()
    assert f"# RawSize = {scene.shape[1]} {scene.shape[0]} 7" in lines
    rows = np.array([line.split() for line in lines if not line.startswith("#")], dtype=float)
    np.testing.assert_array_equal(rows[:, 0], np.arange(1, 8))
    angle = np.deg2rad(rows[:, 1])
    c, s = np.cos(angle), np.sin(angle)
    matrices = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], axis=1)
    transforms = np.loadtxt(folder / "imod" / "gold.xf")
    np.testing.assert_allclose(matrices.reshape(-1, 4), transforms[:, :4], atol=2e-6)
    np.testing.assert_allclose(-np.einsum("nij,nj->ni", matrices, rows[:, 3:5]), transforms[:, 4:],
                               atol=2e-3)
    np.testing.assert_allclose(rows[:, 9], series.tilts["tilt_angle"], atol=5.1e-3)


def test_beads_are_known_by_their_kind_not_their_name(made, tmp_path):
    _, series, _ = made
    kinds = {"markers": "fiducial", "fiducial_like": "structure"}
    table = series.particles.assign(kind=["markers", "fiducial_like", "fiducial_like"])
    write_formats(tmp_path, replace(series, particles=table, kinds=kinds), ["imod"])
    points = np.loadtxt(tmp_path / "imod" / "gold_fid.txt")
    assert len(points) == 7 and set(points[:, 1]) == {1}


# --- the programs' readers on PyPI -------------------------------------------------------------

def reader(name):
    """The module, whose own imports may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:  # an extension made for another torch
            pytest.skip(f"a reader of other programs' files: {error}")


def test_warpylib(made):
    import torch

    warpylib = reader("warpylib")
    scene, series, folder = made
    size = np.array([scene.shape[1], scene.shape[0]]) * PIXEL
    volume = np.array([*size, 132.0])
    read = warpylib.TiltSeries(str(folder / "warp" / "warp_tiltseries" / "gold.tomostar"))
    other = warpylib.TiltSeries(n_tilts=7)
    other.image_dimensions_physical = torch.tensor(size, dtype=torch.float32)
    start = folder / "warp" / "alignments" / "gold" / "gold"
    other.import_alignments(f"{start}.xf", PIXEL, f"{start}.tlt")
    for one in (read, other):
        one.volume_dimensions_physical = torch.tensor(volume, dtype=torch.float32)
        points = torch.tensor(tomogram_points() + volume / 2, dtype=torch.float32)
        seen = one.get_position_in_all_tilts_single(points).numpy().transpose(1, 0, 2)
        np.testing.assert_allclose(seen[..., :2] / PIXEL, pixels_of(series, scene.shape),
                                   atol=5e-3)
        assert found(scene, series.noise_free, seen[..., :2] / PIXEL) == 1
    # Its CTF of a particle: deeper along the beam is further under focus.
    depth = (read.get_position_in_all_tilts_single(points).numpy()[..., 2]).T * 1e4
    axis = np.deg2rad(AXIS)
    turns = Rotation.from_rotvec(np.deg2rad(series.tilts["tilt_angle"].to_numpy())[:, None]
                                 * [-np.sin(axis), np.cos(axis), 0]).as_matrix()
    np.testing.assert_allclose(depth, np.einsum("ni,mi->nm", turns[:, 2], POSITIONS), atol=0.01)
    assert read.ctf.voltage == 300 and read.ctf.pixel_size == PIXEL
    assert read.get_tilt_phase(0) == pytest.approx(5 / 180)


def test_cryoet_alignment(made):
    """All three programs' files are one alignment in its own form."""
    alignment = reader("cryoet_alignment")
    from cryoet_alignment.io.cryoet_data_portal import Alignment

    scene, _, folder = made
    imod = Alignment.from_imod(alignment.read(str(folder / "imod" / "gold"), reader="imod"))
    aretomo = Alignment.from_aretomo3(alignment.read(str(folder / "aretomo" / "gold.aln")))
    warp = Alignment.from_warp(alignment.read(
        str(folder / "warp" / "warp_tiltseries" / "gold.xml"), reader="warp"))
    half = np.array([n // 2 - (n - 1) / 2 for n in reversed(scene.shape)])
    other = np.array([n // 2 - n / 2 for n in reversed(scene.shape)])
    for a, b, c in zip(*(one.per_section_alignment_parameters for one in (imod, aretomo, warp)),
                       strict=True):
        assert a.tilt_angle == pytest.approx(b.tilt_angle, abs=6e-3)
        assert a.tilt_angle == pytest.approx(c.tilt_angle, abs=1e-4)
        for one in (b, c):
            np.testing.assert_allclose(one.in_plane_rotation, a.in_plane_rotation, atol=1e-6)
        offset = np.array([a.x_offset, a.y_offset])
        np.testing.assert_allclose([b.x_offset, b.y_offset], offset, atol=2e-3)
        np.testing.assert_allclose(np.array([c.x_offset, c.y_offset]) - other, offset - half,
                                   atol=2e-3)


def test_etomofiles_and_alnfile(made):
    etomofiles, alnfile = reader("etomofiles"), reader("alnfile")
    _, series, folder = made
    etomo = etomofiles.read(folder / "imod")
    np.testing.assert_allclose(etomo["tlt"], series.tilts["tilt_angle"], atol=1e-4)
    assert set(etomo["tilt_axis_angle"]) == {AXIS} and not etomo["excluded"].any()
    rows = alnfile.df_to_xf(alnfile.read(folder / "aretomo" / "gold.aln"))
    np.testing.assert_allclose(rows, etomofiles.df_to_xf(etomo), atol=2e-3)


def test_torch_tomogram(made):
    """It projects specimen points of a tilt axis along y; its translations are ours."""
    reader("torch_tomogram")
    import torch
    from torch_tomogram import Tomogram

    scene, series, folder = made
    tomogram = Tomogram(
        np.loadtxt(folder / "imod" / "gold.tlt"), np.full(7, AXIS),
        series.tilts[["shift_y", "shift_x"]].to_numpy() / PIXEL,
        torch.as_tensor(mrcfile.read(folder / "imod" / "gold.mrc")))
    seen = tomogram.project_points(tomogram_points()[:, ::-1].copy() / PIXEL).numpy()
    places = seen.transpose(1, 0, 2)[..., ::-1] + [scene.shape[1] // 2, scene.shape[0] // 2]
    np.testing.assert_allclose(places, pixels_of(series, scene.shape), atol=2e-3)
