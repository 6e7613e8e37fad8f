"""The post-mortem: what a flight tells of a run that broke, for the people who will talk about it.

`case` reads a flight, however long or damaged, into what the report rests on; `departures` finds what left its usual range first
and what followed; `timeline` puts that, incidents, findings and checkpoints in one order; `causes` is the table of the ways in
which a residual network fails, and `arithmetic`, `training` and `ending` put what speaks for and against each on the scales of
`evidence`. `report` puts it together; `page`, with `figures`, and `markdown` say it.
Nothing here needs torch, a network or the machine that the run was on.
"""
