#!/usr/bin/env python3
"""Writes the small reference that cmd/cftune's parity test compares the engine with: a random llama model of two layers,
a PEFT adapter, three token sequences, and what PyTorch + PEFT make of them: logits, losses, the gradient of every
adapter tensor, and a curve of 20 AdamW steps.

usage: PEER/venv/bin/python scripts/make-reference.py [FOLDER]     PEER is what scripts/setup-peer prints
FOLDER defaults to cmd/cftune/testdata/reference. Needs only the packages that scripts/setup-peer installs.
The same machine and versions give the same files; on another machine the last bits differ.

Files written:
  model.gguf                   llama architecture, F32, output head of its own, byte-level BPE vocabulary
  adapter/                     PEFT's files: rank 4, alpha 8, all seven linear modules, A and B random
  tokens.json                  [{length, n_prompt, tokens}]: the loss is on tokens n_prompt..length-1
  logits.safetensors           seqN.full [n_targets, n_vocab]: the rows that predict those tokens, adapter active
  loss.json                    mean losses with and without the adapter, the batch's (sum over all targets / their number), and
                               the curve's learning rate
  grad_batch.safetensors       gradient of the batch mean loss for every lora_A and lora_B, names and row order of PEFT
  curve.json                   [{step, loss, grad_norm_before_clip}]: before update `step` of AdamW; the last after all
"""
import json
import os
import sys

import gguf
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 20260101
LAYERS, EMBD, HEADS, KV_HEADS, FF, VOCAB = 2, 32, 4, 2, 64, 288
EPS, ROPE_BASE, CONTEXT = 1e-5, 10000.0, 256
RANK, ALPHA = 4, 8
LENGTHS, PROMPTS = (9, 24, 47), (3, 8, 20)
STEPS, LR, CLIP = 20, 1e-2, 1.0
MODULES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}


