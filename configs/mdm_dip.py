"""Motions without an end: each 40 frames go on from the 20 before them (DiP, Tevet et al. 2025).

A decoder over the words of a text, 10 steps of diffusion. The published model has 512 wide layers
and DistilBERT's words (--config.text.encoder=folder --config.text.folder=FOLDER); here the small
encoder is trained along, and data.path is a folder of .bvh files, or HumanML3D's.
"""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("mdm_bvh.py"))
    config.name = "mdm_dip"
    config.network.update(kind="trans_dec", emb_trans_dec=False, emb_policy="add")
    config.diffusion.update(steps=10, context=20, predict=40)
    config.data.crop = 0
    config.loss.velocity = 1.0
    config.sampling.update(guidance=2.5, ease=20, blend=10, seconds=10.0)
    return config
