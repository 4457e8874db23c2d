"""Groups: units that leave together, and the price and pruning of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import backslash_jax as bs
from backslash_jax import structure
from backslash_jax.structure import groups, magnitude
from backslash_jax.structure.groups import Group, Slice
from backslash_jax.tree import named_leaves

HIDDEN, HEADS, KV, DIM, WIDTH = 6, 4, 2, 3, 5
MLP = Group(
  "mlp",
  (
    Slice(r"(.*)mlp/up/(?:kernel|bias)$", -1),
    Slice(r"(.*)mlp/down/kernel$", -2),
  ),
)
ATTENTION = Group(
  "heads",
  (
    Slice(r"(.*)query/kernel$", -1, HEADS // KV * DIM),
    Slice(r"(.*)(?:key|value)/kernel$", -1, DIM),
    Slice(r"(.*)out/kernel$", -2, HEADS // KV * DIM),
  ),
)
ROWS = Group("rows", (Slice(r"embedding$", -2),))


def _params(*, layers=("a", "b"), stacked=()):
  shapes = {
    "mlp/up/kernel": (WIDTH, HIDDEN),
    "mlp/up/bias": (HIDDEN,),
    "mlp/down/kernel": (HIDDEN, WIDTH),
    "query/kernel": (WIDTH, HEADS * DIM),
    "key/kernel": (WIDTH, KV * DIM),
    "value/kernel": (WIDTH, KV * DIM),
    "out/kernel": (HEADS * DIM, WIDTH),
  }
  rng = np.random.default_rng(0)
  draw = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  tree = {
    layer: {name: draw((*stacked, *s)) for name, s in shapes.items()}
    for layer in layers
  }
  return tree | {"embedding": draw((7, WIDTH))}


PARAMS = _params()
ONE = Group("one", (Slice("x", -1),))


def test_units_are_tied_across_matrices_and_told_apart_by_layer():
  units = groups.bind([MLP, ATTENTION, ROWS], PARAMS)
  assert [(u.name, u.key, u.shape) for u in units] == [
    ("mlp", ("a/",), (HIDDEN,)),
    ("mlp", ("b/",), (HIDDEN,)),
    ("heads", ("a/",), (KV,)),
    ("heads", ("b/",), (KV,)),
    ("rows", (), (7,)),
  ]
  assert [u.size for u in units][::2] == [11, 2 * WIDTH * DIM * 3, WIDTH]
  own = PARAMS["b"]
  head = [
    own["query/kernel"][:, 6:],
    own["key/kernel"][:, 3:],
    own["value/kernel"][:, 3:],
    own["out/kernel"][6:],
  ]
  np.testing.assert_allclose(
    groups.square_sums(units[3], _by_name(PARAMS))[1],
    sum(np.sum(x * x) for x in head),
    rtol=1e-5,
  )


def test_stacked_layers_have_units_of_their_own():
  stacked = _params(layers=("s",), stacked=(3,))
  group = Group("mlp", MLP.slices, stacked=1)
  (units,) = groups.bind([group], stacked)
  assert units.shape == (3, HIDDEN)
  factors = np.ones((3, HIDDEN), np.float32)
  factors[1, 2] = 0
  scaled = jax.jit(lambda p, f: groups.scale(p, [units], [f])["s"])(
    stacked, factors
  )
  assert not scaled["mlp/up/kernel"][1, :, 2].any()
  assert not scaled["mlp/up/bias"][1, 2].any()
  assert not scaled["mlp/down/kernel"][1, 2].any()
  size = sum(x.size for x in stacked["s"].values())
  assert sum(int((x != 0).sum()) for x in scaled.values()) == size - units.size


@pytest.mark.parametrize(
  ("group", "message"),
  [
    (Group("g", (Slice("nothing", -1),)), "matches no parameter"),
    (Group("g", (Slice("(", -1),)), "no regular expression"),
    (Group("g", (Slice("bias", -2),)), r"a/mlp/up/bias of shape \(6,\).*-2"),
    (Group("g", (Slice("bias", 0),)), "counted from the last"),
    (Group("g", (Slice("embedding", -2, 2),)), "units of 2"),
    (
      Group("g", (Slice("(.)/.*bias", -1), Slice("(.)/que", -1))),
      r"\(6,\).*\(12,\)",
    ),
    (Group("g", (Slice("bias", -1), Slice("up", -1))), "already in group 'g'"),
    (Group("g", (Slice("a/.*up", -1), Slice("a/que", -1))), "different"),
  ],
)
def test_groups_that_do_not_fit_are_refused_by_name(group, message):
  with pytest.raises(ValueError, match=message):
    groups.bind([group], PARAMS)


def test_every_problem_is_listed_and_two_groups_share_no_weight():
  wrong = [Group("x", (Slice("nothing", -1),)), Group("y", (Slice("q", 5),))]
  with pytest.raises(ValueError, match=r"'x'[^\0]*'y'"):
    groups.bind(wrong, PARAMS)
  with pytest.raises(ValueError, match="already in group 'rows'"):
    groups.bind([ROWS, Group("z", (Slice("embed", -1),))], PARAMS)


def test_the_price_of_units_of_one_weight_is_the_elementwise_one():
  x = 0.1 * np.random.default_rng(1).laplace(size=50).astype(np.float32)
  eta, lmbda, zero = 0.1, 2.0, {"x": np.zeros(50, np.float32)}
  for rate in ("dggr", "bits"):
    tx = structure.group_rate(lmbda, [ONE], eta, rate=rate, shape=0.8)
    updates, _ = jax.jit(tx.update)(zero, tx.init({"x": x}), {"x": x})
    plain = bs.backslash(lmbda, rate=rate, shape=0.8, mask=None)
    pull, _ = jax.jit(plain.update)(zero, plain.init({"x": x}), {"x": x})
    size = np.minimum(eta * np.abs(pull["x"]), np.abs(x))
    np.testing.assert_allclose(
      updates["x"], -np.sign(x) * size, rtol=2e-4, atol=1e-7
    )


def test_units_shrink_in_proportion_and_end_at_exactly_zero():
  tx = optax.chain(
    optax.sgd(0.1), structure.group_rate(40.0, [MLP, ATTENTION, ROWS], 0.1)
  )
  params, state = jax.tree.map(lambda x: x / 100, PARAMS), tx.init(PARAMS)

  @jax.jit
  def step(params, state):
    grads = jax.tree.map(lambda x, t: 0.02 * x - t * 1e-4, params, PARAMS)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  first, _ = step(params, state)
  ratio = np.asarray(first["embedding"] / params["embedding"])
  np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones(WIDTH), rtol=1e-3)
  for _ in range(40):
    params, state = step(params, state)
  assert set(_zeros(params)) == {1.0}
  assert optax.tree.get(state, "group_zeros") == 1.0
  assert 0 < optax.tree.get(state, "group_shape") <= 1.0


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"lmbda": -1.0}, "lmbda"),
    ({"rate": "l1"}, "rate must be"),
    ({"shape": 2.0}, "shape"),
    ({"step": 0.0}, "positive"),
  ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
  options = {"lmbda": 1.0, "groups": [ROWS], "learning_rate": 0.1} | arguments
  with pytest.raises(ValueError, match=message):
    structure.group_rate(**options)


def test_updates_and_state_keep_their_types():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  tx = structure.group_rate(optax.constant_schedule(1.0), [MLP], 0.1)
  state = tx.init(params)
  updates, new = jax.jit(tx.update)(params, state, params, loss=1.0)
  kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
  assert kinds(updates) == kinds(params)
  assert kinds(new) == kinds(state)
  with pytest.raises(ValueError, match="needs params"):
    tx.update(params, state)


def _by_name(params):
  return dict(named_leaves(params))


def _zeros(tree):
  return [float(np.mean(np.asarray(x) == 0)) for x in jax.tree.leaves(tree)]


_prune = jax.jit(
  magnitude.prune,
  static_argnums=1,
  static_argnames=("scope", "groups"),
)


def test_pruning_of_the_model_compares_its_tensors():
  x = PARAMS["a"]["key/kernel"]
  params = {"large": x, "small": x / 1e4}
  assert _zeros(_prune(params, 0.5, scope="model")) == [0, 1]
  assert _zeros(_prune(params, 0.5)) == [0.5, 0.5]


def test_units_are_pruned_whole_and_no_layer_is_emptied():
  tree = PARAMS | {"a": jax.tree.map(lambda x: x / 1000, PARAMS["a"])}
  pruned = jax.device_get(
    _prune(tree, 0.6, scope="model", groups=(MLP, ATTENTION))
  )
  leaves = _by_name(pruned)
  gone = total = 0
  for u in groups.bind([MLP, ATTENTION], tree):
    zeros = np.asarray(groups.magnitudes(u, leaves) == 0)
    total += u.size * zeros.size
    gone += u.size * int(zeros.sum())
    if u.key == ("a/",):
      assert zeros.sum() == zeros.size - 1
    for part in u.parts:
      x = leaves[part.path]
      spread = np.broadcast_to(groups.spread(u, part, zeros), x.shape)
      np.testing.assert_array_equal(x == 0, spread)
  assert 0.3 * total < gone <= 0.6 * total
  np.testing.assert_array_equal(pruned["embedding"], tree["embedding"])


@pytest.mark.parametrize(
  "make",
  [
    lambda rows: structure.group_rate(1.0, [rows], 1e-3),
    lambda rows: structure.gradual_pruning(0.5, 4, groups=[rows]),
  ],
)
def test_there_may_be_more_parameters_than_an_int32_counts(make):
  tree = {"embedding": jax.ShapeDtypeStruct((2**18, 2**14), jnp.bfloat16)}
  tx = make(groups.Group("rows", (groups.Slice("embedding", -2),)))
  state = jax.eval_shape(tx.init, tree)
  updates, _ = jax.eval_shape(tx.update, tree, state, tree)
  assert updates == tree


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.6, 0.99])
def test_every_layer_loses_its_smallest_units(fraction):
  pruned = _prune(PARAMS, fraction, groups=(MLP, ATTENTION))
  whole, left = _by_name(PARAMS), _by_name(pruned)
  for u in groups.bind((MLP, ATTENTION), PARAMS):
    before = np.asarray(groups.magnitudes(u, whole))
    after = np.asarray(groups.magnitudes(u, left))
    n = before.shape[-1]
    count = min(int(fraction * n + 1e-4), n - 1)
    assert np.all(np.sum(after == 0, axis=-1) == count)
    wanted = np.where(
      np.argsort(np.argsort(before, -1), -1) < count, 0.0, before
    )
    np.testing.assert_allclose(after, wanted, rtol=1e-5)


def test_units_go_on_the_schedule_and_stay_away():
  tx = optax.chain(
    optax.sgd(0.1),
    structure.gradual_pruning(0.6, 6, every=2, groups=[MLP], scope="model"),
  )
  params, state, counts = PARAMS, tx.init(PARAMS), []

  @jax.jit
  def step(params, state):
    grads = jax.tree.map(lambda x: x - 1.0, params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(9):
    params, state = step(params, state)
    counts.append(sum(np.sum(x == 0) for x in jax.tree.leaves(params)))
  assert counts == sorted(counts)
  assert counts[0] == 0 < counts[4] < counts[-1]


def test_moments_of_removed_weights_are_cleared():
  pruning = structure.gradual_pruning(0.5, 1, every=1)
  tx = structure.clear_moments(optax.chain(optax.adam(1e-2), pruning))
  params, state = PARAMS, tx.init(PARAMS)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(3):
    params, state = step(params, state)
  for name in ("mu", "nu"):
    held = optax.tree.get(state, name)
    for x, m in zip(
      jax.tree.leaves(params), jax.tree.leaves(held), strict=True
    ):
      np.testing.assert_array_equal(np.asarray(x) == 0, np.asarray(m) == 0)
  with pytest.raises(ValueError, match="needs params"):
    tx.update(params, state)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"scope": "layer"}, "scope"),
  ],
)
def test_kinds_of_pruning_that_there_are_not(arguments, message):
  with pytest.raises(ValueError, match=message):
    structure.gradual_pruning(0.5, 10, **arguments)
  with pytest.raises(ValueError, match=message):
    magnitude.kept(PARAMS, 0.5, **arguments)
  with pytest.raises(ValueError, match="fraction"):
    magnitude.prune(PARAMS, 1.0)
