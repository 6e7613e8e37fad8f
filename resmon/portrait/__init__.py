"""A run as it shows itself in a notebook: in words, as a table of its blocks, and as pictures.

What is shown is read from the flight on disk, at the moment that it is shown, by the same readers as the agent's page: nothing of a
live model is touched, and neither pandas nor plotly is imported. `facts` reads, `picture` draws, `words` writes, `flight` is the
flight that `resmon.load` gives.
"""
