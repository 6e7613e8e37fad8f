# _native.c. Addresses are of dense float64 arrays that outlive the call and are not moved meanwhile.

# Follows `streams` streams for `steps` steps: `values`, `evidence` and `scores` are [steps, streams] (`scores` may be 0: not
# wanted), `state` is [rows, streams], `first` is [calibration, streams].
def follow(values: int, steps: int, streams: int, settings: int, state: int, first: int, evidence: int, scores: int, /) -> None: ...

# How many rows the state has, how many settings there are, and how many values a stream is calibrated by.
def sizes() -> tuple[int, int, int]: ...
