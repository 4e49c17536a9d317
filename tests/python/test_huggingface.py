# SPDX-License-Identifier: Apache-2.0
"""Models of transformers with random weights: dense equals sdpa to rounding, sparse equals the masked reference."""

import json

import pytest
import torch
import transformers
from conftest import reference

import tilewise
import tilewise.huggingface as huggingface

SIZES = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16)


def configs():
    return {
        "llama": transformers.LlamaConfig(**SIZES, **HEADS),
        "mistral": transformers.MistralConfig(**SIZES, **HEADS, sliding_window=24),
        "qwen2": transformers.Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=1),
        "qwen3": transformers.Qwen3Config(**SIZES, **HEADS, use_sliding_window=True, sliding_window=20, max_window_layers=1),
        "gemma2": transformers.Gemma2Config(**SIZES, num_attention_heads=2, num_key_value_heads=1, head_dim=256, sliding_window=16, query_pre_attn_scalar=64),
        "gemma3": transformers.Gemma3TextConfig(**SIZES, **HEADS, sliding_window=16),
        "gpt_oss": transformers.GptOssConfig(**SIZES, **HEADS, num_local_experts=2, num_experts_per_tok=1, sliding_window=16),
    }  # fmt: skip


# Softcap and sink logits are not in sdpa.
ORACLE = {"gemma2": "eager", "gpt_oss": "eager"}
NAMES = list(configs())


def model_of(name):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(configs()[name], attn_implementation=ORACLE.get(name, "sdpa")).eval()
    for parameter in model.parameters():  # far enough from uniform attention that a wrong mask shows
        parameter.data.mul_(1.5)
    return model


