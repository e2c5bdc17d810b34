#!/usr/bin/env python3
"""The peer's side of bench/data/run: Hugging Face datasets reads the rows, transformers renders the chat template,
tokenizers tokenizes whole batches, labels are masked by the prompt's length, and rows are packed, best fit decreasing,
within steps of 256 rows. Prints one JSON line."""
import argparse
import bisect
import json
import os
import resource
import time

STEP, PACK = 256, 1024


def messages(query, response):
    return [{"role": "user", "content": "Please critique whether the following solution to the question is correct.\n\n\n"
             f"Question:\n{query}\n\nSolution:\n{response}\n\n"}]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--rows", required=True)
    p.add_argument("--processes", type=int, default=1)
    args = p.parse_args()
    import datasets
    import tokenizers
    from transformers import AutoTokenizer
    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)

    def encode(batch):
        prompts = tokenizer.apply_chat_template([messages(q, r) for q, r in zip(batch["query"], batch["response"])],
                                                tokenize=False, add_generation_prompt=True)
        targets = [f"Critique:\n{c}<|im_end|>" for c in batch["critique"]]
        # Prompt and target apart: so the target begins where generation begins, and masks are exact.
        a = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        b = tokenizer(targets, add_special_tokens=False)["input_ids"]
        return {"input_ids": [x + y for x, y in zip(a, b)], "labels": [[-100] * len(x) + y for x, y in zip(a, b)]}

    def pack(batch):
        """Best fit decreasing within the step; flat arrays with positions, as a packing collator makes them."""
        ids, labels = batch["input_ids"], batch["labels"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        room, packs = [], []
        for i in order:
            n = len(ids[i]) - 1
            at = bisect.bisect_left(room, (n, -1))
            if at < len(room):
                left, which = room.pop(at)
            else:
                left, which = PACK, len(packs)
                packs.append([])
            packs[which].append(i)
            bisect.insort(room, (left - n, which))
        out = {"input_ids": [], "labels": [], "position_ids": []}
        for items in packs:
            out["input_ids"].append([t for i in items for t in ids[i][:-1]])
            out["labels"].append([t for i in items for t in labels[i][1:]])
            out["position_ids"].append([k for i in items for k in range(len(ids[i]) - 1)])
        return out

    start = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=args.rows, split="train", keep_in_memory=False)
    workers = args.processes if args.processes > 1 else None
    encoded = rows.shuffle(seed=0).map(encode, batched=True, batch_size=1000, num_proc=workers, remove_columns=rows.column_names)
    packed = encoded.map(pack, batched=True, batch_size=STEP, num_proc=workers, remove_columns=encoded.column_names)
    seconds = time.perf_counter() - start
    tokens = sum(len(x) - 1 for x in encoded["input_ids"])
    assert tokens == sum(len(x) for x in packed["input_ids"])
    targets = sum(1 for x in packed["labels"] for t in x if t != -100)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"tokens": tokens, "targets": targets, "examples": len(rows), "packs": len(packed), "seconds": seconds,
                      "tokens_per_s": tokens / seconds, "rows_per_s": len(rows) / seconds, "peak_rss_mb": peak // 1024,
                      "datasets": datasets.__version__, "tokenizers": tokenizers.__version__, "processes": args.processes,
                      "cpus": len(os.sched_getaffinity(0))}))


if __name__ == "__main__":
    main()
