"""A process that waits for the others in vain ends, and says for which."""

import sys

import pytest

from experiments import watch

TIMEOUT = 100


class Client:
  """A key-value store as of JAX's coordination service."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, key, value, allow_overwrite):
    assert allow_overwrite
    self.values[key] = value

  def key_value_dir_get(self, prefix):
    return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]


@pytest.fixture
def run(monkeypatch):
  """Gives watches of processes, and a function that lets them beat."""
  now = [0.0]
  monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)
  monkeypatch.setattr(watch, "leave", sys.exit)
  messages = {}

  def make(processes):
    client = Client()
    return [
      watch.Watch(
        client, i, processes, TIMEOUT, lambda m, i=i: messages.setdefault(i, m)
      )
      for i in range(processes)
    ]

  def beat(watches, seconds):
    for _ in range(seconds):
      now[0] += 1
      for one in watches:
        one.beat()
    return messages

  return make, beat


def test_a_wait_for_a_silent_process_names_it(run):
  make, beat = run
  first, second, _ = make(3)
  with first.waiting("finish update 12"):
    assert not beat([first, second], TIMEOUT - 1)
    assert beat([first, second], 1).keys() == {0}
  found = beat([], 0)[0]
  assert "process 0 waits since" in found
  assert "for 100 s, to finish update 12: process 2 does not answer." in found
  assert "process 1" not in found


def test_a_process_that_stops_is_silent_from_then_on(run):
  make, beat = run
  first, second = make(2)
  with first.waiting("finish update 12"):
    beat([first, second], 20)
    assert not beat([first], TIMEOUT)
    found = beat([first], 1)[0]
  assert "process 1 is silent for 100 s; it is at work" in found


def test_processes_that_wait_for_different_things_end(run):
  make, beat = run
  first, second = make(2)
  with first.waiting("finish update 12"), second.waiting("pass the barrier"):
    found = beat([first, second], TIMEOUT + 5)
  assert "process 1 waits since" in found[0]
  assert "to pass the barrier" in found[0]
  assert "to finish update 12" in found[1]


def test_a_process_at_work_is_waited_for_but_not_for_ever(run):
  make, beat = run
  both = make(2)
  with both[0].waiting("pass the barrier"):
    assert not beat(both, 10 * TIMEOUT - 1)
    assert "process 1 is at work" in beat(both, 1)[0]


def test_who_has_just_begun_to_wait_was_at_work_until_then(run):
  make, beat = run
  first, second = make(2)
  with first.waiting("finish update 1"):
    beat([first, second], TIMEOUT // 2)  # The second still compiles it.
    with second.waiting("finish update 1"):
      assert not beat([first, second], TIMEOUT - 2)


def test_an_error_of_another_process_ends_the_wait_at_once(run):
  make, beat = run
  first, second = make(2)
  with first.waiting("finish update 12"):
    with pytest.raises(SystemExit):
      second.leave("no space left")
    found = beat([first, second], 5)
  assert "process 1 has ended with an error: no space left" in found[0]


def test_many_short_waits_are_no_long_one(run):
  make, beat = run
  first, _ = make(2)
  for update in range(TIMEOUT):
    with first.waiting(f"finish update {update}"):
      beat([first], 2)
  assert not beat([first], 3 * TIMEOUT)
