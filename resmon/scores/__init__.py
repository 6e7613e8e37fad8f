"""What is known of a score that a run logs, from its name alone.

`directions` says which way is better, `gaps` pairs validation with training, `targets` are what a run is to reach.
"""
