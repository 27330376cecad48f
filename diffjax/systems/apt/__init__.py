"""APT: adversarial post-training, a one-step generator of a diffusion model (Lin et al. 2025a)."""
