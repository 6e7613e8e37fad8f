"""The runbooks: what a failure means, how to look into it, what to do.

`pages` are the runbooks as they are in every installation, `diagnosis` is a runbook for one run, with what its commands print.
"""