def make_model():
    """Weights of unit gain, so that two layers already shape the logits and every adapter gradient is far from zero."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=EMBD, intermediate_size=FF, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, rms_norm_eps=EPS, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE}, attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).float()
    generator = torch.Generator().manual_seed(SEED)
    for name, w in sorted(model.named_parameters()):
        noise = torch.randn(w.shape, generator=generator)
        w.data = 1 + 0.1 * noise if w.dim() == 1 else noise / w.shape[1] ** 0.5
    return model


def permuted(w, heads):
    """Rows of q and k in llama.cpp's order: the two halves of a head, which rotary embedding pairs, interleaved."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def byte_characters():
    """GPT-2's characters for the 256 bytes, in the order of the bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def write_gguf(model, path):
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("reference model")
    out.add_block_count(LAYERS)
    out.add_context_length(CONTEXT)
    out.add_embedding_length(EMBD)
    out.add_feed_forward_length(FF)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(EPS)
    out.add_rope_freq_base(ROPE_BASE)
    out.add_rope_dimension_count(EMBD // HEADS)
    out.add_vocab_size(VOCAB)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_characters(), "Ġt", "he", "Ġthe"]
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3)
    while len(tokens) < VOCAB:
        kinds.append(gguf.TokenType.UNUSED)
        tokens.append(f"<|unused_{len(tokens)}|>")
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    out.add_token_merges(["Ġ t", "h e", "Ġt he"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(2)
    out.add_add_bos_token(False)
    out.add_chat_template(
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
    state = {k: v.detach() for k, v in model.state_dict().items()}
    add = lambda name, w: out.add_tensor(name, w.contiguous().numpy())
    add("token_embd.weight", state["model.embed_tokens.weight"])
    for i in range(LAYERS):
        layer = lambda name: state[f"model.layers.{i}.{name}.weight"]
        add(f"blk.{i}.attn_norm.weight", layer("input_layernorm"))
        add(f"blk.{i}.attn_q.weight", permuted(layer("self_attn.q_proj"), HEADS))
        add(f"blk.{i}.attn_k.weight", permuted(layer("self_attn.k_proj"), KV_HEADS))
        add(f"blk.{i}.attn_v.weight", layer("self_attn.v_proj"))
        add(f"blk.{i}.attn_output.weight", layer("self_attn.o_proj"))
        add(f"blk.{i}.ffn_norm.weight", layer("post_attention_layernorm"))
        for theirs in ("gate_proj", "up_proj", "down_proj"):
            add(f"blk.{i}.{MODULES[theirs]}.weight", layer(f"mlp.{theirs}"))
    add("output_norm.weight", state["model.norm.weight"])
    add("output.weight", state["lm_head.weight"])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def make_adapter(model):
    adapted = get_peft_model(model, LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=list(MODULES)))
    generator = torch.Generator().manual_seed(SEED + 1)
    for name, w in sorted(adapted.named_parameters()):
        if "lora_" in name:
            w.data = torch.randn(w.shape, generator=generator) * 0.1
    return adapted.eval()


def make_sequences():
    generator = torch.Generator().manual_seed(SEED + 2)
    return [
        {"length": n, "n_prompt": p, "tokens": torch.randint(3, VOCAB, (n,), generator=generator).tolist()}
        for n, p in zip(LENGTHS, PROMPTS)
    ]


def targets_loss(model, s):
    """Logits of the rows that predict a supervised token, and the sum of their losses."""
    ids = torch.tensor([s["tokens"]])
    logits = model(input_ids=ids, use_cache=False).logits[0, s["n_prompt"] - 1:-1]
    return logits, torch.nn.functional.cross_entropy(logits, ids[0, s["n_prompt"]:], reduction="sum")


def peft_name(name):
    return name.replace(".default", "")


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(
        os.path.dirname(os.path.abspath(__file__)), "..", "cmd", "cftune", "testdata", "reference")
    if folder in ("-h", "--help"):
        sys.exit(__doc__)
    os.makedirs(folder, exist_ok=True)
    torch.set_num_threads(1)
    write_json = lambda name, value: json.dump(value, open(os.path.join(folder, name), "w"), indent=1)

    model = make_model()
    write_gguf(model, os.path.join(folder, "model.gguf"))
    sequences = make_sequences()
    write_json("tokens.json", sequences)
    adapted = make_adapter(model)
    adapted.save_pretrained(os.path.join(folder, "adapter"))
    # PEFT adds an empty model card, and lists modules in the order of a set, which differs from run to run.
    readme = os.path.join(folder, "adapter", "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    config = json.load(open(os.path.join(folder, "adapter", "adapter_config.json")))
    config["target_modules"].sort()
    write_json("adapter/adapter_config.json", config)

    weights = {peft_name(n): w for n, w in adapted.named_parameters() if w.requires_grad}
    total = sum(s["length"] - s["n_prompt"] for s in sequences)
    logits, info, batch = {}, [], 0.0
    for s in sequences:
        n = s["length"] - s["n_prompt"]
        rows, loss = targets_loss(adapted, s)
        (loss / total).backward()
        batch += loss.item() / total
        with torch.no_grad(), adapted.disable_adapter():
            base = targets_loss(adapted, s)[1].item() / n
        logits[f"seq{s['length']}.full"] = rows.detach().contiguous()
        info.append({"length": s["length"], "n_prompt": s["n_prompt"], "n_supervised": n, "mean_loss": loss.item() / n, "base_mean_loss": base})
    save_file(logits, os.path.join(folder, "logits.safetensors"))
    save_file({n: w.grad.contiguous() for n, w in weights.items()}, os.path.join(folder, "grad_batch.safetensors"))
    write_json("loss.json", {"lr": LR, "batch_supervised": total, "batch_mean_loss": batch, "sequences": info})

    optimizer = torch.optim.AdamW(weights.values(), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, foreach=False)
    curve = []
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        loss = 0.0
        for s in sequences:
            part = targets_loss(adapted, s)[1]
            (part / total).backward()
            loss += part.item() / total
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), CLIP).item()
        curve.append({"step": step, "loss": loss, "grad_norm_before_clip": norm})
        if step < STEPS:
            optimizer.step()
    write_json("curve.json", curve)
    print(f"make-reference: {folder}: loss {curve[0]['loss']:.4f} -> {curve[-1]['loss']:.4f} in {STEPS} steps")


if __name__ == "__main__":
    main()
