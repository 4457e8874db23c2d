"""What gives a newsgroup away without saying what a message is about."""

import re

# Quoted lines, and those that introduce them: "In article <...> someone",
# "someone writes:".
_QUOTATION = re.compile(
  r"^[ \t]*\w{0,4}[>|}].*\n?"
  r"|^[ \t]*In (?:article|message)\b.*\n?"
  r"|^.*\b(?:writes|wrote|says|said)(?: in .*)?:[ \t]*(?:\n|\Z)",
  re.MULTILINE,
)
_RULE = re.compile(r"^[ \t]*[-_=*~+#]{2,}[ \t]*$", re.MULTILINE)
_MOST_SIGNATURE_LINES = 12


def strip(text: str) -> str:
  """A message without its header, quotations and signature.

  The header names the group, quotations repeat other messages of the thread
  (which may be in another split), and the signature tells who writes, and most
  write to one group.
  """
  _, blank, body = text.partition("\n\n")
  body = _QUOTATION.sub("", body if blank else text)
  return _without_signature(body).strip()


def _without_signature(body: str) -> str:
  """Without what stands below the last line of dashes, if it is short."""
  body = body.rstrip()
  rules = list(_RULE.finditer(body))
  while rules and rules[-1].end() == len(body):
    # The lower edge of a frame.
    body = body[: rules.pop().start()].rstrip()
  if rules and body.count("\n", rules[-1].end()) <= _MOST_SIGNATURE_LINES:
    body = body[: rules[-1].start()]
  return body
