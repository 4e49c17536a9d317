# SPDX-License-Identifier: Apache-2.0
"""Models of diffusers with random weights: dense equals their own processors, sparse equals torch's attention under the plan's mask."""

import copy
import pickle

import diffusers_models as models
import pytest
import torch
from conftest import reference
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor

import tilewise
import tilewise.diffusers as processors

FAMILY = pytest.mark.parametrize("family", models.FAMILIES, ids=lambda family: family.__name__)
# Their text refiners mask pairs of text, which goes with dense attention alone.
LEFT_OUT = {"hunyuan_video": {"context_embedder": None}}


def sparse(model, family, **options):
    return processors.configure(model, "random", density=0.3, tile=16, layers=LEFT_OUT.get(family.__name__), **options)


def masked_sdpa(q, k, v, plan, scale):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=plan.to_bits(), scale=scale, enable_gqa=True)


@FAMILY
@torch.no_grad()
def test_dense_equals_the_family(family):
    model, run, _ = models.made(family)
    expected = run()
    before = [module.processor for _, module in processors.self_attentions(model)]
    used = processors.configure(model)
    assert len(used) == len(before) > 0 and all(isinstance(one, type(own)) for one, own in zip(used, before))
    calls = []
    with processors.observe(model, calls.append):
        assert torch.allclose(run(), expected, atol=2e-5, rtol=1e-4)
    assert len({call.name for call in calls}) == len(used) and all(call.plan.fill == 1 or call.mask is None for call in calls)
    processors.restore(model)
    assert [module.processor for _, module in processors.self_attentions(model)] == before and torch.equal(run(), expected)


@FAMILY
@torch.no_grad()
def test_sparse_equals_torch_under_the_plans_mask(family, monkeypatch):
    model, run, _ = models.made(family)
    dense = run()
    sparse(model, family)
    calls = []
    with processors.observe(model, calls.append):
        got = run()
    assert not torch.allclose(got, dense, atol=1e-5) and all(call.plan.density < 0.7 for call in calls if call.q.shape[2] > 20)
    for call in calls:
        assert (call.out - reference(call.q, call.k, call.v, call.plan.to_bits(), call.scale)[0]).abs().max() < 1e-5
    monkeypatch.setattr(processors, "attend", masked_sdpa)
    assert torch.allclose(run(), got, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [models.dit, models.flux, models.wan, models.sd3, models.qwen_image], ids=lambda family: family.__name__)
def test_gradients(family, monkeypatch):
    model, run, _ = models.made(family)
    sparse(model, family)
    grads = []
    for attention in (processors.attend, masked_sdpa):
        monkeypatch.setattr(processors, "attend", attention)
        model.zero_grad()
        run().square().mean().backward()
        grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None})
    assert any("to_q" in name for name in grads[0]) and grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], atol=1e-5, rtol=1e-3), name


@pytest.mark.parametrize("family", [models.flux, models.sd3, models.qwen_image, models.hunyuan_video], ids=lambda family: family.__name__)
@torch.no_grad()
def test_text_is_kept_whole(family):
    model, run, text = models.made(family)
    keep = {"keep_first": text} if text > 0 else {"keep_last": -text}
    processors.configure(model, "random", density=0.0, tile=16, layers=LEFT_OUT.get(family.__name__), **keep)
    calls = []
    with processors.observe(model, calls.append):
        run()
    assert calls
    for call in calls:
        bits, tokens = call.plan.to_bits(), call.q.shape[2]
        left = min(abs(text), tokens - (81 if family is models.hunyuan_video else 64))  # what the mask leaves of the text
        kept = slice(0, left) if text > 0 else slice(tokens - left, tokens)
        assert bits[:, :, kept].all() and bits[:, :, :, kept].all() and call.plan.density < 0.7


@torch.no_grad()
def test_one_calls_own_choice():
    for family, name in ((models.dit, "cross_attention_kwargs"), (models.flux, "joint_attention_kwargs"), (models.sd3, "joint_attention_kwargs")):
        model, run, _ = models.made(family)
        expected = run()
        used = sparse(model, family)
        got, calls = run(), []
        with processors.observe(model, calls.append):
            assert torch.allclose(run(**{name: {"method": "dense"}}), expected, atol=2e-5)
            assert not torch.allclose(run(**{name: {"method": "random", "options": {"density": 0.5, "tile": 16}}}), expected, atol=1e-5)
            run(**{name: {"plan": calls[0].plan}})
        assert calls[0].plan.density == 1 and calls[-1].plan is calls[0].plan and used[0].tilewise.method == "random"
        assert torch.equal(run(), got)
        with pytest.raises(ValueError, match="did you mean"):
            run(**{name: {"method": "xatention"}})
        with pytest.raises(ValueError, match="options go with a method"):
            run(**{name: {"options": {"density": 0.9}}})