def tokens(batch, length, seed=0):
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def with_tilewise(model):
    model.set_attn_implementation("tilewise")
    return model


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_dense_equals_torch(name):
    model = model_of(name)
    ids = tokens(2, 75)
    expected = model(ids).logits
    got = with_tilewise(model)(ids).logits
    assert torch.allclose(got, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right", "holes"])
@torch.no_grad()
def test_padding(name, side):
    model = model_of(name)
    ids = tokens(3, 60)
    mask = torch.ones_like(ids)
    for row, real in enumerate((60, 33, 9)):
        if side == "left":
            mask[row, : 60 - real] = 0
        elif side == "right":
            mask[row, real:] = 0
        else:
            mask[row, real // 2 : real // 2 + 7] = 0  # one hole: two ranges of keys
    expected = model(ids, attention_mask=mask).logits
    got = with_tilewise(model)(ids, attention_mask=mask).logits
    real = mask.bool()
    assert torch.allclose(got[real], expected[real], atol=2e-4, rtol=1e-4)
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cache", [None, "static"])
@torch.no_grad()
def test_generate(name, cache):
    """Prefill, then decode, with a batch that is padded on the left."""
    model = model_of(name)
    ids = tokens(2, 40)
    mask = torch.ones_like(ids)
    mask[1, :13] = 0
    options = dict(max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True, cache_implementation=cache)
    expected = model.generate(ids, attention_mask=mask, **options)
    got = with_tilewise(model).generate(ids, attention_mask=mask, **options)
    assert torch.equal(got.sequences, expected.sequences)
    for a, b in zip(got.logits, expected.logits):
        assert torch.allclose(a, b, atol=5e-4, rtol=1e-3)
    plain = dict(options, max_new_tokens=6)
    model.set_attn_implementation(ORACLE.get(name, "sdpa"))
    expected = model.generate(ids[:1], **plain).sequences
    assert torch.equal(with_tilewise(model).generate(ids[:1], **plain).sequences, expected)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@torch.no_grad()
def test_chunked_prefill(name):
    model = model_of(name)
    ids = tokens(1, 70)
    expected = model(ids).logits
    with_tilewise(model)
    cache = transformers.DynamicCache(config=model.config)
    parts = [model(part, past_key_values=cache).logits for part in ids.split([31, 20, 3, 1, 15], 1)]
    assert torch.allclose(torch.cat(parts, 1), expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_packed_sequences_and_ready_made_masks():
    model = model_of("llama")
    ids = tokens(1, 48)
    positions = torch.cat([torch.arange(20), torch.arange(28)])[None]
    expected = model(ids, position_ids=positions, use_cache=False).logits  # with a cache, transformers sees one sequence
    allowed = torch.rand(1, 1, 48, 48) < 0.5
    allowed |= torch.eye(48, dtype=torch.bool)
    additive = torch.zeros(1, 1, 48, 48).masked_fill(~allowed, torch.finfo(torch.float32).min)
    by_bits = model(ids, attention_mask=allowed).logits
    with_tilewise(model)
    assert torch.allclose(model(ids, position_ids=positions, use_cache=False).logits, expected, atol=2e-4, rtol=1e-4)
    assert torch.allclose(model(ids, attention_mask=allowed).logits, by_bits, atol=2e-4, rtol=1e-4)
    assert torch.allclose(model(ids, attention_mask=additive).logits, by_bits, atol=2e-4, rtol=1e-4)
    with pytest.raises(NotImplementedError, match="a bias is not computed"):
        model(ids, attention_mask=additive + 0.5)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
@torch.no_grad()
def test_sparse_equals_the_masked_reference(name):
    model = model_of(name)
    huggingface.configure(model, "random", density=0.3, tile=16, sliding=("random", {"density": 0.3, "tile": 16}))
    calls = []
    with huggingface.observe(model, calls.append):
        model(tokens(2, 100))
    assert [call.layer for call in calls] == [0, 1, 2]
    for call in calls:
        assert call.plan.density < 0.8
        sinks = getattr(model.model.layers[call.layer].self_attn, "sinks", None)
        exact, _ = reference(call.q, call.k, call.v, call.plan.to_bits(), call.scale, call.softcap, sinks)
        assert (call.out - exact).abs().max() < 2e-5
        window = huggingface._window_of(model.model.layers[call.layer].self_attn)
        assert (window is None) == (name == "llama") or name in ("gemma2", "gpt_oss")
        call.plan.validate(tilewise.Mask.band(left=None if window is None else window - 1, right=0))


@torch.no_grad()
def test_methods_per_layer_and_head(tmp_path):
    model = model_of("llama")
    ids = tokens(1, 130)
    use = {"method": "a_shape", "options": {"init": 4, "local": 20, "tile": 16}}
    recipe = {
        "schema": 1,
        "model": {"layers": 3, "heads_q": 4, "heads_kv": 2, "head_dim": 16},
        "default": {"method": "dense", "options": {"tile": 16}},
        "layers": [{"layer": 1, "heads": [{"heads": [0, 3], **use}, {"heads": [1], "method": "xattention", "options": {"tile": 16, "stride": 4}}]}],
    }
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe))
    calls = []
    for given in (path, recipe, str(path)):
        calls.clear()
        huggingface.configure(model, given)
        with huggingface.observe(model, calls.append):
            model(ids)
        causal = torch.ones(130, 130, dtype=torch.bool).tril()
        assert torch.equal(calls[0].plan.to_bits()[0, 2], causal)
        bits = calls[1].plan.to_bits()[0]
        distance = torch.arange(130)[:, None] - torch.arange(130)
        shape = causal & ((distance < 20) | (torch.arange(130) < 4))
        assert torch.equal(bits[0], shape) and torch.equal(bits[3], shape) and torch.equal(bits[2], causal)
    huggingface.configure(model, "xattention", tile=16, stride=4, layers={2: "dense", 0: ("a_shape", {"local": 30})})
    calls.clear()
    with huggingface.observe(model, calls.append):
        model(ids)
    assert torch.equal(calls[2].plan.to_bits()[0, 0], causal) and calls[0].plan.to_bits()[0, 0, 129].sum() == 30 + 64
    recipe["model"]["head_dim"] = 32
    with pytest.raises(ValueError, match="head_dim 32, this one has 16"):
        huggingface.configure(model, recipe)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "model": {"layers": 3, "heads_q": 4, "heads_kv": 2, "head_dim": 16}, "default": 3}', "\xff"])
