"""The first stage of the tiny relay: emoji at 12x12, 20 steps. Then `configs/relay_tiny.py`."""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("edm_tiny.py"))
    config.name = "relay_tiny_base"
    config.data.image_size = 12
    return config
