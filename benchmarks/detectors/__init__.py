"""How soon detectors tell a change in a stream of numbers, at equal false alarms: `python -m benchmarks.detectors`."""
