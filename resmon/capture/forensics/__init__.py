"""Why a step or a run went wrong: which block, which line, and what repeats it elsewhere.

`nonfinite` notices values that are NaN or infinite. `references` are what is kept of a step's passes for that, `replay` does one
again and leaves no trace, `birth` finds where in it the first such value was made, `origin` makes the incident of it, and
`capsule` lets it be repeated elsewhere. `failures` says what an exception means, by the table of `diagnoses`: shapes, or memory
that was `out_of_memory`.
"""
