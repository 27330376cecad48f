"""APT's three stages on eight Gaussians: a flow, its distillation, and what D makes of that."""

import apt_ring
import pytest

from diffjax.systems.apt.alternation import Settings


@pytest.mark.slow
def test_three_stages():
    base = apt_ring.pretrained(2000)
    many, one = (apt_ring.scores(apt_ring.samples(base, steps)) for steps in (25, 1))
    assert many["modes"] == 8 and many["distance"] < 0.15 and many["sharp"] > 0.6
    # One step of a flow is the mean of the data.
    assert one["modes"] == 0 and one["distance"] > 0.8

    student = apt_ring.distilled(base, 300)
    blurred = apt_ring.scores(apt_ring.samples(student, 1))
    assert blurred["distance"] < 0.3 and blurred["sharp"] < 0.8 * many["sharp"]

    generator, metrics = apt_ring.post_trained(student, base, Settings(sigma=0.1), 300, 2e-4)
    assert metrics["loss_d"][0] == pytest.approx(1.386294, abs=1e-5)
    sharp = apt_ring.scores(apt_ring.samples(generator, 1))
    print(many, one, blurred, sharp, sep="\n")
    assert sharp["sharp"] > 1.25 * blurred["sharp"]
    assert sharp["distance"] < 0.85 * blurred["distance"]
    assert sharp["modes"] == 8
