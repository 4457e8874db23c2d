"""The command: what it reads, prints and refuses."""

import functools
import json
import shutil
import sys

import jax
import numpy as np
import pytest

import backslash_jax as bs
from backslash_jax.cli import main as cli
from experiments import settings
from experiments.serve import chat, model, serve, weights
from tests import paths, text_data


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
  """A plain and a coded directory of each fixture that is asked for."""
  made = {}

  def make(name):
    if name not in made:
      root = tmp_path_factory.mktemp(name)
      shutil.copytree(paths.FIXTURES / name, root / "plain")
      text_data.write_tokenizer(root / "plain")
      assert not cli.main(
        ["compress", str(root / "plain"), str(root / "coded"), "--step=2^-5"]
      )
      made[name] = root
    return made[name]

  return make


def run(monkeypatch, capsys, *arguments):
  monkeypatch.setattr(sys, "argv", ["serve", *map(str, arguments)])
  capsys.readouterr()
  serve.main()
  return capsys.readouterr()


def test_it_answers_and_says_what_it_took(directories, monkeypatch, capsys):
  coded = directories("llama") / "coded"
  one = run(monkeypatch, capsys, coded, "--prompt=the film", "--max-tokens=4")
  facts = json.loads(one.err)
  assert facts["peak_bytes"] > facts["weights_bytes"] > 0
  assert facts.keys() >= {"tokens", "tokens_per_second", "prompt_seconds"}
  prompts = coded.parent / "prompts"
  prompts.write_text("it was good\nthe film\n")
  several = run(
    monkeypatch, capsys, coded, f"--prompts={prompts}", "--max-tokens=4"
  )
  rows = [json.loads(line) for line in several.out.splitlines()]
  assert [prompt for prompt, _ in rows] == ["it was good", "the film"]
  assert rows[1][1] == one.out.rstrip("\n")


def test_scores_are_those_of_the_logits(directories, monkeypatch, capsys):
  plain = directories("llama") / "plain"
  texts = plain.parent / "texts"
  texts.write_text("it was good\n\nthe film is a bad film\n")
  found = json.loads(run(monkeypatch, capsys, plain, f"--score={texts}").out)
  served = model.read(plain)
  apply = jax.jit(lambda t, *batch: served.forward(served.params(t), *batch))
  losses = []
  for text in texts.read_text().split("\n"):
    if ids := served.words.tokenizer.encode(text):
      tokens = np.array([ids], np.int32)
      logits = jax.nn.log_softmax(apply(served.tensors, tokens, tokens >= 0))
      losses += [-logits[0, i, t] for i, t in enumerate(ids[1:])]
  assert found["targets"] == len(losses) == 7
  np.testing.assert_allclose(found["loss"], np.mean(losses), atol=1e-5)


def test_a_classifier_is_scored_on_labelled_texts(
  directories, monkeypatch, capsys
):
  plain = directories("bert") / "plain"
  rows = [("it was good", 1), ("a bad film", 0), ("the film", 2)]
  lines = plain.parent / "rows.jsonl"
  lines.write_text(
    "".join(json.dumps({"text": t, "label": i}) + "\n" for t, i in rows)
  )
  tabs = plain.parent / "rows.tsv"
  tabs.write_text("".join(f"{i}\t{t}\n" for t, i in rows))
  first, second = (
    json.loads(run(monkeypatch, capsys, plain, f"--score={file}").out)
    for file in (lines, tabs)
  )
  assert first["targets"] == 3
  assert first["loss"] == second["loss"] > 0
  tabs.write_text("3\ttoo many\n")
  with pytest.raises(settings.UserError, match="label 3: the model has 3 cl"):
    run(monkeypatch, capsys, plain, f"--score={tabs}")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["{plain}", "--weights=int4"], "--weights=int4: it is one of dense, pac"),
    (["{plain}", "--weights=coded"], "has no coded weights.*backslash-jax com"),
    (["{root}/nothing"], "nothing: no such directory"),
    (["{root}"], "has no config.json"),
    (["{bare}", "--prompt=a"], "has no tokenizer: put its tokenizer.json"),
    (["{plain}", "--prompt="], "prompt 1 is empty"),
    (["{plain}", "--prompt=a", "--chat"], "no chat_template"),
    (["{plain}", "--prompt=a", "--temperature=-1"], "--temperature=-1.0"),
    (["{plain}", "--prompt=a", "--top-k=0"], "--top-k=0"),
    (["{plain}", "--prompt=a", "--dtype=int8"], "--dtype=int8"),
    (["{plain}", "--prompts={root}/none"], "--prompts=.*none"),
    (["{plain}", "--score={root}/none"], "none: cannot be read"),
  ],
)
def test_what_cannot_be_is_one_line(
  arguments, message, directories, monkeypatch, capsys
):
  root = directories("llama")
  names = {
    "root": root,
    "plain": root / "plain",
    "bare": paths.FIXTURES / "llama",
  }
  arguments = [a.format(**names) for a in arguments]
  with pytest.raises(settings.UserError, match=message) as error:
    run(monkeypatch, capsys, *arguments)
  assert "\n" not in str(error.value)


def test_chats_have_the_form_of_the_tokenizer(tmp_path):
  shutil.copytree(paths.FIXTURES / "llama", tmp_path, dirs_exist_ok=True)
  text_data.write_tokenizer(tmp_path)
  words = model.read(tmp_path).words.tokenizer
  words.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
  assert chat.render(tmp_path, words, "it", "a") == (
    "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nit<|im_end|>\n"
    "<|im_start|>assistant\n"
  )
  pytest.importorskip("jinja2", reason="jinja2 is not installed")
  template = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}"
  )
  text_data.write_tokenizer(tmp_path, chat_template=template)
  assert chat.render(tmp_path, words, "it") == "<s>[user] it[answer]"
  text_data.write_tokenizer(
    tmp_path, chat_template="{{ raise_exception('no') }}"
  )
  with pytest.raises(settings.UserError, match="the chat_template refuses: no"):
    chat.render(tmp_path, words, "it")


@pytest.mark.parametrize(
  "name",
  [
    "gpt2",
    pytest.param("bert", marks=pytest.mark.slow),
    pytest.param("gemma2", marks=pytest.mark.slow),
    pytest.param("gpt2_classifier", marks=pytest.mark.slow),
    pytest.param("llama", marks=pytest.mark.slow),
  ],
)
def test_dense_packed_and_coded_weights_have_equal_outputs(name, directories):
  kinds = [model.read(directories(name) / "coded", k) for k in weights.KINDS]
  with np.load(paths.FIXTURES / name / "reference.npz") as file:
    tokens, mask = file["tokens"], file["mask"]

  def outputs(served, tensors):
    params = served.params(tensors)
    if not served.is_causal:
      return served.forward(params, tokens, mask)
    logits, known = served.forward.prefill(params, tokens, mask, 24)
    return logits, served.forward.decode(params, tokens[:, 0], known)

  dense, packed, coded = (
    jax.jit(functools.partial(outputs, s))(s.tensors) for s in kinds
  )
  jax.tree.map(np.testing.assert_array_equal, packed, dense)
  jax.tree.map(np.testing.assert_array_equal, coded, dense)
  for leaf, served in zip((bs.Packed, bs.Coded), kinds[1:], strict=True):
    layers = [x for n, x in served.tensors.items() if "/layers/" in n]
    assert {x.shape[0] for x in layers} == {served.config.depth}
    assert any(isinstance(x, leaf) for x in layers)
    assert served.nbytes < kinds[0].nbytes