@torch.no_grad()
def test_layers_by_number_and_name():
    model, run, _ = models.made(models.flux)
    own = [module.processor for _, module in processors.self_attentions(model)]
    assert [name for name, _ in processors.self_attentions(model)] == ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]
    used = processors.configure(model, "random", layers={"single_transformer_blocks": ("mean_pool", {"density": 0.5}), 0: "dense"})
    assert [(one.tilewise.name, one.tilewise.method) for one in used] == [("transformer_blocks.0.attn", "dense"), ("single_transformer_blocks.0.attn", "mean_pool")]
    used = processors.configure(model, "random", layers={1: None})
    assert len(used) == 1 and used[0].tilewise_own is own[0] and model.single_transformer_blocks[0].attn.processor is own[1]
    for layers in ({7: "dense"}, {"transformer": "dense"}):
        with pytest.raises(ValueError, match="layers names"):
            processors.configure(model, layers=layers)
    assert model.transformer_blocks[0].attn.processor is used[0]  # a call that failed changed nothing
    with processors.configured(model, "dense") as inner:
        assert len(inner) == 2
    assert model.transformer_blocks[0].attn.processor is used[0] and model.single_transformer_blocks[0].attn.processor is own[1]


@torch.no_grad()
def test_cross_attention_keeps_its_processor():
    for family in (models.wan, models.ltx):
        model, run, _ = models.made(family)
        cross = {name: processor for name, processor in model.attn_processors.items() if "attn2" in name}
        assert len(cross) == 2
        processors.configure(model, "random")
        assert all(model.attn_processors[name] is processor for name, processor in cross.items())
        assert all("attn2" not in name for name, _ in processors.self_attentions(model))


@torch.no_grad()
def test_copies_and_fused_projections():
    model, run, _ = models.made(models.flux)
    processors.configure(model, "mean_pool", density=0.5, tile=16)
    got = run()
    copied = copy.deepcopy(model)
    processors.configure(model)  # the copy has processors of its own
    assert copied.transformer_blocks[0].attn.processor.tilewise.method == "mean_pool"
    model.load_state_dict(copied.state_dict())
    pickled = pickle.loads(pickle.dumps(copied.transformer_blocks[0].attn.processor))
    assert isinstance(pickled, processors.TilewiseProcessor) and pickled.tilewise.options == {"density": 0.5, "tile": 16}
    processors.configure(model, "mean_pool", density=0.5, tile=16)
    model.fuse_qkv_projections()
    assert torch.allclose(run(), got, atol=1e-5)


@torch.no_grad()
def test_compiled_model():
    """torch.compile leaves these layers alone: it would run their families' attention in place of ours."""
    model, run, _ = models.made(models.sd3)
    forward = model.forward
    model.forward = torch.compile(forward, backend="eager")
    stock = run()
    processors.configure(model, "mean_pool", density=0.5, tile=16, layers={1: "dense"})
    calls = []
    with processors.observe(model, calls.append):
        got = run()
    assert torch.allclose(got, run(), atol=1e-6) and not torch.allclose(got, stock, atol=1e-5) and len(calls) == 2
    model.forward = forward
    assert torch.allclose(run(), got, atol=1e-6)


@torch.no_grad()
def test_processors_with_weights():
    """An IP-Adapter's processor is a module: its weights stay where the model has them, once."""
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    model, run, _ = models.made(models.flux)
    attn = model.transformer_blocks[0].attn
    attn.set_processor(FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=32, num_tokens=(4,), scale=[0.5]))
    extra = {"joint_attention_kwargs": {"ip_hidden_states": [torch.randn(2, 4, 32)], "ip_adapter_masks": None}}
    expected, weights = run(**extra), list(model.state_dict())
    processors.configure(model)
    assert torch.allclose(run(**extra), expected, atol=2e-5) and list(model.state_dict()) == weights
    assert any("processor.to_k_ip" in name for name in weights)
    processors.configure(model, "mean_pool", density=0.5, tile=16)
    with pytest.raises(NotImplementedError, match="64 queries read 4 keys"):
        run(**extra)
    processors.restore(model)
    assert list(model.state_dict()) == weights and torch.equal(run(**extra), expected)


