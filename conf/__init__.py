"""Hydra's configuration groups; importing this makes their schema known."""

from hydra.core.config_store import ConfigStore

from tem_taichi.config import Scene

ConfigStore.instance().store(name="scene_schema", node=Scene)
