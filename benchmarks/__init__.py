"""What watching costs: step time with and without resmon, and with and without its alternatives. `python -m benchmarks.run` is the command."""
