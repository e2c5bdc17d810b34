#!/usr/bin/env python3
"""Writes the small references that cmd/cftune's family tests compare the engine with: for each model family, a random model
built with transformers from its configuration class, and what PyTorch + PEFT make of two token sequences with it.

usage: PEER/venv/bin/python scripts/make-family-references.py [--list] [NAME...]     PEER is what scripts/setup-peer prints
Writes cmd/cftune/testdata/families/NAME.json and NAME.safetensors for families, the same in testdata/adapters for other kinds
of adapters (ADAPTERS below) and there the folder NAME, the adapter as PEFT saves it; without names, all of them.
The same machine and versions give the same files; on another machine the last bits differ.

No weights are stored: they follow from their GGUF names (see values), here and in internal/testmodel, which writes the GGUF
that the JSON file describes. So each file below knows a tensor's name and place in the GGUF and in transformers.

NAME.json           architecture, metadata and tensors of the GGUF; rank, alpha and targets of the adapter, of other kinds also
                    rslora, dora and each module's rank and alpha; the sequences, of which tokens n_prompt.. are learned; their
                    mean loss; same_rows, the number of rows of a sequence that llama.cpp computes alike (it ignores the
                    windows of some families; 0 means all); of families where all rows are alike, greedy: what each sequence goes
                    on with by the most likely tokens, as far as these are clearly more likely than the next
NAME.safetensors    logits.N: rows of sequence N from its row logits_from on; and the gradient of the mean loss for every
                    lora_a, lora_b and lora_magnitude, names and row order of GGUF. Of families with GELU also table.N: the logits with
                    the activation as ggml's CPU code has it, a table over half-precision numbers
"""
import json
import os
import shutil
import sys

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

SEED, VOCAB, LAYERS, HEADS, KV_HEADS, EMBD, FF = 20260202, 320, 2, 4, 2, 64, 96
EPS, RANK, ALPHA = 1e-6, 4, 8
LENGTHS, PROMPTS, LOGITS_FROM = (11, 40), (4, 25), (0, 24)
CONTEXT = 512
GREEDY, CLEARLY = 96, 0.005  # tokens, logits: some times what two implementations differ by
WINDOW = 12  # of families with one: shorter than the longer sequence


def values(name, shape, deviation, mean=0.0):
    """Uniform values with a standard deviation: splitmix64 of FNV-1a of the name plus the index, its upper 24 bits."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.uint64(h) + (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
    return torch.from_numpy((unit * (deviation * np.sqrt(3.0)) + mean).astype(np.float32).reshape(shape))


class Writer:
    """Gives a transformers model its weights, and lists them as the GGUF has them."""

    def __init__(self, model, gemma_norms, heads_interleaved):
        self.state = {name: w for name, w in model.named_parameters()}
        if model.config.tie_word_embeddings:
            self.state.pop("lm_head.weight", None)
        self.unset = {name: torch.ones(w.shape, dtype=torch.bool) for name, w in self.state.items()}
        self.tensors = []
        self.gemma_norms, self.interleaved = gemma_norms, heads_interleaved

    def put(self, name, theirs, shape, deviation, mean=0.0, where=..., heads=0, norm=False):
        """One GGUF tensor; theirs is its parameter, or part of one, in transformers."""
        self.tensors.append({"name": name, "shape": list(shape), "deviation": deviation, "mean": mean})
        w = values(name, shape, deviation, mean)
        if heads and self.interleaved:
            w = unpermuted(w, heads)
        if norm and self.gemma_norms:
            w = w - 1
        with torch.no_grad():
            self.state[theirs][where] = w
            self.unset[theirs][where] = False

    def given(self, name, vector):
        self.tensors.append({"name": name, "shape": [len(vector)], "values": [float(np.float32(v)) for v in vector]})

    def check(self):
        left = [name for name, mask in self.unset.items() if mask.any()]
        assert not left, f"weights that were not set: {left}"


def permuted(w, heads):
    """Rows of q and k in the order of GGUF's llama layout: the halves of a head, which rotary embedding pairs, interleaved."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def unpermuted(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


MODULES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
FUSED = {
    "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj",
}


