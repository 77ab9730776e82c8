"""What every method owes, as test classes to inherit: for a method of your own, and for those of this package.

    from hf_kd.testing import EraserTester

    class TestMeanDirection(EraserTester):
        method = MeanDirection()

Run it with pytest. hf_kd itself never imports this package.
"""

from .erasers import EraserTester, PlantedFeatures
from .unlearning import UnlearningTester

__all__ = ["EraserTester", "PlantedFeatures", "UnlearningTester"]
