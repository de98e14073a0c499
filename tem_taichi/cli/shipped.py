"""The microscopes, detectors, specimens and particles that a scene can choose, for people."""

from dataclasses import fields

import yaml

from tem_taichi.device import as_tensor
from tem_taichi.noise.detector import quantum_efficiency
from tem_taichi.scene.load import CONFIG_FOLDER
from tem_taichi.scene.particle import SOURCES
from tem_taichi.scene.show import documentation
from tem_taichi.series.camera import detector_from_config


def print_shipped() -> None:
    """Print a line for each, with what its file says first; of a detector also its DQE."""
    for group in ("microscope", "detector", "specimen"):
        print(f"{group}s (choose with {group}=NAME)"
              + ("; DQE at 0, half and full Nyquist" if group == "detector" else ""))
        for file in sorted((CONFIG_FOLDER / group).glob("*.yaml")):
            text = file.read_text(encoding="utf-8")
            summary = text.partition("\n")[0].lstrip("# ")
            if group == "detector":
                curve = quantum_efficiency(as_tensor([0.0, 0.25, 0.5]),
                                           detector_from_config(yaml.safe_load(text)))
                summary += "; DQE " + ", ".join(f"{value:.2f}" for value in curve.tolist())
            print(f"  {file.stem:22}{summary}")
    print("particles (one of these keys, and others; --show says what they mean)")
    for key, kind in SOURCES.items():
        others = ", ".join(field.name for field in fields(kind) if field.name != key)
        print(f"  {key:22}{documentation(kind)[key]}" + (f"; {others}" if others else ""))