def weights(model, family):
    """All tensors of a model. Matrices have unit gain, q and k more, so that attention is far from even."""
    c, arch = model.config, family["architecture"]
    gemma = arch.startswith("gemma")
    w = Writer(model, gemma, arch == "llama")
    d, ff, hd = c.hidden_size, c.intermediate_size, family["head_dim"]
    q, kv = HEADS * hd, KV_HEADS * hd
    gain = lambda cols, of=1.0: float(of / np.sqrt(cols))
    w.put("token_embd.weight", "model.embed_tokens.weight", (VOCAB, d), 0.125 if gemma else 0.25)  # gemma scales them
    for i in range(c.num_hidden_layers):
        ours, theirs = f"blk.{i}.", f"model.layers.{i}."
        norm = lambda name, other, n=d: w.put(f"{ours}{name}.weight", f"{theirs}{other}.weight", (n,), 0.3, 1.0, norm=True)
        matrix = lambda name, other, shape, of=1.0, heads=0: w.put(
            f"{ours}{name}.weight", f"{theirs}{other}.weight", shape, gain(shape[1], of), heads=heads)
        norm("attn_norm", "input_layernorm")
        if arch == "phi3":
            matrix("attn_qkv", FUSED["attn_qkv"], (q + 2 * kv, d), 1.5)
        else:
            matrix("attn_q", MODULES["attn_q"], (q, d), 1.5, HEADS)
            matrix("attn_k", MODULES["attn_k"], (kv, d), 1.5, KV_HEADS)
            matrix("attn_v", MODULES["attn_v"], (kv, d))
        if family.get("biases"):
            for name, rows, heads in (("attn_q", q, HEADS), ("attn_k", kv, KV_HEADS), ("attn_v", kv, 0)):
                w.put(f"{ours}{name}.bias", f"{theirs}{MODULES[name]}.bias", (rows,), 0.5, heads=heads)
        if family.get("head_norms"):
            norm("attn_q_norm", "self_attn.q_norm", hd)
            norm("attn_k_norm", "self_attn.k_norm", hd)
        matrix("attn_output", MODULES["attn_output"], (d, q))
        if gemma:
            norm("post_attention_norm", "post_attention_layernorm")
            norm("ffn_norm", "pre_feedforward_layernorm")
            norm("post_ffw_norm", "post_feedforward_layernorm")
        else:
            norm("ffn_norm", "post_attention_layernorm")
        if arch == "phi3":
            matrix("ffn_up", FUSED["ffn_up"], (2 * ff, d))
            matrix("ffn_down", FUSED["ffn_down"], (d, ff))
        elif arch == "qwen3moe":
            n, width = c.num_experts, c.moe_intermediate_size
            matrix("ffn_gate_inp", "mlp.gate", (n, d), 1.5)
            both = f"{theirs}mlp.experts.gate_up_proj"
            w.put(f"{ours}ffn_gate_exps.weight", both, (n, width, d), gain(d), where=np.s_[:, :width])
            w.put(f"{ours}ffn_up_exps.weight", both, (n, width, d), gain(d), where=np.s_[:, width:])
            w.put(f"{ours}ffn_down_exps.weight", f"{theirs}mlp.experts.down_proj", (n, d, width), gain(width))
        else:
            for name in ("ffn_gate", "ffn_up", "ffn_down"):
                matrix(name, MODULES[name], (d, ff) if name == "ffn_down" else (ff, d))
    w.put("output_norm.weight", "model.norm.weight", (d,), 0.3, 1.0, norm=True)
    if not c.tie_word_embeddings:
        w.put("output.weight", "lm_head.weight", (VOCAB, d), gain(d, 1.5))
    for name, factors in family.get("factors", {}).items():
        w.given(name, factors(model) if callable(factors) else factors)
    w.check()
    return w.tensors


def metadata(family, config):
    """Keys of the GGUF under the architecture's name, by type."""
    number = {
        "block_count": config.num_hidden_layers, "context_length": CONTEXT, "embedding_length": EMBD, "feed_forward_length": FF,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": family["head_dim"],
        "attention.value_length": family["head_dim"], "rope.dimension_count": family["head_dim"], **family.get("number", {})}
    real = {"attention.layer_norm_rms_epsilon": EPS, "rope.freq_base": 10000.0, **family.get("real", {})}
    return {"number": number, "real": {k: float(v) for k, v in real.items()}, "text": family.get("text", {})}


ENDS = {"token_embd": "model.embed_tokens", "output": "lm_head"}


