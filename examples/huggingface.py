#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model reads its prompt by a sparse method: examples/huggingface.py [MODEL FOLDER [TEXT FILE]]. Without a folder a small random model stands in."""

import pathlib
import sys

import torch
import transformers

import tilewise
import tilewise.huggingface

if len(sys.argv) > 1:
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], attn_implementation="tilewise").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    text = pathlib.Path(sys.argv[2]).read_text() if len(sys.argv) > 2 else "The keys that matter are few. " * 200
    tokens = tokenizer(text, return_tensors="pt").input_ids
else:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, bos_token_id=None, eos_token_id=None
    )
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="tilewise").eval()
    tokens = torch.randint(0, 256, (1, 1024))

# What would each method cost, and what would it do to the output?
print(tilewise.compare(model, tokens, ["a_shape", ("xattention", {"threshold": 0.9, "tile": 64})]))

# Layer 0 stays dense; the others choose their keys by xattention. New tokens read the whole cache.
tilewise.huggingface.configure(model, "xattention", threshold=0.9, tile=64, layers={0: "dense"})
densities = {}


def note(call):
    if call.plan is not None:
        densities[call.layer] = round(call.plan.density, 3)


with tilewise.huggingface.observe(model, note):
    answer = model.generate(tokens, max_new_tokens=16, do_sample=False)
print("density of each layer:", densities)
print("new tokens:", answer[0, tokens.shape[1] :].tolist())
