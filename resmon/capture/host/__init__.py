"""The process and the torch that we are guests in: what they tell of themselves, and how we get along with both.

`requirement` says which torch all of this needs, and `compiler` what torch.compile does with hooks. `hook` and `interception` are
the two ways to hear of what others do. `fetch` brings numbers from a device, `placement` knows what share of a gradient is on
this rank, `randomness` the states that random numbers are drawn from. `process` and `memory` tell of the process itself, `spans`
in which span of a trace the loop is, `stack` where an exception arose; `last_words` mark the end where Python cannot.
"""
