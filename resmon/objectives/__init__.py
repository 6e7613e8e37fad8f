"""Service level objectives: what share of what happens must be good, and who is told how fast that is being missed.

An objective stands in a file (`spec`), is watched over windows (`windows`), and becomes rules for Prometheus (`rules`) with their
own unit tests (`proofs`). What is left of each budget, `budgets` asks of a server that has them.
"""