def adapter_modules(family, layers, kind):
    """(GGUF weight, PEFT module, heads whose rows are interleaved, rank, alpha) of each module that gets an adapter."""
    modules = FUSED if family["architecture"] == "phi3" else {
        k: v for k, v in MODULES.items() if family["architecture"] != "qwen3moe" or k.startswith("attn")}
    listed = [(f"{ours}.weight", ENDS[ours], 0) for ours in kind.get("ends", [])]
    for i in kind.get("layers", range(layers)):
        for ours, theirs in modules.items():
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(ours, 0) if family["architecture"] == "llama" else 0
            listed.append((f"blk.{i}.{ours}.weight", f"model.layers.{i}.{theirs}", heads))
    exact = lambda pattern, name, usual: next((v for k, v in pattern.items() if ("." + name).endswith("." + k)), usual)
    return [(w, m, h, exact(kind.get("rank_pattern", {}), m, RANK), exact(kind.get("alpha_pattern", {}), m, ALPHA)) for w, m, h in listed]


def adapt(model, family, kind):
    """PEFT's adapter, its tensors by the same rule as the weights. Returns the model, {GGUF name: (parameter, to GGUF's order)}
    and the modules."""
    listed = adapter_modules(family, model.config.num_hidden_layers, kind)
    adapted = get_peft_model(model, LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
        target_modules=[m for _, m, *_ in listed] if kind else sorted({m.rsplit(".")[-1] for _, m, *_ in listed}),
        use_rslora=kind.get("rslora", False), use_dora=kind.get("dora", False), rank_pattern=kind.get("rank_pattern", {}),
        alpha_pattern=kind.get("alpha_pattern", {})))
    parameters = {name: w for name, w in adapted.named_parameters() if w.requires_grad}
    named = {}
    for weight, module, heads, rank, _ in listed:
        parts = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
        if weight == "token_embd.weight":
            parts = {"lora_a": "lora_embedding_A.default", "lora_b": "lora_embedding_B.default"}
        elif kind.get("dora"):
            parts["lora_magnitude"] = "lora_magnitude_vector.default.weight"
        for ours, theirs in parts.items():
            p, name = parameters.pop(f"base_model.model.{module}.{theirs}"), f"{weight}.{ours}"
            there, back = lambda w: w, lambda w: w
            if heads and ours != "lora_a":
                there, back = (lambda w, h=heads: unpermuted(w, h)), (lambda w, h=heads: permuted(w, h))
            if ours == "lora_magnitude":  # a vector there, a column here
                there, back = (lambda w, f=there: f(w[:, 0])), (lambda w, f=back: f(w)[:, None])
            if theirs == "lora_embedding_A.default":
                there = back = lambda w: w.T
            shape = tuple(back(p.data).shape)
            assert ours == "lora_magnitude" or rank in shape, f"{name} is {shape}, not of rank {rank}"
            w = values(name, shape, 0.2, 1.0) if ours == "lora_magnitude" else values(name, shape, 0.15)
            p.data = there(w).contiguous()
            named[name] = (p, back)
    assert not parameters, f"adapted but not listed: {list(parameters)}"
    return adapted.eval(), named, listed


def build(family):
    """A family's model and its configuration; it has no weights yet."""
    arguments = dict(
        vocab_size=VOCAB, hidden_size=EMBD, intermediate_size=FF, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, rms_norm_eps=EPS, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, bos_token_id=0, eos_token_id=2, pad_token_id=None,
        attn_implementation="eager", **({"head_dim": family["head_dim"]} if family["architecture"] != "phi3" else {}))
    config = getattr(transformers, family["class"])(**{**arguments, **family.get("config", {})})
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float(), config


def describe(family, config, model, tensors):
    """The model as internal/testmodel writes it."""
    keys = metadata(family, config)
    for key, value in family.get("computed", {}).items():
        keys["real"][key] = float(value(model))
    return {"architecture": family["architecture"], **keys, "tensors": tensors}


def describe_adapter(kind, listed):
    """Its settings, which for one that is a rank and a scale only are few."""
    targets = list(dict.fromkeys(w.split(".")[-2] for w, *_ in listed))
    return {"rank": RANK, "alpha": ALPHA, "targets": targets, **({
        "rslora": kind.get("rslora", False), "dora": kind.get("dora", False),
        "modules": [{"weight": w, "rank": r, "alpha": a} for w, _, _, r, a in listed]} if kind else {})}


