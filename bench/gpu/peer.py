#!/usr/bin/env python3
"""Times whole training steps of a LoRA adapter with PyTorch + PEFT on a GPU and prints one JSON line.

The model has random bf16 weights in the shape of a published one, the adapter rank --rank on all seven linear modules (of a mixture of experts,
on attention's four) in F32, as PEFT makes it; attention is sdpa, under autocast to bf16. A step is: forward with the loss, backward, clip to norm 1, AdamW (fused).
Rows: --rows rows of --seq tokens; or, with --mixed, rows of the lengths that bench_device packs, --rows of them at a time, padded to
the longest. The last --targets share of each row carries loss. tokens_per_s counts tokens of the data, never padding.

--rows 0 tries 8, 4, 2, 1 (8B: from 4) and keeps the fastest that fits: as a user would tune it. Each that is faster than those before
is printed, so that the last line is the result also when time ends it. With --checkpoint, activations are recomputed.
"""
import argparse
import json
import sys
import time

SHAPES = {  # layers, width, feed-forward (of an expert), heads, key heads, tied, experts, of which used
    "qwen3-0.6b": (28, 1024, 3072, 16, 8, True),
    "qwen3-1.7b": (28, 2048, 6144, 16, 8, True),
    "qwen3-8b": (36, 4096, 12288, 32, 8, False),
    "qwen3-30b-a3b": (48, 2048, 768, 32, 4, False, 128, 8),
    "tiny": (2, 256, 512, 2, 1, True),
    "tiny-moe": (2, 256, 256, 2, 1, True, 8, 2),
}
IGNORE = -100


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    p.add_argument("--layers", type=int, default=0)
    p.add_argument("--seq", type=int, default=2048)
    p.add_argument("--rows", type=int, default=0)
    p.add_argument("--mixed", type=int, default=0)
    p.add_argument("--targets", type=float, default=1.0)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--checkpoint", action="store_true")
    p.add_argument("--device", default="cuda")
    return p.parse_args()


def make_model(args, torch, transformers, peft):
    layers, width, ff, heads, kv, tied, *experts = SHAPES[args.shape]
    common = dict(
        vocab_size=512 if args.shape.startswith("tiny") else 151936, hidden_size=width, intermediate_size=ff,
        num_hidden_layers=args.layers or layers, num_attention_heads=heads, num_key_value_heads=kv, head_dim=128, tie_word_embeddings=tied,
        max_position_embeddings=40960)
    if experts:
        config = transformers.Qwen3MoeConfig(moe_intermediate_size=ff, num_experts=experts[0], num_experts_per_tok=experts[1], norm_topk_prob=True, **common)
    else:
        config = transformers.Qwen3Config(**common)
    config._attn_implementation = "sdpa"
    with torch.device(args.device):
        torch.set_default_dtype(torch.bfloat16)
        base = (transformers.Qwen3MoeForCausalLM if experts else transformers.Qwen3ForCausalLM)(config)
        torch.set_default_dtype(torch.float32)
    base.config.use_cache = False
    model = peft.get_peft_model(base, peft.LoraConfig(
        r=args.rank, lora_alpha=32, lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"] + ([] if experts else ["gate_proj", "up_proj", "down_proj"])))
    for w in model.parameters():
        if w.requires_grad:
            w.data = w.data.float()
    if args.checkpoint:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    model.train()
    return model, config


def make_batch(args, rows, vocab, torch):
    generator = torch.Generator().manual_seed(0)
    lengths = [args.seq] * rows
    if args.mixed:
        lengths = [args.seq // 16 + int(torch.randint(0, args.seq - args.seq // 16, (1,), generator=generator)) for _ in range(rows)]
    ids = torch.zeros(rows, max(lengths), dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for i, n in enumerate(lengths):
        ids[i, :n] = torch.randint(0, vocab, (n,), generator=generator)
        begin = int(n * (1 - args.targets))
        labels[i, begin:n] = ids[i, begin:n]
        mask[i, :n] = 1
    batch = dict(input_ids=ids.to(args.device), labels=labels.to(args.device))
    if args.mixed:
        batch["attention_mask"] = mask.to(args.device)
    return batch, sum(lengths)


def measure(args, rows, model, vocab, torch):
    on_gpu = args.device.startswith("cuda")
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=on_gpu)
    batch, tokens = make_batch(args, rows, vocab, torch)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for step in range(args.warmup + args.steps):
        wait()
        began = time.perf_counter()
        with torch.autocast(args.device.split(":")[0], dtype=torch.bfloat16):
            loss = model(use_cache=False, **batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last = loss.item()
        wait()
        if step >= args.warmup:
            times.append(time.perf_counter() - began)
    times.sort()
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0
    return dict(rows=rows, tokens=tokens, padded=batch["input_ids"].numel(), tokens_per_s=round(tokens / times[len(times) // 2], 1),
                tokens_per_s_best=round(tokens / times[0], 1), peak_mib=round(peak), loss=round(last, 4))


def main():
    args = arguments()
    import peft
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model, config = make_model(args, torch, transformers, peft)
    best, tried = None, []
    for rows in [args.rows] if args.rows else [4, 2, 1] if args.shape in ("qwen3-8b", "qwen3-30b-a3b") else [8, 4, 2, 1]:
        try:
            result = measure(args, rows, model, config.vocab_size, torch)
        except torch.OutOfMemoryError:
            tried.append(f"{rows}: out of memory")
            torch.cuda.empty_cache()
            continue
        tried.append(f"{rows}: {result['tokens_per_s']}")
        if best is not None and result["tokens_per_s"] <= best["tokens_per_s"]:
            break
        best = result
        print(json.dumps(dict(tool="peft", shape=args.shape, layers=config.num_hidden_layers, seq=args.seq, mixed=args.mixed,
                              targets=args.targets, checkpoint=args.checkpoint, rank=args.rank, tried=tried, **best,
                              torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)), flush=True)
    if best is None:
        sys.exit("peer: nothing fits the device")


if __name__ == "__main__":
    main()
