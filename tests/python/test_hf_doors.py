# SPDX-License-Identifier: Apache-2.0
"""The other doors of transformers: beams, assisted generation, encoders with decoders, several models in one, torch.compile."""

import pytest
import torch
import transformers
from test_huggingface import SIZES, model_of, tokens, with_tilewise

import tilewise
import tilewise.huggingface as huggingface


@pytest.mark.parametrize("cache", [None, "static"])
@torch.no_grad()
def test_beam_search(cache):
    """The cache is put in another order at each step."""
    model, ids = model_of("llama"), tokens(2, 30)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    options = dict(attention_mask=mask, num_beams=3, max_new_tokens=8, do_sample=False, cache_implementation=cache, eos_token_id=None)
    expected = model.generate(ids, **options)
    assert torch.equal(with_tilewise(model).generate(ids, **options), expected)
    huggingface.configure(model, "mean_pool", density=1.0, tile=16, decode="same")
    assert torch.equal(model.generate(ids, **options), expected)


@torch.no_grad()
def test_assisted_generation():
    """Several new tokens at a time, more and fewer than decode takes, some of them taken back."""
    model, helper = model_of("llama"), model_of("llama")
    helper.lm_head.weight.data += 0.2 * torch.randn_like(helper.lm_head.weight)
    ids = tokens(1, 15).repeat(1, 3)
    options = dict(max_new_tokens=20, do_sample=False, eos_token_id=None)
    expected = model.generate(ids, **options)
    with_tilewise(model), with_tilewise(helper)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=12, **options), expected)
    assert torch.equal(model.generate(ids, assistant_model=helper, **options), expected)


