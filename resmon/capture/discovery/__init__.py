"""Which adds of a model are residual, by the dataflow of one forward pass.

`dataflow` traces the pass, `rule` judges its adds, `survey` names them, `operations` says what lies on their ways, and `sites`
puts it together for `resmon.discover`. `marker` is the explicit add, `registration` hears of new modules, `target` is the model
that a command names.
"""
