"""The Inception score: how sure a classifier is of each sample, and how varied its answers are."""

import chex
import numpy as np
from scipy.special import entr

from diffjax.errors import UserError


def inception_score(probs, split_size: int = 5000) -> float:
    """Returns the mean over splits of exp(mean_x KL(p(y|x) || p(y))), in [1, classes].

    Salimans et al. 2016, "Improved Techniques for Training GANs", section 4, with splits as in
    guided-diffusion's evaluator: consecutive, of `split_size` samples, the last one maybe shorter.
    Only scores of one classifier, at one split size, compare; the published ones are Inception's.

    Args:
      probs: [n, classes], rows that sum to 1.
      split_size: samples a split.

    Raises:
      UserError: no samples, or a split size below 1.
    """
    chex.assert_rank(probs, 2)
    if not len(probs) or split_size < 1:
        raise UserError(f"no Inception score of {len(probs)} samples in splits of {split_size}")
    scores = []
    for start in range(0, len(probs), split_size):
        p = np.asarray(probs[start : start + split_size], np.float64)
        # The mean KL is the entropy of the mean less the mean entropy, where 0 log 0 = 0.
        scores.append(np.exp(entr(p.mean(0)).sum() - entr(p).sum(1).mean()))
    return float(np.mean(scores))
