"""Whether a model fits together, fits into memory and can learn, and what would mend it where it does not.

`rehearsal` goes through a model on stand-ins (`fakes`), past what does not fit (`mends`); `fixes` and `trials` try what would
help there. `shapes` tells it of a run that failed, `check` of a model before one, with `requisites` in memory and
`initialisation`.
"""
