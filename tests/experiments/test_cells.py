"""Several processes at one plan."""

import concurrent.futures
import fcntl
import subprocess
import sys
import threading

import ml_collections
import pytest

from experiments import cells, resume
from tests import tiny

_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def _plan(directory):
  return [
    cells.Cell(
      name=name,
      config=ml_collections.ConfigDict(),
      directory=directory / name,
      training=directory / name[0],
    )
    for name in ("a", "b", "ax")
  ]


def test_the_cells_of_one_process_come_in_their_order(tmp_path):
  planned = _plan(tmp_path)
  with cells.take(planned) as taken:
    assert list(taken) == planned


def test_what_another_process_works_at_comes_last(tmp_path):
  planned = _plan(tmp_path)
  (tmp_path / "a").mkdir()
  with cells.take(planned) as taken:
    with (tmp_path / "a/lock").open("w") as file:
      fcntl.flock(file, fcntl.LOCK_EX)
      assert next(taken) == planned[1]
      rest = []
      waiting = threading.Thread(target=lambda: rest.extend(taken))
      waiting.start()
      waiting.join(timeout=0.2)
      assert waiting.is_alive()
      assert not rest
    waiting.join()
  # Both of the cells that share a training were the other process's.
  assert rest == [planned[0], planned[2]]


def test_a_killed_process_frees_its_cell(tmp_path):
  planned = _plan(tmp_path)[:1]
  (tmp_path / "a").mkdir()
  command = [sys.executable, "-c", _HOLD, str(tmp_path / "a/lock")]
  with subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
  ) as other:
    assert other.stdout.readline() == b"held\n"
    with cells.take(planned) as taken:
      other.kill()
      assert list(taken) == planned


def test_an_error_frees_the_cell(tmp_path):
  planned = _plan(tmp_path)

  def fail():
    with cells.take(planned) as taken:
      for cell in taken:
        raise KeyError(cell.directory)

  with pytest.raises(KeyError) as caught:
    fail()
  # The traceback, which refers to the iterator, is still alive.
  assert caught.value.args == (planned[0].directory,)
  with cells.take(planned) as taken:
    assert list(taken) == planned


def test_cells_that_differ_in_their_coding_share_a_training(tmp_path):
  fields = (
    {},
    {"evaluate__mu": 0.3},
    {"seed": 1},
    {"seed": 1, "evaluate__coder": "huffman"},
  )
  planned = [
    cells.Cell(
      name=str(i),
      config=tiny.config(**own),
      directory=tmp_path / str(i),
      training=tmp_path / str(i),
    )
    for i, own in enumerate(fields)
  ]
  shared = cells.share(planned)
  assert [c.training.name for c in shared] == ["0", "0", "2", "2"]
  assert [c.directory for c in shared] == [c.directory for c in planned]


def test_several_processes_look_at_a_directory_at_once(tmp_path):
  """Each once found the other's probe gone, which it took for an error."""
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(resume.prepare_directory, [tmp_path / "cell"] * 400))
  assert list((tmp_path / "cell").iterdir()) == []
