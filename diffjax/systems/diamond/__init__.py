"""DIAMOND: a diffusion model as a world in which a policy learns (Alonso et al. 2024)."""
