"""Reports of runs: documents made of `recup.analyse`'s answers, and one HTML file of a document.

It holds no conclusions of its own: what is said stands in `recup.analyse`.
"""
