"""The second stage made tiny: emoji from 12x12 to 24x24, 20 steps, on top of relay_tiny_base."""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("edm_tiny.py"))
    config.update(name="relay_tiny", system="relay")
    config.parent = "runs/relay_tiny_base"
    config.diffusion = ConfigDict(
        {
            "patch": 2,  # how many times larger: a number, or (height, width)
            "blur_max": 1.5,  # pixels; 3/4 of the patch leaves 6 % of its lowest frequency
            "quantile": 0.93,  # L: the share of the log-normal noise levels that is trained
            "block": 0.15,  # alpha: weight of the block noise
            "block_size": 0,  # of its kernel; 0: the patch
            "floor": 0.001,  # what the blur leaves at least
            "normalize": False,  # True: noise of unit variance, as in the paper; not as released
            "sigma_data": 0.7,
            "p_mean": -1.2,
            "p_std": 1.2,
            "label_dropout": 0.1,
        }
    )
    config.sampling = ConfigDict({"steps": 18, "truncation": 0.9, "eta": 0.2})
    return config
