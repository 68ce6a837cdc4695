from tests.cluster.compared import compared
from tests.cluster.troubled import troubled

__all__ = ["compared", "troubled"]
