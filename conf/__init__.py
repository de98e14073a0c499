"""Hydra's configuration groups; importing this makes the defaults of every key known to it."""

from dataclasses import asdict

from hydra.core.config_store import ConfigStore

from tem_taichi.config import Scene

ConfigStore.instance().store(name="scene_schema", node=asdict(Scene()))
