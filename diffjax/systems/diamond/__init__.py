"""DIAMOND: diffusion as a world model, and a policy trained inside it (Alonso et al. 2024)."""
