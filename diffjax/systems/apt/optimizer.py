"""RMSProp as APT takes it, for generator and discriminator alike."""

import optax


def rmsprop(decay: float = 0.9, eps: float = 1e-8) -> optax.GradientTransformation:
    """g/(sqrt(nu) + eps) with nu <- decay nu + (1 - decay) g^2 from 0: the direction, without rate.

    Lin et al. 2025a: decay 0.9, no weight decay, no clipping; half the state of Adam.

    eps is outside the root, as in PyTorch: inside, it would damp every gradient below 1e-4. There
    is no bias correction, which is where it differs from Adam with b1 = 0: step k is larger by
    1/sqrt(1 - decay^k), 3.16 at first. A gradient that is 0 moves nothing; one that is 0 but for
    rounding moves its parameter by about the rate, so leave such parameters out.
    """
    return optax.scale_by_rms(decay=decay, eps=eps, eps_in_sqrt=False, bias_correction=False)
