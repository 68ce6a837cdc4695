"""Why two runs differ: what was not the same, where the time went, and what is the cause.

`recup.compare.comparison` holds a whole comparison; the other modules one part of it each.
"""
