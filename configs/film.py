"""Films of 16 frames at 64x64 on one GPU: `--config.data.path=FOLDER` of GIFs, or a .npz.

An MMDiT on patches of two frames by 4x4 pixels, 2048 tokens a film. Noise levels are those of
rectified flow, shifted to more noise: frames repeat each other, and noise has to drown all of them.
`configs/apt.py` with this run for a base makes it a one-step generator; docs/apt.md has the flags.
"""

from pathlib import Path

from diffjax.run.cli import load_config


def get_config():
    config = load_config(Path(__file__).with_name("emoji.py"))
    config.name = "film"
    config.update(steps=30_000, batch_size=64, checkpoint_every=2_000, sample_every=5_000)
    config.num_samples = 16
    # frames of a film, of which others are sampled in time; "dots": films made on the spot
    config.data.update(path="", frames=16, balanced=False)
    config.network = {
        "kind": "mmdit",
        "width": 384,
        "depth": 12,
        "heads": 6,
        "class_tokens": 1,
        "patch": 4,
        "patch_frames": 2,  # 1: its weights can start from a run on pictures (--init_from)
        "modulation": "adaln",
        "feed": "gelu",
        "time_scale": 100.0,
        "scan": True,
        "remat": True,
        "dtype": "bfloat16",
    }
    # logit t ~ N(p_mean, p_std^2): p_mean is the log of a shift of times, wide enough to end clean
    config.diffusion.update(times="logitnormal", p_mean=0.4, p_std=1.6, stratified=True)
    config.optimizer.update(learning_rate=3e-4, warmup_steps=1000)
    config.ema.ema.decay = 0.9995
    config.sampling.update(steps=24, guidance=1.5, sigma_min=0.02, sigma_max=160.0)
    return config