def test_what_is_no_recipe_is_named(text, tmp_path):
    model = model_of("llama")
    path = tmp_path / "recipe.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"^configure: (.*recipe\.json is not|the recipe was made for a model with)"):
        huggingface.configure(model, path)
    with pytest.raises(OSError, match="none.json"):
        huggingface.configure(model, tmp_path / "none.json")


@torch.no_grad()
def test_generate_with_a_method():
    """An example of use: prompts by a method, new tokens densely or by it, too."""
    model = model_of("llama")
    ids = tokens(1, 120)
    dense = with_tilewise(model).generate(ids, max_new_tokens=8, do_sample=False)
    huggingface.configure(model, "xattention", threshold=1.0, tile=16, stride=4)  # covers everything
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), dense)
    huggingface.configure(model, "a_shape", init=4, local=24, decode="same")
    calls = []
    with huggingface.observe(model, calls.append):
        model.generate(ids, max_new_tokens=3, do_sample=False)
    assert [call.plan is not None for call in calls] == [True] * 9
    assert all(call.plan.to_bits().sum(-1).max() == 28 for call in calls)


def test_training():
    model = model_of("llama")
    ids = tokens(2, 50)
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    losses, grads = [], []
    for name in ("sdpa", "tilewise"):
        model.set_attn_implementation(name)
        model.zero_grad()
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        losses.append(loss.item())
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    assert abs(losses[0] - losses[1]) < 1e-4
    for a, b in zip(*grads):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-3)


def test_what_is_refused():
    model = model_of("llama")
    ids = tokens(2, 40)
    with pytest.raises(ValueError, match="did you mean xattention"):
        huggingface.configure(model, "xatention")
    with pytest.raises(ValueError, match="layer 7, the model has 0 to 2"):
        huggingface.configure(model, layers={7: "dense"})
    with pytest.raises(TypeError, match="^configure: layers is of type list, takes [a-z.]*Mapping$"):
        huggingface.configure(model, layers=["dense"])
    huggingface.configure(model, "xattention")
    ready_made = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]
    with pytest.raises(NotImplementedError, match="4-D mask goes with dense attention alone"):  # never dense in its place
        model(ids, attention_mask=ready_made)
    mistral = model_of("mistral")
    huggingface.configure(mistral, sliding="xattention")
    mask = torch.ones_like(ids)
    mask[1, 20:25] = 0
    with pytest.raises(NotImplementedError):  # without the hole a window of tokens would be another one
        mistral(ids, attention_mask=mask)
    model.config.attention_dropout = 0.1
    for _, module in huggingface.attention_layers(model):
        module.attention_dropout = 0.1
    huggingface.configure(model)
    with pytest.raises(NotImplementedError, match="dropout"):
        model.train()(ids)
    with pytest.raises(ValueError, match="no attention layer"):
        huggingface.configure(torch.nn.Linear(2, 2))


def test_bidirectional_encoder():
    config = transformers.BertConfig(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128)
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    ids = tokens(2, 50)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).last_hidden_state
        got = with_tilewise(model)(ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(got[mask.bool()], expected[mask.bool()], atol=2e-5)


def test_masks_are_small():
    visible = huggingface.tilewise_mask(2, 100_000, 100_000)
    assert visible.is_band and visible.mask.spans_tensor is None
    padding = torch.ones(2, 100_000, dtype=torch.bool)
    padding[1, :500] = False
    spans = huggingface.tilewise_mask(2, 100_000, 100_000, attention_mask=padding).mask.spans_tensor
    assert spans.shape == (1, 2, 100_000, 4)
