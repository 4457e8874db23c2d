"""python -m experiments.bench.serve FILE LENGTH: the memory of serving a model.

Prints the bytes that a process with NumPy and ONNX Runtime alone holds at most
while it runs an ONNX file on batches of 32 sequences of LENGTH tokens.
"""

import pathlib
import sys

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
tokens = np.random.default_rng(0).integers(32, 127, (32, int(sys.argv[2])))
mask = np.ones(tokens.shape, bool)
for _ in range(20):
  session.run(None, {"tokens": tokens.astype(np.int32), "mask": mask})
status = pathlib.Path("/proc/self/status").read_text()
(line,) = (x for x in status.splitlines() if x.startswith("VmHWM:"))
print(1024 * int(line.split()[1]))
