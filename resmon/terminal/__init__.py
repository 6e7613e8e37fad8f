"""What a terminal shows: a run (`tail` follows its flight, `view` draws it), what broke in it (`incidents`), what a model's check
says (`verdict`), what a capsule holds (`explanation`). `demo` is a run to look at.
"""