def bart():
    config = transformers.BartConfig(
        vocab_size=97, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BartForConditionalGeneration(config).eval()


@torch.no_grad()
def test_encoder_with_decoder():
    model, ids, answer = bart(), tokens(2, 40), tokens(2, 40, seed=1)
    mask = torch.ones_like(ids)
    mask[1, 25:] = 0
    inputs = dict(attention_mask=mask, decoder_input_ids=answer)
    options = dict(attention_mask=mask, max_new_tokens=8, num_beams=2)
    expected, generated = model(ids, **inputs).logits, model.generate(ids, **options)
    with_tilewise(model)
    assert torch.allclose(model(ids, **inputs).logits, expected, atol=2e-5) and torch.equal(model.generate(ids, **options), generated)
    # A method reads both self-attentions. Cross-attention stays dense, though here it has as many queries as keys.
    huggingface.configure(model, "mean_pool", density=0.4, tile=16)
    calls = []
    with huggingface.observe(model, calls.append):
        model(ids, **inputs)
    per_layer = [(call.plan.density < 0.9, call.q.shape[2], str(call.mask)) for call in calls]
    encoder = [(True, 40, "Mask.full()"), (True, 25, "Mask.full()")]
    decoder = [(True, 40, "Mask.causal()"), (False, 40, "Mask.spans([1, 2, 40, 4])")]
    assert per_layer == 2 * encoder + 2 * decoder
    with pytest.raises(ValueError, match="layers of the same numbers"):
        huggingface.configure(model, layers={0: "dense"})
    huggingface.configure(model)
    huggingface.configure(model.get_encoder(), "mean_pool", density=0.4, tile=16, layers={0: "dense"})
    calls.clear()
    with huggingface.observe(model, calls.append):
        model(ids, **inputs)
    assert [call.plan.density < 0.9 for call in calls] == [False, True, True, False, False, False, False]


@torch.no_grad()
def test_position_biases_are_refused():
    config = transformers.T5Config(vocab_size=97, d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=4)
    model = with_tilewise(transformers.T5ForConditionalGeneration(config).eval())
    with pytest.raises(NotImplementedError, match="a position bias is not computed"):
        model(tokens(1, 20), decoder_input_ids=tokens(1, 5))


@torch.no_grad()
def test_a_model_of_images_and_text():
    """Each part takes its own implementation; the images' encoder is bidirectional."""
    heads = dict(num_hidden_layers=2, num_attention_heads=4)
    config = transformers.LlavaConfig(
        vision_config=dict(model_type="clip_vision_model", hidden_size=64, intermediate_size=96, image_size=32, patch_size=8, **heads),
        text_config=dict(SIZES, model_type="llama", num_key_value_heads=2, head_dim=16, **heads), image_token_index=96, image_seq_length=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    ids = torch.cat([tokens(1, 4) % 90 + 3, torch.full((1, 16), 96), tokens(1, 20) % 90 + 3], 1)
    inputs = dict(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32))
    expected = model(**inputs).logits
    for implementation in ({"text_config": "tilewise"}, {"vision_config": "tilewise"}, "tilewise"):
        model.set_attn_implementation(implementation)
        assert torch.allclose(model(**inputs).logits, expected, atol=2e-5)
    model.set_attn_implementation("sdpa")
    model.set_attn_implementation({"text_config": "tilewise"})
    assert (model.config.vision_config._attn_implementation, model.config.text_config._attn_implementation) == ("sdpa", "tilewise")
    huggingface.configure(model, "mean_pool", density=0.4, tile=16)
    calls = []
    with huggingface.observe(model, calls.append):
        assert not torch.allclose(model(**inputs).logits, expected, atol=1e-5)
    assert [(call.layer, str(call.mask)) for call in calls] == [(0, "Mask.causal()"), (1, "Mask.causal()")]


@pytest.mark.parametrize("name,method", [("llama", "mean_pool"), ("mistral", "dense")])
@torch.no_grad()
def test_whole_graphs(name, method):
    """torch.compile(fullgraph=True) with torch's default settings, over lengths that differ; windows, sinks and padding, too."""
    torch._dynamo.reset()
    model = with_tilewise(model_of(name))
    model.model.layers = model.model.layers[:1]  # tracing takes its time
    if method != "dense":
        huggingface.configure(model, method, density=0.5, tile=16)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch._dynamo.utils.counters.clear()
    for length in (40, 33, 50):
        ids = tokens(2, length)
        assert torch.allclose(compiled(ids).logits, model(ids).logits, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    if method == "dense":
        assert torch.allclose(compiled(ids, attention_mask=mask).logits[mask.bool()], model(ids, attention_mask=mask).logits[mask.bool()], atol=1e-5)
    else:
        with pytest.raises(NotImplementedError, match="cannot tell the sequences of a padded or packed batch apart"):
            torch.compile(model, backend="eager")(ids, attention_mask=mask)


def test_compiled_training():
    torch._dynamo.reset()
    model, ids = with_tilewise(model_of("llama")), tokens(2, 40)
    model.model.layers = model.model.layers[:1]
    compiled, results = torch.compile(model, fullgraph=True, backend="aot_eager"), []
    for run in (model, compiled):
        model.zero_grad()
        run(ids, use_cache=False, labels=ids).loss.backward()
        results.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results))


def test_attention_is_one_operator_when_compiled():
    q, k = torch.randn(2, 4, 70, 16, requires_grad=True), torch.randn(2, 2, 70, 16, requires_grad=True)
    sink = torch.zeros(4, requires_grad=True)
    spans = torch.zeros(1, 2, 70, 4, dtype=torch.int32)
    spans[:, :, :, 1] = torch.tensor([70, 33])[:, None]
    for mask, options in ((tilewise.Mask.causal(), {"method": "mean_pool", "density": 0.5, "tile": 16}), (tilewise.Mask.spans(spans), {"method": "dense"})):
        call = lambda q, k, sink: tilewise.attention(q, k, k, mask=mask, softcap=20.0, sink_logit=sink, **options)  # noqa: B023, E731
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        got, expected = compiled(q, k, sink), call(q, k, sink)
        assert torch.equal(got, expected)
        for a, b in zip(torch.autograd.grad(got.square().sum(), (q, k, sink)), torch.autograd.grad(expected.square().sum(), (q, k, sink))):
            assert torch.allclose(a, b, atol=1e-6)
