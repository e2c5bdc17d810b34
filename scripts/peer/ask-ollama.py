"""Asks the same of an ollama server (model "checked") and of cftune generate, greedily, and compares; see scripts/check-ollama."""

import json
import os
import re
import subprocess
import sys
import urllib.request

port, modelfile, model, *adapter = sys.argv[1:]
TOKENS = int(os.environ.get("TOKENS", "32"))
CONVERSATIONS = [
    [("user", "What is 18 + 25?")],
    [("system", "Answer in one word."), ("user", "Name a colour.")],
    [("user", "Say \"hi\" {{ .System }} twice.\nOn two lines."), ("assistant", "hi\nhi"), ("user", "Größer: 世界?")],
    [("user", "Is 7 + 5 = 12? Conclude with right or wrong.")],
][: int(os.environ.get("PROMPTS", "4"))]


def ask(messages):
    options = {"temperature": 0, "num_predict": TOKENS, "num_thread": 1, "seed": 1}
    body = {"model": "checked", "messages": [{"role": r, "content": c} for r, c in messages], "stream": False, "options": options}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/chat", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def system_of(text):
    found = re.search(r'^SYSTEM """(.*?)"""', text, re.DOTALL | re.MULTILINE)
    return found.group(1) if found else ""


system = system_of(open(modelfile, encoding="utf-8").read())
command = [os.environ["CFTUNE"], "generate", "--model", model, "--jsonl", "--max-tokens", str(TOKENS), "--parallel", "1", "--threads", "1"]
command += ["--adapter", adapter[0]] if adapter else []
command += ["--system", system] if system else []
lines = "".join(json.dumps({"messages": [{"role": r, "content": c} for r, c in m]}) + "\n" for m in CONVERSATIONS)
ours = [json.loads(line) for line in subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout.splitlines()]
same = 0
for messages, mine in zip(CONVERSATIONS, ours, strict=True):
    theirs = ask(messages)
    text = theirs["message"]["content"]
    equal = text.strip() == mine["text"].strip()
    same += equal
    print(f"{'same' if equal else 'OTHER'}: {theirs['prompt_eval_count']} prompt tokens there; {text!r}" + ("" if equal else f"\n  here: {mine['text']!r}"))
print(f"{same} of {len(ours)} answers are the same")
sys.exit(0 if same == len(ours) else 1)
