# SPDX-License-Identifier: Apache-2.0
"""Padded and packed batches of Hugging Face models read by a method: each sequence gets what it gets alone."""

import pytest
import torch
import transformers
from test_huggingface import model_of, tokens

import tilewise
import tilewise.huggingface as huggingface

LENGTHS = (70, 33, 70, 17, 1)
METHODS = {
    "a_shape": {"init": 4, "local": 9, "tile": 16},
    "xattention": {"threshold": 0.6, "tile": 16, "stride": 4},
    "mean_pool": {"density": 0.4, "tile": 16},
    "minference": {"pattern": "block_sparse", "blocks": 2, "tile": 16},
    "flexprefill": {"tile": 16, "gamma": 0.3},
}  # fmt: skip


def padded(side, lengths=LENGTHS, seed=0):
    """ids, mask and positions, and where the real tokens of each sequence lie."""
    length = max(lengths)
    ids, mask, places = tokens(len(lengths), length, seed), torch.zeros(len(lengths), length, dtype=torch.long), []
    for row, real in enumerate(lengths):
        if side == "left":
            place = torch.arange(length - real, length)
        elif side == "right":
            place = torch.arange(real)
        else:
            place = torch.randperm(length, generator=torch.Generator().manual_seed(row))[:real].sort().values
        mask[row, place] = 1
        places.append(place)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0), places


