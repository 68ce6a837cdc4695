from tests.cluster.troubled import troubled

__all__ = ["troubled"]
