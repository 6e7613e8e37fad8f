"""resmon where somebody else holds the loop: frameworks' callbacks, and scripts that are not to be changed.

Each module is imported by who uses it and needs the package that it is named after.
"""
