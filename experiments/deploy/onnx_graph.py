"""A graph of ONNX operators, written node by node."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 20  # The first with Gelu.
_IR_VERSION = 9  # The oldest that has it.
_LARGEST = 2**31 - 2**20  # Bytes; protobuf takes no message of 2 GiB.


class Graph:
  """Nodes and constants; values are known by their names."""

  def __init__(self):
    self._nodes: list[onnx.NodeProto] = []
    self._constants: dict[tuple, tuple[str, np.ndarray]] = {}

  def add(self, operator: str, *inputs: str, **attributes) -> str:
    """Appends a node of one output, and returns the output's name."""
    return self.add_many(operator, *inputs, outputs=1, **attributes)[0]

  def add_many(
    self, operator: str, *inputs: str, outputs: int, **attributes
  ) -> list[str]:
    """The same with several outputs."""
    index = len(self._nodes)
    names = [f"{operator}_{index}_{i}" for i in range(outputs)]
    node = helper.make_node(operator, inputs, names, f"n{index}", **attributes)
    self._nodes.append(node)
    return names

  def constant(self, value, dtype=np.float32) -> str:
    """The name of an array, which equal ones share."""
    array = np.ascontiguousarray(np.asarray(value, dtype))
    if np.ndim(value) == 0:
      array = array.reshape(())
    key = array.shape, array.dtype.str, array.tobytes()
    name, _ = self._constants.setdefault(
      key, (f"c{len(self._constants)}", array)
    )
    return name

  def integers(self, *values: int) -> str:
    """A vector of int64, as shapes and axes are given."""
    return self.constant(values, np.int64)

  def reshape(self, x: str, *shape: int) -> str:
    """0 keeps a dimension, and one -1 takes what is left."""
    return self.add("Reshape", x, self.integers(*shape))

  def transpose(self, x: str, *axes: int) -> str:
    return self.add("Transpose", x, perm=axes)

  def unsqueeze(self, x: str, *axes: int) -> str:
    return self.add("Unsqueeze", x, self.integers(*axes))

  def model(
    self,
    inputs: dict[str, tuple[int, list[str]]],
    output: str,
    shape: list[str | int],
  ) -> onnx.ModelProto:
    """The model; its output is called "logits", float32 of `shape`.

    Args:
      inputs: name -> (onnx.TensorProto type, dimensions); a string names a
        dimension whose size is open.
      output: name of the value that is the output.
      shape: of the output.

    Raises:
      ValueError: it is larger than one file may be.
    """
    size = sum(array.nbytes for _, array in self._constants.values())
    if size > _LARGEST:
      raise ValueError(
        f"the model's weights are {size:,} bytes, but an ONNX file holds at"
        f" most {_LARGEST:,}: simplify it further"
      )
    self._nodes.append(helper.make_node("Identity", [output], ["logits"]))
    graph = helper.make_graph(
      self._nodes,
      "backslash_jax",
      [helper.make_tensor_value_info(n, *v) for n, v in inputs.items()],
      [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape)],
      [numpy_helper.from_array(a, n) for n, a in self._constants.values()],
    )
    model = helper.make_model(
      graph,
      producer_name="backslash_jax",
      opset_imports=[helper.make_opsetid("", OPSET)],
    )
    model.ir_version = _IR_VERSION
    return model
