"""What is taken at a residual add while the model trains, and the numbers that it becomes.

`taps` are the hooks, `cells` what they write inside of compiled graphs; `channel` gathers the numbers of one site, which
`columns` names. `sums` and `sample` read tensors in main memory, and `accelerator` has a GPU read its own. Now and then
`positions` are looked at, the inputs of the `layers` that end branches, the batch `norms`, and what autograd keeps
(`activations`); `keeping` tells dropped samples, `inputs` what the model is given.
"""
