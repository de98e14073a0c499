"""What a run of scenes would compute, without computing or writing it."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from tem_taichi.cli.run import check_output, prepare
from tem_taichi.files.unfinished import unfinished_folder
from tem_taichi.machine import duration, size
from tem_taichi.scene.settings import Scene, doubts
from tem_taichi.series.cost import check_time
from tem_taichi.series.plan import Plan, by_rule, slices_for
from tem_taichi.series.simulate import images_there, records_of
from tem_taichi.series.trial import foreseen_time
from tem_taichi.sharing import Sharing
from tem_taichi.specimen.particles import ParticlesInIce

_MUCH = 1e8
"""Disk that is worth a word [bytes]."""


def check(scenes: Sequence[Scene], read: Sequence[str], swept: bool) -> None:
    """Say what would be done with each scene; `read` as in `prepare`.

    Raises:
        ValueError: if one of them cannot run.
    """
    seconds = 0.0
    for scene in scenes:
        planned, specimen = prepare(scene, read, may_exist=True)
        records = records_of(scene, planned, unfinished_folder(scene.output))
        kept = images_there(records, Sharing())
        seconds += _describe(scene, planned, specimen, kept)
        if kept:
            print(f"{len(kept)} of {len(planned.exposures)} images are there already, of an "
                  "interrupted run; the time is that of the others")
        if records.bytes >= _MUCH:
            print(f"finished images take {size(records.bytes)} of disk until the output is whole")
        try:
            check_output(scene, read)
            print(f"would write {scene.output}")
        except ValueError as error:
            print(f"note: {error}")
    if swept:
        print(f"{len(scenes)} runs, about {duration(seconds)} in all")


def _describe(
    scene: Scene, grids: Plan, specimen: ParticlesInIce, kept: Collection[int]
) -> float:
    """Say what would be done; returns the seconds that it would take beside images kept."""
    seconds = foreseen_time(scene, grids, specimen, kept)
    check_time(scene, seconds, len(grids.exposures))
    angles, instrument = grids.tilts["nominal_angle"], grids.instrument
    kinds = ", ".join(f"{len(pose.positions)} {kind.name}"
                      for kind, pose in zip(specimen.kinds, specimen.poses, strict=True))
    found = doubts(scene)
    print(f"The scene {'can run, but see the warnings' if found else 'is sound'}. "
          f"{kinds or 'no particles'} ({specimen.n_scatterers:,} scatterers) in "
          f"{scene.specimen.ice.thickness:g} A of ice")
    print(f"{len(angles)} images of {scene.shape[0]} x {scene.shape[1]} pixels of "
          f"{scene.pixel_size:g} A, tilts {angles.min():g} to {angles.max():g} deg, "
          f"{grids.tilts['dose'].sum():g} e-/A^2 in all")
    slices = (f" in slices of {instrument.slice_thickness:g} A" if instrument.mode == "multislice"
              else "")
    print(f"waves on {instrument.wave_shape[0]} x {instrument.wave_shape[1]} pixels of "
          f"{instrument.wave_pixel:.4g} A, {scene.interaction.mode}{slices}; about "
          f"{size(grids.memory)} of memory, {duration(seconds)}")
    for doubt in found:
        print(f"warning: {doubt}")
    enough = by_rule(scene)
    if instrument.mode == "multislice" and instrument.slice_thickness > enough:
        free, depth = slices_for(replace(scene, interaction=replace(
            scene.interaction, slice_thickness=None)))
        print(f"note: slices of {instrument.slice_thickness:g} A; {enough:g} A keep the error "
              "of images below 1 %, and so does interaction.slice_thickness=null: "
              f"{free:g} A, depth {depth}")
    return seconds