def make(name, family, folder, kind={}):
    model, config = build(family)
    tensors = weights(model, family)
    adapted, named, listed = adapt(model, family, kind)
    generator = torch.Generator().manual_seed(SEED)
    sequences = [torch.randint(3, VOCAB, (n,), generator=generator) for n in LENGTHS]
    total = sum(len(s) - p for s, p in zip(sequences, PROMPTS))
    saved, loss = {}, 0.0
    for k, (tokens, prompt) in enumerate(zip(sequences, PROMPTS)):
        logits = adapted(input_ids=tokens[None], use_cache=False).logits[0]
        part = torch.nn.functional.cross_entropy(logits[prompt - 1:-1], tokens[prompt:], reduction="sum") / total
        part.backward()
        loss += part.item()
        saved[f"logits.{k}"] = logits[LOGITS_FROM[k]:].detach().contiguous()
    for ours, (p, back) in named.items():
        saved[ours] = back(p.grad).contiguous()
    if family["architecture"].startswith("gemma"):
        saved.update(table_logits(adapted, model, sequences))
    goes_on = {} if kind or family.get("same_rows") else {"greedy": [greedy(adapted, s) for s in sequences]}
    if kind:
        save_adapter(adapted, os.path.join(folder, name))
    path = os.path.join(folder, name + ".safetensors")
    save_file(saved, path)
    os.chmod(path, 0o644)
    with open(os.path.join(folder, name + ".json"), "w") as f:
        json.dump({
            **describe(family, config, model, tensors), **describe_adapter(kind, listed),
            "sequences": [{"tokens": s.tolist(), "n_prompt": p, "logits_from": f} for s, p, f in zip(sequences, PROMPTS, LOGITS_FROM)],
            "loss": loss, "vocab": VOCAB, "same_rows": family.get("same_rows", 0), **goes_on}, f, indent=1)
        f.write("\n")
    spread = saved["logits.1"].max() - saved["logits.1"].min()
    print(f"make-family-references: {name}: loss {loss:.4f}, logits spread over {spread:.1f}")


def greedy(adapted, sequence):
    """Up to GREEDY tokens behind a sequence, computed without a cache; before one that ends a text, or that is not CLEARLY the first."""
    tokens = sequence.tolist()
    with torch.no_grad():
        while len(tokens) < len(sequence) + GREEDY:
            top = adapted(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].topk(2)
            best = int(top.indices[0])
            if top.values[0] - top.values[1] < CLEARLY or best in (0, 2):
                break
            tokens.append(best)
    return tokens[len(sequence):]


def save_adapter(adapted, folder):
    shutil.rmtree(folder, ignore_errors=True)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    os.remove(os.path.join(folder, "README.md"))
    os.chmod(os.path.join(folder, "adapter_model.safetensors"), 0o644)


class TableGelu(torch.nn.Module):
    """GELU of ggml on the CPU: input and result are rounded to half precision, within -10..10."""

    def forward(self, x):
        y = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, y))


def table_logits(adapted, model, sequences):
    for layer in model.model.layers:
        layer.mlp.act_fn = TableGelu()
    with torch.no_grad():
        return {f"table.{k}": adapted(input_ids=s[None], use_cache=False).logits[0, LOGITS_FROM[k]:].contiguous()
                for k, s in enumerate(sequences)}


def llama3_factors(model):
    """What the model divides the plain frequencies by."""
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2).double() / 16)
    return (plain / model.model.rotary_emb.inv_freq.double()).tolist()


def rope(kind="default", **more):
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


def llama(**more):
    return {"architecture": "llama", "class": "LlamaConfig", "head_dim": 16, **more}


def longrope(original):
    """LongRoPE as in Phi-3-mini-128k: attention grows with the longest context over the original one."""
    short, long = [1.0 + 0.05 * i for i in range(8)], [1.0 + 0.9 * i for i in range(8)]
    return {
        "architecture": "phi3", "class": "Phi3Config", "head_dim": 16,
        "config": {"original_max_position_embeddings": original, "rope_parameters": rope(
            "longrope", short_factor=short, long_factor=long, factor=4.0, original_max_position_embeddings=original)},
        "number": {"rope.scaling.original_context_length": original},
        "computed": {"rope.scaling.attn_factor": lambda model: model.model.rotary_emb.attention_scaling},
        "factors": {"rope_factors_long.weight": long, "rope_factors_short.weight": short}}


