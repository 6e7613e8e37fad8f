"""The detectors run again over a recorded run, as it was recorded or with other settings.

`detection` runs them, `comparison` sets what they say beside what the agent wrote and beside what other settings give, `report`
says it in a terminal or as JSON.
"""
