"""The trellis of dependent quantization: which quantizer a symbol belongs to.

Two quantizers take turns. Of the even one, symbol q stands for the value q, in
steps; of the odd one, for q - sign(q) / 2. A machine of 64 states says which of
them quantizes the next value, and the parity of each symbol moves it. So both
together have the levels of half a step, while a symbol takes about the bits of
one of a whole step.

The symbols of a matrix in row-major order are dealt to many such machines in
turn, which run side by side.

Sources: Marcellin & Fischer, Trellis coded quantization of memoryless and
Gauss-Markov sources, IEEE Trans. Comm. 38, 1990; the machine is the code of 64
states of Ungerboeck, Channel coding with multilevel/phase signals, IEEE Trans.
Inf. Theory 28, 1982; symbols that are even or odd are the subsets of levels as
in the dependent quantization of ISO/IEC 15938-17.
"""

import numpy as np

STATES = 64
_STATE = np.arange(STATES)
_EVEN = (_STATE >> 1) ^ (33 * (_STATE & 1))
# The next state by 2 * state + parity of the symbol. Odd states have the odd
# quantizer. All machines begin in state 0.
NEXT = np.stack([_EVEN, _EVEN ^ 10], axis=1).ravel().astype(np.uint8)
_LENGTH = 256  # Symbols that a machine codes at least, if there are so many.
_MAX_WIDTH = 4096


def width(size: int) -> int:
  """The number of machines for `size` symbols."""
  return min(max(size // _LENGTH, 1), _MAX_WIDTH)


def start(size: int) -> np.ndarray:
  """The states of the machines before the first symbol, uint8."""
  return np.zeros(width(size), np.uint8)


def is_odd(symbols: np.ndarray) -> np.ndarray:
  """Whether each symbol belongs to the odd quantizer, uint8, as `symbols`.

  Args:
    symbols: integers, of any shape; all the symbols of a piece.
  """
  flat = symbols.ravel()
  moves = (flat & 1).astype(np.uint8)
  states = np.empty(flat.size, np.uint8)
  state = start(flat.size)
  for first in range(0, flat.size, state.size):
    own = slice(first, first + state.size)
    move = moves[own]
    states[own] = state[: move.size]
    state[: move.size] = NEXT.take(2 * state[: move.size] + move)
  return (states & 1).reshape(symbols.shape)


def levels(symbols: np.ndarray, odd: np.ndarray | None = None) -> np.ndarray:
  """The values of symbols as multiples of half a step, of their own shape.

  Args:
    symbols: integers of magnitude below 2**30; all the symbols of a piece.
    odd: what `is_odd` returns for them, if that is known.
  """
  odd = is_odd(symbols) if odd is None else odd
  return 2 * symbols - np.sign(symbols) * odd
