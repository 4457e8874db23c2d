"""Newsgroups and mails: what is stripped, never fed, and in which split."""

import itertools

from experiments.data import classification, newsgroups
from tests import text_data


def test_the_validation_messages_of_a_group_are_its_latest(make_config):
  config = make_config("newsgroups20")
  latest = {}
  for split in ("train", "validation"):
    arrays = text_data.whole(config, split)
    for tokens, label in zip(arrays["tokens"], arrays["targets"], strict=True):
      number = int(text_data.spell(tokens).rstrip("\0").split()[-1]) * 7 % 400
      latest.setdefault((split, label), []).append(number)
  for label in range(20):
    assert max(latest["train", label]) < min(latest["validation", label])


MESSAGE = """\
From: someone@motors.com
Newsgroups: rec.autos
Subject: Re: brakes

In article <1@motors.com> other@x.com writes:
> do brakes squeak?
>> yes

They do when wet.
The manual said so too.
Bob wrote:
: unquoted style

--
Bob, Motor Club
"""


def test_header_quotations_and_signature_are_stripped():
  kept = newsgroups.strip(MESSAGE)
  assert kept.startswith("They do when wet.\nThe manual said so too.")
  for leak in ("motors", "rec.autos", "squeak", "yes", "wrote", "Motor Club"):
    assert leak not in kept


def test_stripping_is_an_option_and_an_empty_rest_has_a_token(
  tmp_path, make_config
):
  only_header = [
    {"id": f"g/{i}", "label": i % 20, "text": "From: x\n\n"} for i in range(400)
  ]
  for name in ("train", "test"):
    text_data.write(tmp_path / f"newsgroups20/{name}.jsonl.xz", only_header)
  arrays = text_data.whole(
    make_config("newsgroups20", source=str(tmp_path)), "test"
  )
  assert (arrays["mask"].sum(axis=1) == 1).all()
  kept = make_config("newsgroups20", source=str(tmp_path), strip=False)
  assert text_data.spell(text_data.whole(kept, "test")["tokens"][0]).startswith(
    "From: x"
  )


def test_the_id_of_a_mail_is_never_fed(make_config, tmp_path):
  mails = text_data.rows(100, 2, id=lambda i: "SECRET", subject=lambda i: "s")
  for name in ("train", "test"):
    text_data.write(tmp_path / f"enron_spam/{name}.jsonl.xz", mails)
  config = make_config("enron_spam", source=str(tmp_path))
  for split in text_data.SPLITS:
    for tokens in text_data.whole(config, split)["tokens"]:
      assert "SECRET" not in text_data.spell(tokens)


def test_mails_with_the_same_body_share_a_split():
  builder = classification.EnronSpam._split
  mails = [(f"subject {i}", f"body {i // 4}", 0) for i in range(400)]
  bodies = {
    split: {t.split("\n")[1] for t, _ in rows}
    for split, rows in builder(None, mails, 1).items()
  }
  assert all(bodies.values())
  for a, b in itertools.combinations(bodies.values(), 2):
    assert not a & b
