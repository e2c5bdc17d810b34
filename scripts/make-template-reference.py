#!/usr/bin/env python3
"""Writes what transformers makes of chat templates, as hashes: the reference of trainer/chat's tests.

Every FILE.jinja in FOLDER is rendered by transformers' own renderer over the conversations of CONVERSATIONS, each with
and without a generation prompt, with the BOS, EOS and time that are named there. JSON goes to OUTPUT (default: standard
output); no text of a template is in it:

  {"transformers": "5.0.0",
   "templates": {"FILE.jinja": {"sha256": "of its source",
                                "renders": {"CONVERSATION": ["sha256 of the text", "with a generation prompt"]}}}}

"refused" stands for the hash of what transformers does not render.

Run it with a Python that has transformers and jinja2 (scripts/setup-peer makes one), from the repository's root:

  PYTHON scripts/make-template-reference.py trainer/chat/testdata/templates --output trainer/chat/testdata/reference.json
  PYTHON scripts/make-template-reference.py FOLDER --output trainer/chat/testdata/reference-models.json
"""
import argparse
import datetime
import hashlib
import json
import pathlib
import sys

import transformers
from transformers.utils import chat_template_utils

CONVERSATIONS = pathlib.Path("trainer/chat/testdata/conversations.json")
REFUSED = "refused"


def digest(text):
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def stop_clock(now):
    """Makes strftime_now, which asks the class that its module imported, give one time."""

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return now

    chat_template_utils.datetime = Stopped


def render(source, messages, add_generation_prompt, tokens, complain):
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            conversations=[messages], chat_template=source, add_generation_prompt=add_generation_prompt, **tokens
        )
    except Exception as e:  # any: the template's own words, and whatever its expressions do wrong
        complain(f"{type(e).__name__}: {e}")
        return None
    return texts[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER", help="a folder of *.jinja files")
    parser.add_argument("--conversations", type=pathlib.Path, default=CONVERSATIONS, help="default: %(default)s")
    parser.add_argument("--output", type=pathlib.Path, help="the JSON file to write")
    parser.add_argument("--texts", type=pathlib.Path, metavar="DIR", help="also write every rendered text into this folder")
    args = parser.parse_args()

    paths = sorted(args.folder.glob("*.jinja"))
    if not paths:
        parser.error(f"{args.folder} has no *.jinja file")
    given = json.loads(args.conversations.read_text("utf-8"))
    stop_clock(datetime.datetime.fromisoformat(given["now"]))
    tokens = {"bos_token": given["bos_token"], "eos_token": given["eos_token"]}

    templates = {}
    for path in paths:
        source = path.read_bytes().decode("utf-8")
        renders = {}
        for conversation in given["conversations"]:
            name, hashes = conversation["name"], []
            for prompt in (False, True):
                text = render(source, conversation["messages"], prompt, tokens,
                              lambda why: print(f"{path.name}: {name}: {why}", file=sys.stderr))
                hashes.append(REFUSED if text is None else digest(text))
                if args.texts and text is not None:
                    args.texts.mkdir(parents=True, exist_ok=True)
                    (args.texts / f"{path.stem}.{name}.{int(prompt)}.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
            renders[name] = hashes
        templates[path.name] = {"sha256": digest(source), "renders": renders}

    text = json.dumps({"transformers": transformers.__version__, "templates": templates}, indent=1) + "\n"
    if args.output:
        args.output.write_text(text, "utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
