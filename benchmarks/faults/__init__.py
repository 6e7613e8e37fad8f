"""The fault bench: faults of known kind, place and step are put into small trainings; what resmon says is held against the truth.

`architectures` are what is trained and say by hand which modules make a block; `injection` breaks one operation of a pass;
`kinds` is the table of faults, which `nonfinite`, `course`, `structure` and `processes` make; `trial` is what all of them do: train
as a user would and read what a user gets; `healthy` are long trainings in which nothing
is wrong; `comparison` puts the same faults before two alternatives; `report` writes the page. `python -m benchmarks.faults` runs
it all.
"""
