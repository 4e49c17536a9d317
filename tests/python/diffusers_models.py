# SPDX-License-Identifier: Apache-2.0
"""Small random models of diffusers' families, each with the arguments of one call and how many tokens of text share the image's sequence, and at which end."""

import diffusers
import torch


def text_mask(dtype=torch.bool):
    """12 tokens of text, of which the second prompt has 7."""
    mask = torch.ones(2, 12, dtype=dtype)
    mask[1, 7:] = 0
    return mask


def dit():
    model = diffusers.DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=16, in_channels=4, num_layers=2, sample_size=16, patch_size=1, norm_num_groups=2)
    return model, dict(hidden_states=torch.randn(2, 4, 16, 16), timestep=torch.tensor([10, 500]), class_labels=torch.tensor([1, 7])), 0


def flux():
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    ids = torch.zeros(64, 3)
    ids[:, 1], ids[:, 2] = torch.arange(64) // 8, torch.arange(64) % 8
    inputs = dict(hidden_states=torch.randn(2, 64, 4), encoder_hidden_states=torch.randn(2, 12, 32), pooled_projections=torch.randn(2, 32))
    return model, inputs | dict(timestep=torch.tensor([1.0, 0.5]), img_ids=ids, txt_ids=torch.zeros(12, 3)), 12


def wan():
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16, freq_dim=256, ffn_dim=32, num_layers=2,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    return model, dict(hidden_states=torch.randn(2, 4, 2, 16, 16), timestep=torch.tensor([1, 500]), encoder_hidden_states=torch.randn(2, 12, 16)), 0


def sd3():
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32,
        pooled_projection_dim=64, out_channels=4, qk_norm="rms_norm",
    )  # fmt: skip
    inputs = dict(hidden_states=torch.randn(2, 4, 8, 8), encoder_hidden_states=torch.randn(2, 12, 32))
    return model, inputs | dict(pooled_projections=torch.randn(2, 64), timestep=torch.tensor([1, 500])), -12


def cogvideox():
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=8, num_layers=2, sample_width=16, sample_height=16,
        sample_frames=9, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=12,
    )  # fmt: skip
    return model, dict(hidden_states=torch.randn(2, 3, 4, 16, 16), encoder_hidden_states=torch.randn(2, 12, 8), timestep=torch.tensor([1, 500])), 12


def hunyuan_video():
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1,
        guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    inputs = dict(hidden_states=torch.randn(2, 4, 1, 9, 9), encoder_hidden_states=torch.randn(2, 12, 16), encoder_attention_mask=text_mask(torch.float32))
    return model, inputs | dict(timestep=torch.tensor([1, 500]), pooled_projections=torch.randn(2, 8), guidance=torch.tensor([6000.0, 6000.0])), -12


def qwen_image():
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3, joint_attention_dim=16, axes_dims_rope=(8, 4, 4)
    )
    inputs = dict(hidden_states=torch.randn(2, 64, 16), encoder_hidden_states=torch.randn(2, 12, 16), encoder_hidden_states_mask=text_mask())
    return model, inputs | dict(timestep=torch.tensor([1.0, 0.5]), img_shapes=[(1, 8, 8)] * 2), 12


def ltx():
    model = diffusers.LTXVideoTransformer3DModel(in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=2, caption_channels=16)
    inputs = dict(hidden_states=torch.randn(2, 64, 8), encoder_hidden_states=torch.randn(2, 12, 16), encoder_attention_mask=text_mask())
    return model, inputs | dict(timestep=torch.tensor([1, 500]), num_frames=4, height=4, width=4), 0


def lumina2():
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2,
        axes_dim_rope=(4, 2, 2), axes_lens=(128, 128, 128), cap_feat_dim=8,
    )  # fmt: skip
    inputs = dict(hidden_states=torch.randn(2, 4, 16, 16), encoder_hidden_states=torch.randn(2, 12, 8), encoder_attention_mask=text_mask())
    return model, inputs | dict(timestep=torch.tensor([0.1, 0.5])), 12


def mochi():
    model = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=4, text_embed_dim=16, time_embed_dim=4,
        max_sequence_length=12,
    )  # fmt: skip
    inputs = dict(hidden_states=torch.randn(2, 4, 2, 16, 16), encoder_hidden_states=torch.randn(2, 12, 16), encoder_attention_mask=text_mask())
    return model, inputs | dict(timestep=torch.tensor([1, 500])), -12


def aura_flow():
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        joint_attention_dim=32, out_channels=4, pos_embed_max_size=256,
    )  # fmt: skip
    return model, dict(hidden_states=torch.randn(2, 4, 16, 16), encoder_hidden_states=torch.randn(2, 12, 32), timestep=torch.tensor([0.1, 0.5])), 12


def flux2():
    model = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, timestep_guidance_channels=256,
        axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    ids = torch.zeros(64, 4)
    ids[:, 1], ids[:, 2] = torch.arange(64) // 8, torch.arange(64) % 8
    inputs = dict(hidden_states=torch.randn(2, 64, 4), encoder_hidden_states=torch.randn(2, 12, 32), timestep=torch.tensor([1.0, 0.5]))
    return model, inputs | dict(img_ids=ids, txt_ids=torch.zeros(12, 4), guidance=torch.tensor([1.0, 1.0])), 12


def pixart():
    model = diffusers.PixArtTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4, caption_channels=16, in_channels=4, cross_attention_dim=32, out_channels=8,
        norm_type="ada_norm_single", use_additional_conditions=False,
    )  # fmt: skip
    inputs = dict(hidden_states=torch.randn(2, 4, 16, 16), encoder_hidden_states=torch.randn(2, 12, 16), encoder_attention_mask=text_mask())
    return model, inputs | dict(timestep=torch.tensor([1, 500]), added_cond_kwargs={"resolution": None, "aspect_ratio": None}), 0


def stable_diffusion():
    model = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    return model, dict(sample=torch.randn(2, 4, 16, 16), timestep=10, encoder_hidden_states=torch.randn(2, 12, 32)), 0


def sana():
    model = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2, num_cross_attention_heads=2, cross_attention_head_dim=8,
        cross_attention_dim=16, caption_channels=16, sample_size=8,
    )  # fmt: skip
    return model, dict(hidden_states=torch.randn(2, 4, 8, 8), encoder_hidden_states=torch.randn(2, 12, 16), timestep=torch.tensor([1, 500])), 0


FAMILIES = (dit, flux, wan, sd3, cogvideox, hunyuan_video, qwen_image, ltx, lumina2, mochi, aura_flow, flux2, pixart, stable_diffusion)


def made(family):
    """The model, what runs it and answers its sample, and the tokens of text."""
    torch.manual_seed(0)
    model, inputs, text = family()
    return model.eval(), lambda **kwargs: model(**inputs, **kwargs, return_dict=False)[0], text
