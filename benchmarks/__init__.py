"""What watching costs: step time with and without resmon, and likewise for its alternatives (`python -m benchmarks.run`)."""
