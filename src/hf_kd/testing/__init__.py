"""What every method, probe and attack owes, as test classes to inherit: for one of your own, and for those of this package.

    from hf_kd.testing import EraserTester

    class TestMeanDirection(EraserTester):
        method = MeanDirection()

Run it with pytest. hf_kd itself never imports this package.
"""

from .erasers import EraserTester, PlantedFeatures
from .probes import AttackTester, ProbeTester
from .unlearning import UnlearningTester

__all__ = ["AttackTester", "EraserTester", "PlantedFeatures", "ProbeTester", "UnlearningTester"]
