"""Questions about one run, each a function that takes a `Run` and returns a table or plain document.

Covers the first page of a run (`overview`), what was recorded of it (`coverage`) and the
life of one task (`story`).  It does not cover views that join layers (`recup.fuse`), the
losses (`recup.completeness`), nor how answers are printed (`recup.terminal`).
"""
