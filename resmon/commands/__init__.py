"""The verbs of the command `resmon`, a module each: what one may say to it, and what it prints.

A verb is a function whose arguments typer reads. It imports what it needs when it runs, so that the help comes at once. `runs`
finds the runs that are named; resmon/cli.py has the table of all verbs.
"""
