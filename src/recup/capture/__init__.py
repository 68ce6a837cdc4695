"""Everything that runs inside somebody else's workload.

Nothing here imports pyarrow, duckdb or the analysis side of recup; nothing here raises
into Dask, blocks an event loop or keeps a user's object alive.
"""
