import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.metrics.inception_score import inception_score


@pytest.mark.parametrize("split_size", [5000, 250, 100])
def test_meets_the_golden(golden, split_size):
    got = inception_score(golden["probs"], split_size)
    np.testing.assert_allclose(got, golden[f"is_split{split_size}"], rtol=1e-6)


def test_closed_forms():
    # Sure of each and all classes equally often: the number of classes. Undecided: one.
    np.testing.assert_allclose(inception_score(np.tile(np.eye(7), (3, 1))), 7, rtol=1e-12)
    np.testing.assert_allclose(inception_score(np.full((9, 5), 0.2)), 1, rtol=1e-12)
    # Splits that each hold one class know no variety; the last one is shorter.
    assert inception_score(np.repeat(np.eye(3), [4, 4, 2], 0), split_size=4) == 1


def test_nothing_to_score_is_a_user_error():
    with pytest.raises(UserError, match="0 samples"):
        inception_score(np.zeros((0, 3)))
