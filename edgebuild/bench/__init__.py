"""Measures a model in edgebuild's runtime and in those that people use today, and each operator beside its limits.

`measure.py` is `edgebuild bench`, `profile.py` is `edgebuild profile`. `case.py` gathers what is measured, `peers/`
holds one adapter a peer, `engines.py` starts each in a process of its own, `rounds.py` lets them run in turns,
`peak.py` finds out what the machine could do. `document.py` names the keys of what comes out.
"""
