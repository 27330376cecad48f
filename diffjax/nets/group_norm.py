"""Group normalisation (Wu & He 2018) with what stands around it in a UNet folded in.

The statistics are taken channel by channel, then joined to groups as [B, C] arrays. So what is
constant over a picture (an embedding that is added before, a scale and shift after) costs nothing
per pixel, and two tensors that the next layer wants side by side need not be joined first.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class GroupNorm(nn.Module):
    """x [B, H, W, C] -> [B, H, W, C] in `dtype`; statistics, and all arithmetic, in float32.

    Attributes:
      groups: how many; C is a multiple of it.
      eps: added to the variance, which is E[x^2] - E[x]^2.
      affine: whether it has parameters of its own, `scale` and `bias`.
    """

    groups: int
    eps: float
    dtype: jnp.dtype
    affine: bool = True

    @nn.compact
    def __call__(self, x, before=None, after=None):
        """Normalises.

        Args:
          x: [B, H, W, C], or a tuple of such tensors that stand for their concatenation.
          before: float32 [B, C], added to x.
          after: float32 (scale, shift), [B, C] each: the result is that of the norm times
            (scale + 1) plus shift.

        Returns:
          [B, H, W, C], joined.
        """
        parts = [part.astype(jnp.float32) for part in (x if isinstance(x, tuple) else (x,))]
        widths = [part.shape[-1] for part in parts]
        batch, channels = parts[0].shape[0], sum(widths)
        scale, bias = jnp.ones(()), jnp.zeros(())
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (channels,))
            bias = self.param("bias", nn.initializers.zeros, (channels,))

        def mean(values):
            return jnp.concatenate([jnp.mean(v, (1, 2)) for v in values], -1)

        first, second = mean(parts), mean([jnp.square(part) for part in parts])  # [B, C]
        if before is not None:
            first, second = first + before, second + before * (2 * first + before)
        joined = jnp.stack([first, second]).reshape(2, batch, self.groups, -1)
        first, second = jnp.mean(joined, -1, keepdims=True)
        var = jnp.maximum(second - jnp.square(first), 0)
        per_channel = lambda a: jnp.broadcast_to(a, joined.shape[1:]).reshape(batch, channels)
        scale = scale * per_channel(jax.lax.rsqrt(var + self.eps))
        shift = bias - per_channel(first) * scale
        if before is not None:
            shift = shift + before * scale
        if after is not None:
            scale, shift = scale * (after[0] + 1), shift * (after[0] + 1) + after[1]
        out, start = [], 0
        for part, width in zip(parts, widths):
            cut = lambda a: a[:, None, None, start : start + width]  # noqa: B023
            out.append((part * cut(scale) + cut(shift)).astype(self.dtype))
            start += width
        return out[0] if len(out) == 1 else jnp.concatenate(out, -1)
