"""The Human Motion Diffusion Model and its planner DiP (Tevet et al. 2023 and 2025)."""
