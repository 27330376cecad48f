"""diffjax: diffusion models in JAX and Flax."""
