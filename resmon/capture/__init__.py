"""Inside the training process, and the only room that imports torch.

Its own rooms stand one above the other, and each imports only those before it: `host`, `discovery`, `probes`, `gradients`,
`fitting`, `forensics`, `loop`. The compiled `_native` reads tensors in main memory for all of them.
"""

from resmon.capture.host import requirement

requirement.check()  # before torch's private parts are imported by any of the others
