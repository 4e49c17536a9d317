# SPDX-License-Identifier: Apache-2.0
"""capture and compare on a small random model; the command on a checkpoint with a tokenizer."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_huggingface import model_of, tokens

import tilewise
from tilewise import _program


def test_capture_saves_what_attention_read(tmp_path):
    model = model_of("qwen3")
    before = model.config._attn_implementation
    paths = tilewise.capture(model, tokens(1, 60), tmp_path, layers=[0, 2])
    assert [path.name for path in paths] == ["layer0.safetensors", "layer2.safetensors"]
    assert model.config._attn_implementation == before
    saved = load_file(paths[0])
    assert saved["q"].shape == (1, 4, 60, 16) and saved["k"].shape == (1, 2, 60, 16)
    # Rotary positions turn the pre-rotary tensors into those that attention reads.
    rotary = model.model.rotary_emb(torch.zeros(1, 60, 64), torch.arange(60)[None])
    q, k = transformers.models.qwen3.modeling_qwen3.apply_rotary_pos_emb(saved["q_pre_rotary"], saved["k_pre_rotary"], *rotary)
    assert torch.allclose(q, saved["q"], atol=1e-6) and torch.allclose(k, saved["k"], atol=1e-6)
    assert "mask" in load_file(paths[1])  # a sliding window
    with pytest.raises(ValueError, match="layer 9"):
        tilewise.capture(model, tokens(1, 60), tmp_path, layers=[9])


@pytest.mark.skipif(not _program.PROGRAM.exists(), reason="the package was built without the program")
def test_the_program_reads_what_was_captured(tmp_path):
    (path,) = tilewise.capture(model_of("llama"), tokens(1, 256), tmp_path, layers=[1])
    out = tmp_path / "out.json"
    subprocess.run([_program.PROGRAM, "compare", "--qkv", path, "--methods", "a_shape:local=64,init=4", "--json", out], check=True, capture_output=True)
    row = json.loads(out.read_text())["methods"][-1]
    assert row["name"] == "a_shape" and 0 < row["density"] < 1


def test_compare():
    model = model_of("llama")
    before = model.config._attn_implementation
    found = tilewise.compare(model, tokens(1, 200), ["a_shape", ("a_shape", {"init": 4, "local": 32, "tile": 16}), ("xattention", {"threshold": 1.0, "tile": 16, "stride": 4})])
    dense, wide, narrow, full = found.rows
    assert model.config._attn_implementation == before and not hasattr(model.model.layers[0].self_attn, "tilewise_layer")
    assert dense.density == 1 and dense.output_error == 0 and abs(dense.recall - 1) < 1e-5
    assert wide.density == pytest.approx(1) and wide.output_error < 1e-5  # 2,048 tokens reach over everything
    assert narrow.density < 0.5 and 0 < narrow.recall < 1 and narrow.output_error > 0.01 and narrow.loss != dense.loss
    assert full.output_error < 1e-5
    with torch.no_grad():
        ids = tokens(1, 200)
        assert dense.loss == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-4)
    assert "a_shape init=4 local=32 tile=16" in str(found) and json.loads(found.to_json())["methods"][2]["density"] == narrow.density
    page = found._repr_html_()
    assert page.count("<tr>") == 5 and "LlamaForCausalLM, 200 tokens" in page


def test_a_refusal_is_a_row():
    config = transformers.BertConfig(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    found = tilewise.compare(transformers.BertModel(config), tokens(2, 60), ["minference"])  # takes causal masks alone
    assert found.rows[0].refused is None and found.rows[1].refused and "refused" in str(found) and "refused" in found._repr_html_()
    assert found.best() is None


def test_a_padded_batch_is_compared_sequence_by_sequence():
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, :20] = 0
    found = tilewise.compare(model_of("llama"), {"input_ids": tokens(2, 60), "attention_mask": mask}, [("mean_pool", {"density": 0.5, "tile": 16})])
    assert found.tokens == 60 and 0.4 < found.rows[1].density < 0.9 and found.rows[1].loss is not None


def test_the_command_tokenizes(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    text = "the plan says which keys each tile of queries reads, and the report what that did to the result. " * 40
    tokenizer = Tokenizer(models.BPE(unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=97, special_tokens=["[unk]"]))
    folder = tmp_path / "model"
    model_of("llama").save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(text)
    command = [sys.executable, "-c", "from tilewise._program import main; main()", "compare", "--model", folder, "--text", tmp_path / "text.txt"]
    done = subprocess.run([*command, "--length", "300", "--methods", "a_shape:init=4,local=32", "--json", tmp_path / "out.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a_shape init=4 local=32" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["tokens"] == 300
    done = subprocess.run([*command, "--length", "300000"], capture_output=True, text=True)
    assert done.returncode == 1 and "which is less than --length 300000" in done.stderr
    done = subprocess.run([*command, "--tune"], capture_output=True, text=True)
    assert done.returncode == 2 and "unrecognized arguments: --tune" in done.stderr
