"""Configurations: composed by Hydra, turned into objects in one place, saved and loaded as plain YAML.

A configuration is the object graph of a run: ``compose`` reads ``conf/<verb>.yaml`` and its groups, ``instantiate``
builds what a node's ``_target_`` names.  Every mistake in an override is a ``ValueError`` of one line that names the
key, the offending value and the nearest valid name.
"""

from __future__ import annotations

from stdetr.config.composition import compose
from stdetr.config.files import RunPaths, load_config, save_config
from stdetr.config.folder import config_dir
from stdetr.config.instantiation import instantiate, trusting

__all__ = ["RunPaths", "compose", "config_dir", "instantiate", "load_config", "save_config", "trusting"]
