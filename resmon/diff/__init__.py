"""Comparison of runs: is the new kind of run worse than the old one?

Two kinds of runs, A and B, each of one run or of several that differ by their seed, are compared at the steps that all of them have
(runs.py reads those from the flights, comparison.py does the rest). The unit is the run: each run gives one level per quantity, and
two kinds differ where their levels lie further apart than the spread between runs of one kind explains (effects.py). Steps of one
run are no repetitions of each other, so one run of each kind shows a difference and never a cause. What is better, less or more,
stands in resmon.scores.directions; report.py says it all in a terminal or as JSON.

A run is also compared with what its blocks put out while it was well, kept in a file: baseline.py.

pandas and scipy are used here, on demand; no training process comes here.
"""
