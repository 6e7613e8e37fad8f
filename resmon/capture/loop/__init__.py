"""One training loop, step by step: from what the hooks hear to the records that are handed on.

`session` is the loop as it is told here. `model` decides which passes count and keeps the hooks where they belong (`sleepers` are
modules that have not run yet), `optimizers` when gradients are read and a step is over, `clock` where its time went; `drafts`
make its record of all that, and `outbox` hands it on in its turn.
"""
