"""Inside the training process, and the only room that imports torch.

`discovery` finds the residual adds of a model in one traced forward pass (`dataflow` traces, `rule` judges, `naming` names);
`taps` take the operands where the add happens in every later pass; `sums` and `sample` turn a tensor into numbers;
`gradients` reads the parameters' gradients when `optimizers` says so, which hears of steps, of `clipping` and of a `scaler`
through `interception`; `session` gathers a step's numbers and hands them on as records.
"""
