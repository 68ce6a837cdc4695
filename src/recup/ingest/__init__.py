"""Files of other tools made into rows of a run.

Covers reading them and writing what they say into the run's spool.  It does not cover
joining them with tasks (`recup.fuse`).
"""
