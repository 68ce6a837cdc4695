"""recup records what a Dask workload did and answers questions about it afterwards."""

__version__ = "0.1.0"