def gemma(generation, **more):
    """Heads that are not n_embd / n_head wide."""
    return {
        "architecture": f"gemma{generation}", "class": "Gemma2Config" if generation == 2 else "Gemma3TextConfig", "head_dim": 24,
        **more, "config": {"tie_word_embeddings": True, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, **more["config"]},
        "number": {"attention.sliding_window": WINDOW}}


FAMILIES = {
    "llama3": llama(
        config={"rope_parameters": rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                        original_max_position_embeddings=64)},
        factors={"rope_freqs.weight": llama3_factors}),
    "llama-linear": llama(
        config={"rope_parameters": rope("linear", factor=4.0)},
        text={"rope.scaling.type": "linear"}, real={"rope.scaling.factor": 4.0}),
    "mistral": {**llama(config={"sliding_window": WINDOW}, number={"attention.sliding_window": WINDOW}, same_rows=WINDOW),
                "class": "MistralConfig"},
    "qwen2": {"architecture": "qwen2", "class": "Qwen2Config", "head_dim": 16, "biases": True},
    "qwen2-yarn": {"architecture": "qwen2", "class": "Qwen2Config", "head_dim": 16, "biases": True,
                   "config": {"rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=128)},
                   "text": {"rope.scaling.type": "yarn"}, "real": {"rope.scaling.factor": 4.0},
                   "number": {"rope.scaling.original_context_length": 128}},
    "qwen3": {"architecture": "qwen3", "class": "Qwen3Config", "head_dim": 24, "head_norms": True,
              "config": {"tie_word_embeddings": True}},
    "phi3": {"architecture": "phi3", "class": "Phi3Config", "head_dim": 16, "same_rows": WINDOW,
             "config": {"sliding_window": WINDOW, "rope_parameters": rope(partial_rotary_factor=0.75)},
             "number": {"attention.sliding_window": WINDOW, "rope.dimension_count": 12}},
    "phi3-short": longrope(512),
    "phi3-long": longrope(8),
    "gemma2": gemma(2, config={"attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0},
                    real={"attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0}),
    # Every sixth layer is global.
    "gemma3": gemma(3, head_norms=True, config={
        "num_hidden_layers": 6,
        "rope_parameters": {"full_attention": {**rope("linear", factor=8.0), "rope_theta": 1e6}, "sliding_attention": rope()}},
        text={"rope.scaling.type": "linear"}, real={"rope.freq_base": 1e6, "rope.scaling.factor": 8.0}),
    "qwen3moe": {"architecture": "qwen3moe", "class": "Qwen3MoeConfig", "head_dim": 24, "head_norms": True,
                 "config": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
                            "decoder_sparse_step": 1, "mlp_only_layers": []},
                 "number": {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 32}},
}

# Other kinds of adapters: the family, and what PEFT is told.
ADAPTERS = {
    "dora": ("llama3", {"dora": True}),
    "dora-fused": ("phi3", {"dora": True, "rank_pattern": {"qkv_proj": 6}}),
    "dora-biases": ("qwen2", {"dora": True, "rslora": True, "layers": [1]}),
    "patterns": ("llama3", {"rslora": True, "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.down_proj": 7},
                            "alpha_pattern": {"v_proj": 3, "layers.0.mlp.up_proj": 20}}),
    "ends": ("llama3", {"ends": ["token_embd", "output"], "rank_pattern": {"lm_head": 3, "embed_tokens": 5}, "alpha_pattern": {"lm_head": 4}}),
}


def asked(documentation, known):
    """The names on the command line, all of them without any; says what is known for --list, -h and names that are not."""
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        sys.exit(documentation)
    if "--list" in arguments:
        print("\n".join(known))
        sys.exit(0)
    for name in arguments:
        if name not in known:
            sys.exit(f"{os.path.basename(sys.argv[0])}: no reference {name}; these are: {' '.join(known)}")
    return arguments or known


def main():
    testdata = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cmd", "cftune", "testdata")
    names = asked(__doc__, [*FAMILIES, *ADAPTERS])
    torch.set_num_threads(1)
    for name in names:
        family, kind = ADAPTERS.get(name, (name, {}))
        folder = os.path.join(testdata, "adapters" if kind else "families")
        os.makedirs(folder, exist_ok=True)
        make(name, FAMILIES[family], folder, kind)


if __name__ == "__main__":
    main()
