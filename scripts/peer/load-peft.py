#!/usr/bin/env python3
"""Loads a PEFT folder that cftune exported with transformers and PEFT, and prints the mean loss of tokenized rows with it, to be
compared with trained_loss in the export's proof.

usage: PEER/venv/bin/python scripts/peer/load-peft.py MODEL FOLDER ROWS.jsonl     PEER is what scripts/setup-peer prints
MODEL is the base model in Hugging Face's layout (PEER/smollm2-hf); ROWS.jsonl is what `cftune data convert` writes of the
run's held-out records. Tensors that PEFT misses in the folder, or finds no place for, are an error.
"""
import json
import sys

import torch
from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    path, folder, rows = sys.argv[1:]
    torch.set_num_threads(2)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig.from_pretrained(folder)).eval()
    loaded = set_peft_model_state_dict(model, load_peft_weights(folder, device="cpu"))
    missing = [name for name in loaded.missing_keys if "lora_" in name]
    if missing or loaded.unexpected_keys:
        sys.exit(f"load-peft: not in the folder: {missing[:3]}; without a place: {loaded.unexpected_keys[:3]}")
    total, n = 0.0, 0
    with open(rows) as lines:
        for row in map(json.loads, lines):
            tokens, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])[1:]
            with torch.no_grad():
                logits = model(input_ids=tokens[None]).logits[0, :-1]
            learned = labels != -100
            total += torch.nn.functional.cross_entropy(logits[learned], labels[learned], reduction="sum").item()
            n += int(learned.sum())
    print(f"load-peft: loss {total / n:.6f} over {n} targets")


if __name__ == "__main__":
    main()
