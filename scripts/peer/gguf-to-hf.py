"""Writes a llama-architecture GGUF as a Hugging Face folder in fp32, weights dequantized, and checks that against an
independent reader.

usage: gguf-to-hf.py MODEL.gguf FOLDER
"""
import os
import sys

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

MODULES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def unpermuted(w, heads):
    """Rows of q and k in Hugging Face's order: GGUF interleaves the two halves of a head."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def check(path, model):
    tensors = {t.name: t for t in GGUFReader(path).tensors}
    state, config = model.state_dict(), model.config
    for layer in (0, config.num_hidden_layers - 1):
        for ours, theirs in MODULES.items():
            t = tensors[f"blk.{layer}.{ours}.weight"]
            w = dequantize(t.data, t.tensor_type)
            if ours in ("attn_q", "attn_k"):
                w = unpermuted(w, config.num_attention_heads if ours == "attn_q" else config.num_key_value_heads)
            difference = np.abs(w - state[f"model.layers.{layer}.{theirs}.weight"].numpy()).max()
            if difference != 0:
                sys.exit(f"gguf-to-hf: layer {layer} {ours}: differs from the GGUF by {difference}")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path, folder = sys.argv[1:]
    where = dict(pretrained_model_name_or_path=os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path))
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    check(path, model)
    # What was read is plain fp32 now; without this, saving would try to write it back in GGUF's quantization.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model, "quantization_method"):
        del model.quantization_method
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


if __name__ == "__main__":
    main()
