"""How many arrays there are at a time."""

import weakref


class Alive:
  """Wraps a function whose arrays it counts, until they are gone."""

  def __init__(self, function):
    self.function, self.now, self.most = function, 0, 0

  def __call__(self, *args):
    result = self.function(*args)
    self.count(result)
    return result

  def count(self, array):
    self.now += 1
    self.most = max(self.most, self.now)
    weakref.finalize(array, self.drop)

  def drop(self):
    self.now -= 1