def configured(name, method, **options):
    model = model_of(name)
    return huggingface.configure(model, method, **METHODS[method], sliding=("mean_pool", METHODS["mean_pool"]), **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", ["left", "right", "holes"])
@torch.no_grad()
def test_padded_batch_equals_its_sequences_alone(method, side):
    model = configured("llama", method)
    ids, mask, positions, places = padded(side)
    calls = []
    with huggingface.observe(model, calls.append):
        got = model(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.isfinite(got).all()
    for row, place in enumerate(places):
        alone = model(ids[row : row + 1, place]).logits
        assert torch.allclose(got[row, place], alone[0], atol=2e-5)
    layer = [call for call in calls if call.layer == 0]
    assert [call.q.shape[2] for call in layer] == list(LENGTHS) and min(call.plan.density for call in layer) < 0.95
    for row, call in enumerate(layer):
        assert call.sequences[0].entry == row and torch.equal(call.sequences[0].queries, places[row])


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_windows_softcap_and_sinks(name, side):
    model = configured(name, "a_shape")
    ids, mask, positions, places = padded(side)
    got = model(ids, attention_mask=mask, position_ids=positions).logits
    for row, place in enumerate(places):
        assert torch.allclose(got[row, place], model(ids[row : row + 1, place]).logits[0], atol=2e-4)


@torch.no_grad()
def test_equal_lengths_run_together():
    model = configured("llama", "xattention")
    ids, mask, positions, places = padded("left", (40, 40, 60))
    calls = []
    with huggingface.observe(model, calls.append):
        got = model(ids, attention_mask=mask, position_ids=positions).logits
    assert [call.q.shape[0] for call in calls if call.layer == 0] == [2, 1]
    for row, place in enumerate(places):
        assert torch.allclose(got[row, place], model(ids[row : row + 1, place]).logits[0], atol=2e-5)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("new_tokens", ["dense", "same"])
@pytest.mark.parametrize("name,method", [("llama", "xattention"), ("llama", "a_shape"), ("mistral", "a_shape")])
@torch.no_grad()
def test_generate_from_a_padded_batch(name, method, cache, new_tokens):
    if method == "xattention" and new_tokens == "same":
        method = "mean_pool"
    model = configured(name, method, decode=new_tokens)
    ids, mask, _, places = padded("left", (64, 30, 1))
    options = dict(max_new_tokens=10, do_sample=False, cache_implementation=cache, eos_token_id=None)
    got = model.generate(ids, attention_mask=mask, **options)
    for row, place in enumerate(places):
        alone = model.generate(ids[row : row + 1, place], attention_mask=mask[row : row + 1, place], **options)
        assert torch.equal(got[row, 64:], alone[0, len(place) :])


@torch.no_grad()
def test_padded_chunks():
    """A prompt that comes in pieces: the padding lies in the first ones."""
    model = configured("llama", "a_shape")
    ids, mask, positions, places = padded("left", (70, 33))
    whole = model(ids, attention_mask=mask, position_ids=positions).logits
    cache = transformers.DynamicCache(config=model.config)
    parts, done = [], 0
    for size in (20, 25, 25):
        done += size
        part = slice(done - size, done)
        parts.append(model(ids[:, part], attention_mask=mask[:, :done], position_ids=positions[:, part], past_key_values=cache).logits)
    got = torch.cat(parts, 1)
    for row, place in enumerate(places):
        assert torch.allclose(got[row, place], whole[row, place], atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "mistral"])
@torch.no_grad()
def test_packed_sequences(name):
    model = configured(name, "a_shape")
    lengths = (40, 1, 23, 40)
    ids = tokens(2, sum(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])[None].expand(2, -1)
    got = model(ids, position_ids=positions, use_cache=False).logits  # with a cache, transformers sees one sequence
    for row in range(2):
        for part, logits in zip(ids[row].split(lengths), got[row].split(lengths)):
            assert torch.allclose(model(part[None]).logits[0], logits, atol=2e-4)
    spans = huggingface.tilewise_mask(
        1, 5, 5, mask_function=transformers.masking_utils.and_masks(
            transformers.masking_utils.remap_positions_for_packed_sequence(transformers.masking_utils.causal_mask_function, torch.tensor([[0, 1, 2, 0, 1]])),
            transformers.masking_utils.packed_sequence_mask_function(torch.tensor([[0, 0, 0, 1, 1]])),
        ),
    ).mask.spans_tensor  # fmt: skip
    assert spans[0, 0, :, :2].tolist() == [[0, 1], [0, 2], [0, 3], [3, 4], [3, 5]]


def test_training_on_a_padded_batch():
    model = configured("llama", "mean_pool")
    ids, mask, positions, places = padded("right", (50, 21))
    labels = ids.masked_fill(mask == 0, -100)
    model(ids, attention_mask=mask, position_ids=positions, labels=labels, num_items_in_batch=1).loss.backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row, place in enumerate(places):
        part = ids[row : row + 1, place]
        model(part, labels=part, num_items_in_batch=1).loss.backward()
    for name, parameter in model.named_parameters():
        scale = together[name].abs().max()
        assert (parameter.grad - together[name]).abs().max() <= 1e-4 * scale + 1e-6, name


@torch.no_grad()
def test_autocast():
    model = configured("llama", "a_shape")
    ids, mask, positions, places = padded("left", (50, 21))
    expected = model(ids, attention_mask=mask, position_ids=positions).logits
    with torch.autocast("cpu", torch.bfloat16):
        got = model(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.allclose(got[mask.bool()].float(), expected[mask.bool()], atol=0.1)
    hidden = torch.randn(2, 4, 50, 16)
    visible = huggingface.tilewise_mask(2, 50, 50, attention_mask=mask.bool())
    with torch.autocast("cpu", torch.bfloat16):
        assert huggingface.attention_forward(model.model.layers[0].self_attn, hidden, hidden, hidden, visible)[0].dtype == torch.bfloat16


@torch.no_grad()
def test_encoder_with_padding():
    """Bidirectional: what padding computes is read by nobody, but it stays what the model's mask says."""
    config = transformers.BertConfig(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128)
    torch.manual_seed(0)
    model = huggingface.configure(transformers.BertModel(config).eval(), "mean_pool", density=0.5, tile=16)
    ids, mask, _, places = padded("right")
    got = model(ids, attention_mask=mask).last_hidden_state
    for row, place in enumerate(places):
        assert torch.allclose(got[row, place], model(ids[row : row + 1, place]).last_hidden_state[0], atol=2e-5)
    huggingface.configure(model, "mean_pool", density=1.0, tile=16)
    everything = model(ids, attention_mask=mask).last_hidden_state
    huggingface.configure(model)
    assert torch.allclose(model(ids, attention_mask=mask).last_hidden_state, everything, atol=2e-5)  # at the padding, too


@torch.no_grad()
def test_a_method_per_head_in_a_padded_batch():
    model = model_of("llama")
    use = {"method": "a_shape", "options": METHODS["a_shape"]}
    recipe = {
        "schema": 1, "model": {"layers": 3, "heads_q": 4, "heads_kv": 2, "head_dim": 16}, "default": {"method": "dense", "options": {"tile": 16}},
        "layers": [{"layer": 1, "heads": [{"heads": [0, 3], **use}]}],
    }  # fmt: skip
    tilewise.configure(model, recipe)
    ids, mask, positions, places = padded("left")
    got = model(ids, attention_mask=mask, position_ids=positions).logits
    for row, place in enumerate(places):
        assert torch.allclose(got[row, place], model(ids[row : row + 1, place]).logits[0], atol=2e-5)