class OneLayer(torch.nn.Module):
    def __init__(self, processor=None):
        super().__init__()
        torch.manual_seed(0)
        self.attn = Attention(query_dim=32, heads=2, dim_head=16, processor=processor)


@torch.no_grad()
def test_masks():
    """Hidden tokens are computed, too, as in the model: they see all that is not hidden."""
    model, x = OneLayer(), torch.randn(3, 50, 32)
    hidden = torch.zeros(3, 50)
    hidden[0, 30:], hidden[1, 10:20], hidden[1, 40:], hidden[2, :5] = -10000.0, -10000.0, -10000.0, -10000.0
    pairs = torch.zeros(3, 50, 50).masked_fill(torch.rand(3, 50, 50) < 0.3, float("-inf"))
    expected = [model.attn(x, attention_mask=mask) for mask in (hidden, hidden == 0, pairs)]
    processors.configure(model)
    for mask, wanted in zip((hidden, hidden == 0, pairs), expected):
        assert torch.allclose(model.attn(x, attention_mask=mask), wanted, atol=1e-5)
    with pytest.raises(NotImplementedError, match="a bias is not computed"):
        model.attn(x, attention_mask=hidden + 0.5)
    processors.configure(model, "mean_pool", density=0.5, tile=16)
    got = model.attn(x, attention_mask=hidden)
    for entry in range(3):
        real = hidden[entry] == 0
        assert torch.allclose(got[entry, real], model.attn(x[entry : entry + 1, real])[0], atol=1e-5)
        assert torch.allclose(got[entry, ~real], expected[0][entry, ~real], atol=1e-5)
    with pytest.raises(NotImplementedError, match="attn: its mask differs from query to query.*layers={'attn': None}"):
        model.attn(x, attention_mask=pairs)


@torch.no_grad()
def test_images_as_tokens():
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    image = torch.randn(1, 3, 16, 16)
    expected = model(image, 10).sample
    assert processors.configure(model)
    assert torch.allclose(model(image, 10).sample, expected, atol=1e-4)


@torch.no_grad()
def test_refusals():
    with pytest.raises(NotImplementedError, match="no self-attention"):
        processors.configure(torch.nn.Linear(2, 2))
    model, run, _ = models.made(models.dit)
    with pytest.raises(ValueError, match="did you mean"):
        processors.configure(model, "xatention")
    processors.configure(model, "minference")  # takes causal masks alone: refused, not run densely
    with pytest.raises(NotImplementedError, match="minference"):
        run()
    # Processors that do not call attention by a name, or not themselves.
    sana, _, _ = models.made(models.sana)
    with pytest.raises(NotImplementedError, match="SanaLinearAttnProcessor2_0 keeps its attention to itself: it calls neither"):
        processors.configure(sana)
    with pytest.raises(NotImplementedError, match="attn: AttnProcessor keeps its attention to itself"):
        processors.configure(OneLayer(AttnProcessor()))
    from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor

    flux, run, _ = models.made(models.flux)
    flux.transformer_blocks[0].attn.set_processor(Flux2KVAttnProcessor())
    with pytest.raises(NotImplementedError, match="called in _flux2_kv_causal_attention"):
        processors.configure(flux)
    # What diffusers could be asked for on top.
    flux, run, _ = models.made(models.flux)
    processors.configure(flux, "mean_pool")
    flux.set_attention_backend("native")
    with pytest.raises(NotImplementedError, match="set_attention_backend chose 'native'"):
        run()
    flux.reset_attention_backend()
    run()
    flux.transformer_blocks[0].attn.processor._parallel_config = object()
    with pytest.raises(NotImplementedError, match="context parallelism"):
        run()
    layer = OneLayer()
    processors.configure(layer, "mean_pool")
    with pytest.raises(NotImplementedError, match="10 queries read 20 keys"):
        layer.attn(torch.randn(1, 10, 32), encoder_hidden_states=torch.randn(1, 20, 32))


def test_a_wrapped_call_is_refused():
    import functools

    from diffusers.models.attention_processor import AttnProcessor2_0

    class Wrapped(AttnProcessor2_0):
        @functools.wraps(AttnProcessor2_0.__call__)
        def __call__(self, *args, **kwargs):
            return AttnProcessor2_0.__call__(self, *args, **kwargs)

    class Inherited(AttnProcessor2_0):
        pass

    with pytest.raises(NotImplementedError, match="wrapped by a decorator"):
        processors.configure(OneLayer(Wrapped()))
    assert processors.configure(OneLayer(Inherited()))
    assert tilewise.diffusers is processors
