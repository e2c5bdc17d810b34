#!/usr/bin/env python3
"""Writes small references of whole packs and whole runs, beside those of scripts/make-family-references.py: what PyTorch + PEFT make,
row by row, of rows that are packed with odd company in cmd/cftune, and of some steps of AdamW over such rows.

usage: PEER/venv/bin/python scripts/make-run-references.py [--list] [NAME...]     PEER is what scripts/setup-peer prints
Writes cmd/cftune/testdata/packs/NAME.json and NAME.safetensors, and the same in testdata/courses; without names, all of them.
Models and adapters are as make-family-references.py has them: no weights are stored.

packs      critiques of answers to one question, so that prefixes are shared; a question longer than a window; one target alone, in the
           midst of a row; a row of two tokens; targets with holes between them, that are not the row's own tokens; weights; a row
           that is there twice. The file has the sum of the weighted losses and its gradient.
courses    the same rows in groups of other sizes and numbers of targets, and an optimizer's settings (RUNS below): each step's
           loss, learning rate and gradient norm, and the adapter's values after the last
"""
import importlib.util
import json
import math
import os

import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
spec = importlib.util.spec_from_file_location("families", os.path.join(HERE, "make-family-references.py"))
families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)

IGNORE = -100


def rows():
    """Tokens, labels and weight of each row; labels are not shifted."""
    generator = torch.Generator().manual_seed(families.SEED + 1)
    text = lambda n: torch.randint(3, families.VOCAB, (n,), generator=generator).tolist()
    out, question = [], text(families.WINDOW + 9)
    for length in (5, families.WINDOW + 1):
        answer = question + text(length)
        for critique, weight in ((4, 1.0), (families.WINDOW + 3, 2.25)):
            tokens = answer + text(critique)
            out.append((tokens, [IGNORE] * len(answer) + tokens[len(answer):], weight))
    out.append(out[-1])
    tokens = text(70)
    out.append((tokens, [t if i == families.WINDOW else IGNORE for i, t in enumerate(tokens)], 1.0))
    tokens = text(2)
    out.append((tokens, tokens, 0.5))
    tokens, others = text(40), text(40)
    out.append((tokens, [t if i % 3 == 1 else IGNORE for i, t in enumerate(others)], 1.0))
    return out


def loss_of(model, tokens, labels):
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(labels[1:]), reduction="sum", ignore_index=IGNORE)


def adapted_model(family, kind):
    """In double precision, if transformers has the model's ops in it."""
    model, config = families.build(family)
    tensors = families.weights(model, family)
    adapted, named, listed = families.adapt(model, family, kind)
    said = {**families.describe(family, config, model, tensors), **families.describe_adapter(kind, listed), "vocab": families.VOCAB}
    return adapted if family["architecture"] == "qwen3moe" else adapted.double(), named, said


def write(folder, name, saved, said):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name + ".safetensors")
    save_file({k: v.float().contiguous() for k, v in saved.items()}, path)
    os.chmod(path, 0o644)
    with open(os.path.join(folder, name + ".json"), "w") as f:
        json.dump({**said, "rows": [{"tokens": t, "labels": l, "weight": w} for t, l, w in rows()]}, f, indent=1)
        f.write("\n")


def make_pack(name, family, kind, folder):
    model, named, said = adapted_model(family, kind)
    total = 0.0
    for tokens, labels, weight in rows():
        loss = weight * loss_of(model, tokens, labels)
        loss.backward()
        total += loss.item()
    write(folder, name, {ours: back(p.grad) for ours, (p, back) in named.items()}, {**said, "loss": total})
    print(f"make-run-references: {name}: loss {total:.4f}")


def rate(o, step, steps):
    """Learning rate of a step, counted from 1: warm-up, then half a cosine, as transformers' get_cosine_schedule_with_warmup has it for
    a step counted from 0, but for the warm-up, which does not begin at 0."""
    if step <= o["warmup"]:
        return o["lr"] * step / o["warmup"]
    share = (1 + math.cos(math.pi * (step - 1 - o["warmup"]) / (steps - o["warmup"]))) / 2
    return o["lr"] * (o["min_ratio"] + (1 - o["min_ratio"]) * share)


def make_course(name, family, kind, options, folder):
    o = {"lr": 5e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0, "ratio": 1.0, "warmup": 3, "min_ratio": 0.0, **options}
    model, named, said = adapted_model(family, kind)
    # As PEFT's create_loraplus_optimizer: all but A, and but what the embedding has, learns at `ratio` times the rate.
    fast = [p for ours, (p, _) in named.items() if not ours.endswith("lora_a") and not ours.startswith("token_embd")]
    slow = [p for p, _ in named.values() if all(p is not q for q in fast)]
    groups = [g for g in ({"params": slow, "times": 1.0}, {"params": fast, "times": o["ratio"]}) if g["params"]]
    optimizer = torch.optim.AdamW(groups, lr=o["lr"], betas=tuple(o["betas"]), eps=o["eps"], weight_decay=o["weight_decay"])
    all_rows, steps = rows(), []
    cuts = [(0, 3), (3, 4), (4, len(all_rows))]
    for step in range(1, 13):
        first, end = cuts[(step - 1) % len(cuts)]
        lr = rate(o, step, 12)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["times"]
        optimizer.zero_grad()
        targets = sum(sum(label != IGNORE for label in labels[1:]) for _, labels, _ in all_rows[first:end])
        total = 0.0
        for tokens, labels, weight in all_rows[first:end]:
            loss = weight * loss_of(model, tokens, labels) / targets
            loss.backward()
            total += loss.item()
        bound = o["max_grad_norm"] or math.inf
        norm = torch.nn.utils.clip_grad_norm_([p for p, _ in named.values()], bound).item()
        optimizer.step()
        steps.append({"first": first, "end": end, "loss": total, "norm": norm, "lr": lr})
    write(folder, name, {ours: back(p.data) for ours, (p, back) in named.items()}, {**said, "optimizer": o, "steps": steps})
    print(f"make-run-references: {name}: loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}, norm up to {max(s['norm'] for s in steps):.1f}")


PACKS = {"gemma2": ("gemma2", {}), "mistral-dora": ("mistral", {"dora": True}), "qwen3moe": ("qwen3moe", {"rslora": True, "layers": [1]})}
# Rates at which rounding is not magnified: at 5e-3, the first one's gradient norm changes by 3e-3 where first values change by 1e-7.
RUNS = {
    "decay-clip": ("llama3", {"rslora": True}, {"weight_decay": 0.1, "max_grad_norm": 0.3, "betas": [0.8, 0.95], "eps": 1e-6, "min_ratio": 0.1, "lr": 1e-3}),
    "dora-plus": ("llama3", {"dora": True, "layers": [1]}, {"weight_decay": 0.2, "ratio": 16.0, "lr": 1e-3}),
    "ends-plus": ("llama3", {"ends": ["token_embd", "output"], "layers": [0]}, {"weight_decay": 0.1, "ratio": 4.0, "max_grad_norm": 0.0}),
}


def main():
    names = families.asked(__doc__, [*PACKS, *RUNS])
    torch.set_num_threads(1)
    testdata = os.path.join(HERE, "..", "cmd", "cftune", "testdata")
    for name in names:
        if name in PACKS:
            family, kind = PACKS[name]
            make_pack(name, families.FAMILIES[family], kind, os.path.join(testdata, "packs"))
        else:
            family, kind, options = RUNS[name]
            make_course(name, families.FAMILIES[family], kind, options, os.path.join(testdata, "courses"))


if __name__ == "__main__":
    main()
