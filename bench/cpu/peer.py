#!/usr/bin/env python3
"""Times whole training steps of a LoRA adapter with PyTorch + PEFT on the CPU and prints one JSON line.

A step is: zero the gradients, forward with the loss, backward, clip to norm 1, AdamW. The base model is frozen in fp32;
the adapter has rank --rank on all seven linear modules. Tokens are random. tokens_per_s counts tokens of the data,
never padding: from the median step, and _best from the fastest.

Cases: one row of --seq tokens of which the last --supervised share carries loss; or --mix, eight rows of 120 to 700
tokens, padded to the longest (pad) or in one row with a block-diagonal mask (pack). --loss-rows computes logits for
supervised rows only, which PEFT's users must write themselves.
"""
import argparse
import json
import os
import random
import resource
import time

MIX_ROWS, MIX_SHORTEST, MIX_LONGEST = 8, 120, 700
FIRST_ORDINARY_TOKEN = 3
IGNORE = -100


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=os.environ.get("SMOLLM2_HF", "smollm2-hf"), help="Hugging Face folder")
    p.add_argument("--seq", type=int, default=512)
    p.add_argument("--supervised", type=float, default=1.0)
    p.add_argument("--mix", choices=["pad", "pack"])
    p.add_argument("--loss-rows", action="store_true")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--attn", default="sdpa", choices=["sdpa", "eager"])
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--warmup", type=int, default=1)
    args = p.parse_args()
    if args.mix and args.loss_rows:
        p.error("--loss-rows is for one row")
    return args


ARGS = arguments()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(ARGS.threads)
import peft  # noqa: E402 (the thread counts must be set before)
import torch  # noqa: E402
import transformers  # noqa: E402


def labels_of(ids, supervised):
    """Hugging Face's labels: unshifted, IGNORE where there is no loss."""
    labels = ids.clone()
    labels[: len(ids) - int(len(ids) * supervised)] = IGNORE
    return labels


def one_row(vocab, generator):
    ids = torch.randint(FIRST_ORDINARY_TOKEN, vocab, (ARGS.seq,), generator=generator)
    return [ids], dict(input_ids=ids[None], labels=labels_of(ids, ARGS.supervised)[None])


def mixed_rows(vocab, generator):
    random.seed(0)
    lengths = [random.randint(MIX_SHORTEST, MIX_LONGEST) for _ in range(MIX_ROWS)]
    rows = [torch.randint(FIRST_ORDINARY_TOKEN, vocab, (n,), generator=generator) for n in lengths]
    labels = [labels_of(row, ARGS.supervised) for row in rows]
    if ARGS.mix == "pad":
        pad = lambda rows, value: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
        return rows, dict(input_ids=pad(rows, 0), labels=pad(labels, IGNORE), attention_mask=pad([torch.ones_like(r) for r in rows], 0))
    for row in labels:
        row[0] = IGNORE  # predicted by the row before, if it were not ignored
    segment = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
    visible = (segment[:, None] == segment[None]) & torch.tril(torch.ones(len(segment), len(segment), dtype=torch.bool))
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return rows, dict(input_ids=torch.cat(rows)[None], labels=torch.cat(labels)[None], position_ids=positions, attention_mask=mask)


def loss_of(model, batch):
    if not ARGS.loss_rows:
        return model(use_cache=False, **batch).loss
    targets = batch["labels"][0, 1:]
    keep = (targets != IGNORE).nonzero()[:, 0]
    logits = model(input_ids=batch["input_ids"], logits_to_keep=keep, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits, targets[keep])


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(ARGS.threads)
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(ARGS.model, dtype=torch.float32, attn_implementation=ARGS.attn)
    base.config.use_cache = False
    model = peft.get_peft_model(base, peft.LoraConfig(
        r=ARGS.rank, lora_alpha=2 * ARGS.rank, lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    model.train()
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-4)
    make = mixed_rows if ARGS.mix else one_row
    rows, batch = make(base.config.vocab_size, torch.Generator().manual_seed(0))
    times = []
    for step in range(ARGS.warmup + ARGS.steps):
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        last = loss.item()
        if step >= ARGS.warmup:
            times.append(time.perf_counter() - began)
    times.sort()
    real = sum(map(len, rows))
    print(json.dumps(dict(
        tool="peft", seq=None if ARGS.mix else ARGS.seq, mix=ARGS.mix, loss_rows=ARGS.loss_rows, attn=ARGS.attn, rank=ARGS.rank,
        threads=ARGS.threads, steps=ARGS.steps, real_tokens=real, padded_tokens=batch["input_ids"].numel(),
        supervised_tokens=int((batch["labels"][:, 1:] != IGNORE).sum()),
        tokens_per_s=round(real / times[len(times) // 2], 1), tokens_per_s_best=round(real / times[0], 1),
        peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), loss=round(last, 4),
        torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)))


if __name__ == "__main__":
    main()
