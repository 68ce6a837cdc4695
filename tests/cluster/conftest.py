from tests.cluster.compared import compared
from tests.cluster.troubled import opened, troubled

__all__ = ["compared", "opened", "troubled"]
