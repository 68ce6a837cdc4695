"""`recup serve`: the runs under a root as pages of a browser, on this machine.

Covers the list of runs, the report of one and of several compared, and a page that follows
a run still growing.  `server` answers requests, `root` says what may be opened, `reports`
has reports made, and `live` reads a growing run (`stream_tail`, `lanes`, `progress`).

It shows what is recorded and changes nothing.  It is no service for many users: whoever has
its address, token included, reads every run of the root.
"""
