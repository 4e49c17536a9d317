# SPDX-License-Identifier: Apache-2.0
"""capture and compare: figures against the definition and against the C++ program, the report in a browser, the command on a checkpoint with a tokenizer."""

import base64
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import ROOT
from safetensors.torch import load_file
from test_huggingface import model_of, tokens

import tilewise
from tilewise import _compare, _program
from tilewise._needles import make_needles
from tilewise._text import Tokenizer, encode

needs_program = pytest.mark.skipif(not _program.PROGRAM.exists(), reason="the package was built without the program")
FIGURES = ("density", "allowed_density", "recall", "output_error")
TEXT = "the plan says which keys each tile of queries reads, and the report what that did to the result. " * 40


def reference_lm():
    return transformers.AutoModelForCausalLM.from_pretrained(ROOT / "models/reference-lm", local_files_only=True, dtype=torch.float32)


def program(*arguments, check=True):
    return subprocess.run([_program.PROGRAM, *arguments], check=check, capture_output=True, text=True)


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


# The figures.


def test_figures_are_those_of_the_definition():
    """By what observe() shows of the same model configured with the same method."""
    model = model_of("llama")
    before = model.config._attn_implementation
    ids, options = tokens(1, 200), {"init": 4, "local": 32, "tile": 16}
    found = tilewise.compare(model, ids, ["a_shape", ("a_shape", options), "xattention:threshold=1.0,tile=16,stride=4"])
    wide, narrow, full = found.rows
    assert model.config._attn_implementation == before and not hasattr(model.model.layers[0].self_attn, "tilewise_layer")
    assert wide.density == pytest.approx(1) and wide.output_error < 1e-5 and full.output_error < 1e-5  # 2,048 tokens reach over everything
    assert narrow.label == "a_shape init=4,local=32,tile=16" and narrow.options == {**wide.options, **options}

    calls = []
    tilewise.huggingface.configure(model, "a_shape", **options)
    with tilewise.huggingface.observe(model, calls.append), torch.no_grad():
        logits = model(ids).logits
    errors, recalls, reads, dense_reads = [], [], 0, 0
    for seen in calls:
        dense = tilewise.plan(seen.q, seen.k, "dense")
        exact, exact_lse = tilewise.attend(seen.q, seen.k, seen.v, dense, seen.scale, return_lse=True)
        _, lse = tilewise.attend(seen.q, seen.k, seen.v, seen.plan, seen.scale, return_lse=True)
        errors.append(((seen.out - exact).norm() / exact.norm()).item())
        recalls.append(torch.exp(lse - exact_lse).mean().item())
        reads, dense_reads = reads + seen.plan.reads(), dense_reads + seen.plan.dense_reads
    assert narrow.density == pytest.approx(reads / dense_reads) and narrow.recall == pytest.approx(sum(recalls) / 3, abs=1e-5)
    assert narrow.output_error == pytest.approx(sum(errors) / 3, rel=1e-4)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()
    assert narrow.loss == pytest.approx(loss, abs=1e-4) and narrow.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert found.dense.loss == pytest.approx(model_of("llama")(ids, labels=ids).loss.item(), abs=1e-4)
    assert narrow.extra_bits == pytest.approx(narrow.bits_per_token - found.dense.bits_per_token, abs=1e-9)
    assert [(head["layer"], head["head"]) for head in narrow.heads] == [(layer, head) for layer in range(3) for head in range(4)]
    assert found.document["input"]["reads"] == "tokens" and narrow.bits_per_byte is None and found.document["dense"]["peak_bytes"] is None


@needs_program
def test_the_program_finds_the_same(tmp_path):
    """The reference model through transformers and through the C++ program: every figure that is not a time, every map, every worst tile."""
    path = ROOT / "models/reference-lm/documents/postgresql-wal.txt"
    methods = ["a_shape:init=16,local=64", "xattention:threshold=0.9,tile=64,stride=8", "random:density=0.3"]
    found = tilewise.compare(reference_lm(), path.read_bytes(), methods, length=512, seed=3, names=[str(path)])
    program("compare", "--model", ROOT / "models/reference-lm", "--text", path, "--length", "512", "--seed", "3", "--methods", *methods, "--json", tmp_path / "out.json", "--report", tmp_path / "r.html")
    ours, theirs = found.document, json.loads((tmp_path / "out.json").read_text())
    assert ours.keys() == theirs.keys() and ours["map"] == theirs["map"] and ours["tune"] is None
    assert {**ours["input"], "model": ""} == {**theirs["input"], "model": ""} and ours["input"]["reads"] == "bytes"
    assert ours["dense"]["bits_per_byte"] == pytest.approx(theirs["dense"]["bits_per_byte"], abs=2e-5)
    for mine, other in zip(ours["methods"], theirs["methods"], strict=True):
        assert mine.keys() == other.keys()
        for name in ("name", "label", "options", "is_baseline", "refused", "notes"):
            assert mine[name] == other[name]
        for name in (*FIGURES, "bits_per_byte", "max_extra_bits"):
            assert mine[name] == pytest.approx(other[name], abs=5e-5), name
        for head, same in zip(mine["heads"], other["heads"], strict=True):
            assert all(head[name] == pytest.approx(same[name], abs=2e-4) for name in FIGURES)
            for name in ("mass", "kept", "missed"):  # bytes: a last digit may round the other way
                pairs = zip(base64.b64decode(head["map"][name]), base64.b64decode(same["map"][name]), strict=True)
                assert all(abs(a - b) <= 1 for a, b in pairs), name
        worst, same = mine["worst_tiles"], other["worst_tiles"]
        assert len(worst) == len(same) and all(a["missed"] == pytest.approx(b["missed"], abs=1e-4) for a, b in zip(worst, same))


@pytest.mark.parametrize("name, mask", [("llama", "causal"), ("qwen3", "windows"), ("gemma2", "windows"), ("gpt_oss", "windows")])
def test_windows_softcaps_and_sinks(name, mask):
    found = tilewise.compare(model_of(name), tokens(1, 120), ["a_shape:init=4,local=16,tile=16", "a_shape"])
    assert found.document["input"]["mask"] == mask
    narrow, wide = found.rows
    assert narrow.refused is None and narrow.density < 1 and 0 < narrow.recall < 1 and narrow.output_error > 0.01
    assert wide.output_error < 1e-5 and wide.recall == pytest.approx(1, abs=1e-5) and wide.extra_bits == pytest.approx(0, abs=1e-5)
    notes = found.document["methods"][0]["notes"]
    assert notes == (["layers with a sliding window read their window densely"] if mask == "windows" else [])
    assert any(head["map"] for head in narrow.heads)


def test_a_padded_batch():
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[1, :30] = 0
    ids = tokens(2, 90)
    model = model_of("llama")
    found = tilewise.compare(model, {"input_ids": ids, "attention_mask": mask}, ["a_shape:init=4,local=16,tile=16", "a_shape"])
    narrow, wide = found.rows
    assert found.document["input"]["batch"] == 2 and found.document["input"]["mask"] == "spans"
    assert narrow.density < 1 and narrow.output_error > 0.01 and wide.output_error < 1e-5
    # The bits are those of the tokens that are there.
    apart = [tilewise.compare(model, part, ["a_shape"]).dense.loss for part in (ids[:1], ids[1:, 30:])]
    assert found.dense.loss == pytest.approx((apart[0] * 89 + apart[1] * 59) / 148, abs=1e-4)


def test_a_model_that_predicts_nothing_is_bounded_by_its_error():
    config = transformers.BertConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    model = transformers.BertModel(config).eval()
    found = tilewise.compare(model, tokens(1, 150), ["mean_pool", "random"], tune=True, max_error=0.9)
    assert found.document["input"]["reads"] is None and found.document["input"]["mask"] == "full" and found.document["verdict"]["max_error"] == 0.9
    assert all(row.loss is None and row.extra_bits is None and row.output_error is not None for row in found.rows)
    assert "output error" in found.verdict and "bits" not in str(found)
    points = [point for curve in found.document["tune"]["curves"] for point in curve["points"]]
    assert any(point["outcome"] == "within" and 0 <= point["excess"] <= 0.9 for point in points)


def test_tuning_is_the_programs():
    found = tilewise.compare(model_of("llama"), [tokens(1, 160), tokens(1, 160, seed=1)], ["random:tile=16", "mean_pool"], tune=True, max_bits=0.01)
    tune = found.document["tune"]
    assert tune["text"] == "input 1" and [curve["name"] for curve in tune["curves"]] == ["random", "mean_pool"]
    for curve, row in zip(tune["curves"], found.rows):
        chosen = curve["points"][curve["chosen"]]
        assert row.options["density" if "density" in chosen["options"] else "threshold"] in chosen["options"].values()
        assert curve["is_within"] == (chosen["outcome"] == "within") and (chosen["excess"] is None or (chosen["excess"] <= 0.01) == curve["is_within"])
    assert len(found.document["methods"][0]["texts"]) == 2


# Inputs.


def test_inputs_that_are_refused_and_what_stays_of_the_model():
    model = model_of("llama")
    tilewise.huggingface.configure(model, "a_shape", local=64)
    kept = model.model.layers[0].self_attn.tilewise_layer
    for inputs, options, message in [
        (TEXT, {}, "give the tokenizer"),
        ([], {}, "no input"),
        (tokens(1, 1), {}, "a prediction needs two"),
        (torch.rand(1, 8), {}, "token ids are integers"),
        ([tokens(1, 8), tokens(1, 9)], {}, "differ in length"),
        ([tokens(1, 8), tokens(2, 8)], {}, "kinds or batch sizes"),
        (tokens(1, 8), {"length": 9}, "has 8 tokens"),
        (tokens(1, 8), {"names": ["a", "b"]}, "2 names"),
        (tokens(1, 8), {"needles": 100}, "needles are hidden in text"),
        (tokens(1, 8), {"methods": ["nothing"]}, "nothing"),
        (tokens(1, 8), {"methods": [("a_shape", {"loca": 3})]}, "loca"),
        (tokens(1, 8), {"density": 2.0}, "density is 2"),
        (tokens(1, 8), {"density": 0.5, "tune": True}, "take one"),
        (tokens(1, 8), {"max_bits": -1.0}, "max_bits"),
        (tokens(1, 8), {"recipe": {"schema": 7}}, "schema 7"),
    ]:
        with pytest.raises((ValueError, OSError), match=message):
            tilewise.compare(model, inputs, **{"methods": ["a_shape"], **options})
    assert model.model.layers[0].self_attn.tilewise_layer is kept and model.config._attn_implementation == "tilewise"


def test_what_a_model_raises_comes_through():
    model = model_of("llama")
    hook = model.model.layers[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tilewise.compare(model, tokens(1, 60), ["a_shape"])
    hook.remove()
    assert not hasattr(model.model.layers[0].self_attn, "tilewise_layer")
    model.config.attention_dropout = 0.5
    model.train()
    assert tilewise.compare(model, tokens(1, 60), ["a_shape"]).dense.loss is not None and model.training  # in evaluation there is no dropout
    with pytest.raises(ValueError, match="no comparison runs"):
        q = torch.randn(1, 2, 8, 16)
        _compare.call(_compare.ops.study_attend.default, q, q, q, 0, tilewise.Mask.causal().numbers, None, None, 0.0, None, False)


def test_a_model_whose_attention_goes_its_own_way_is_refused(monkeypatch):
    model = model_of("llama")
    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", lambda self, hidden_states, **_: (hidden_states, None))
    with pytest.raises(NotImplementedError, match="without handing over any attention"):
        tilewise.compare(model, tokens(1, 60), ["a_shape"])


def test_a_recipe_and_a_refusal_are_rows():
    sizes = {"layers": 3, "heads_q": 4, "heads_kv": 2, "head_dim": 16}
    recipe = {"schema": 1, "model": sizes, "default": {"method": "dense"}, "layers": [{"layer": 1, "heads": [{"heads": [2], "method": "a_shape", "options": {"init": 4, "local": 16, "tile": 16}}]}]}
    found = tilewise.compare(model_of("llama"), tokens(1, 120), ["a_shape", "xattention:tile=60,stride=16", "oracle"], density=0.3, recipe=recipe)
    without, refused, _, row = found.rows
    assert "no option density" in without.refused and "60" in refused.refused and refused.density is None and str(found).count("refused: ") == 2
    assert row.name == "recipe" and [head["density"] < 1 for head in row.heads] == [(i // 4, i % 4) == (1, 2) for i in range(12)]


class Letters:
    """A tokenizer of a character each, which begins with a token of its own and ends with another."""

    class Encoding:
        def __init__(self, text):
            self.ids = [1, *(3 + ord(letter) % 90 for letter in text), 2]
            self.offsets = [(0, 0), *((i, i + 1) for i in range(len(text))), (0, 0)]
            self.special_tokens_mask = [1, *(0 for _ in text), 1]

    def encode(self, text):
        return self.Encoding(text)


def test_bits_are_per_byte_of_the_text():
    model, text = model_of("llama"), "Grüße, 世界! " * 30
    found = tilewise.compare(model, text, ["a_shape:init=4,local=32,tile=16"], tokenizer=Letters(), length=100)
    one = encode(model, text, Letters(), "a").cut(100)
    assert one.predicted_bytes == len(text[:99].encode())  # the first token stands for no letter, and is not predicted
    loss = model(one.kwargs["input_ids"], labels=one.kwargs["input_ids"]).loss.item()
    assert found.document["input"]["reads"] == "text" and found.document["input"]["texts"][0]["bytes"] == len(text.encode())
    assert found.dense.bits_per_token == pytest.approx(loss / math.log(2), abs=1e-4)
    assert found.dense.bits_per_byte == pytest.approx(99 * loss / math.log(2) / one.predicted_bytes, abs=1e-4)
    (row,) = found.rows
    assert row.extra_bits == pytest.approx(row.bits_per_byte - found.dense.bits_per_byte, abs=1e-9)
    assert "bits/byte" in str(found) and "perplexity" in str(found)


# Needles.


@pytest.mark.parametrize("tokenizer", [None, Letters()])
@pytest.mark.parametrize("length", [200, 333, 3000])
def test_needles_are_as_long_as_asked(tokenizer, length):
    cutter = Tokenizer(tokenizer)
    found = make_needles(TEXT, cutter, length, seed=0)
    assert [needle.depth for needle in found] == [0.05, 0.05, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.95, 0.95]
    assert len({tuple(needle.answer) for needle in found}) == 10
    for needle in found:
        assert len(needle.prompt) == length and len(needle.answer) == 7
        if tokenizer is None:
            prompt, answer = bytes(needle.prompt).decode(), bytes(needle.answer).decode()
            assert prompt.count(answer) == 1 and prompt.endswith(" is ")
            assert abs(prompt.index("Note: ") / length - needle.depth) < 0.3 * 333 / length + 0.05
    assert make_needles(TEXT, cutter, length, seed=0) == found != make_needles(TEXT, cutter, length, seed=1)
    with pytest.raises(ValueError, match="longer text"):
        make_needles(TEXT, cutter, 8000, seed=0)
    with pytest.raises(ValueError, match="more"):
        make_needles(TEXT, cutter, 64, seed=0)


def test_needles_are_answered():
    """The reference model answers notes of this form; a method that leaves the middle out does not. What generate() says is the measure."""
    model, text = reference_lm(), (ROOT / "models/reference-lm/documents/python-http-client.txt").read_bytes()
    found = tilewise.compare(model, text, ["a_shape:init=16,local=64,tile=16"], length=256, needles=320, maps=False)
    made = make_needles(text.decode("latin-1"), Tokenizer(None), 320, seed=0)
    right = 0
    with torch.no_grad():
        for needle in made:
            said = model.generate(torch.tensor([needle.prompt]), attention_mask=torch.ones(1, 320, dtype=torch.long), max_new_tokens=7, do_sample=False, pad_token_id=0)
            right += said[0, 320:].tolist() == needle.answer
    assert found.dense.needles == (right, 10) and right >= 8
    assert found.rows[0].needles[0] <= 4
    assert found.document["input"]["needle_lengths"] == [320]
    assert [cell["of"] for cell in found.document["dense"]["needle"]["cells"]] == [2] * 5


# The report.


def browser():
    return next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


def rendered(path, profile):
    """The page's elements after its script ran; words on the console fail."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    done = subprocess.run([*command, "--enable-logging=stderr", "--log-level=0", "--window-size=1280,2000", "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


HOSTILE = "</script><script>document.title='broken'</script>'\"<b>&amp;"


def comparison(**options):
    model = model_of("llama")
    model.config._name_or_path = "models/" + HOSTILE
    options = {"methods": ["a_shape:init=4,local=32,tile=16", "xattention:threshold=0.9,tile=16,stride=4", "random:density=0.2"], **options}
    return tilewise.compare(model, TEXT, tokenizer=Letters(), length=300, names=[HOSTILE], **options)


@needs_program
def test_the_report_is_the_programs(tmp_path):
    found = comparison()
    found.save(tmp_path / "out.json")
    found.save(tmp_path / "page.html")
    said = program("report", tmp_path / "out.json", "--out", tmp_path / "again.html").stdout
    assert (tmp_path / "again.html").read_text() == (tmp_path / "page.html").read_text() == found.to_html()
    assert said.startswith(str(found))
    assert tilewise.Comparison.load(tmp_path / "out.json").to_html() == found.to_html()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.html", "out.json", "page.html"]
    with pytest.raises(ValueError, match="neither .html"):
        found.save(tmp_path / "page.txt")
    (tmp_path / "cut.json").write_text(found.to_json()[:500])
    with pytest.raises(OSError, match="cut.json is not JSON"):
        tilewise.Comparison.load(tmp_path / "cut.json")


@pytest.mark.skipif(browser() is None, reason="no browser: neither chromium nor google-chrome is in PATH")
def test_the_report_in_a_browser_and_in_a_notebook(tmp_path):
    found = comparison(tune=True, needles=300)
    found.save(tmp_path / "page.html")
    page = rendered(tmp_path / "page.html", tmp_path / "profile")
    assert 'data-ready="yes"' in page and "<title>broken" not in page
    times = page[page.index('<figure id="times"') :]
    assert times[: times.index("</figure>")].count('class="bar"') == 4 and "perplexity" in page and "300 tokens" in page
    # A notebook shows a frame; a script beside it tells what is in the frame once it has been drawn.
    shown = found._repr_html_()
    assert shown.startswith("<iframe") and shown.count("<iframe") == 1 and len(shown) < 5e6
    frame = shown.replace("sandbox='allow-scripts allow-downloads'", "")
    (tmp_path / "notebook.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>notebook</title>{frame}<script>addEventListener('load', () => {{"
        "const inner = document.querySelector('iframe').contentDocument;"
        "document.body.dataset.inner = inner.body.dataset.ready || inner.documentElement.dataset.ready;"
        "document.body.dataset.verdict = inner.getElementById('verdict').textContent; });</script>"
    )
    page = rendered(tmp_path / "notebook.html", tmp_path / "profile")
    assert 'data-inner="yes"' in page and "<title>notebook" in page
    (tmp_path / "plain.html").write_text(f"<!doctype html><meta charset=utf-8>{shown}")
    rendered(tmp_path / "plain.html", tmp_path / "profile")  # as a notebook has it: nothing on the console


# The command.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tokenizers import Tokenizer as Maker
    from tokenizers import models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Maker(models.BPE(unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([TEXT + "0123456789\nNote: Recall: access code room number serial secret ticket id lucky"], trainers.BpeTrainer(vocab_size=97, special_tokens=["[unk]"]))
    model_of("llama").save_pretrained(folder / "model")
    tokenizer.save(str(folder / "model/tokenizer.json"))
    (folder / "text.txt").write_text(TEXT)
    (folder / "other.txt").write_text(TEXT[::-1])
    return folder


def run_command(checkpoint, *arguments, text="text.txt"):
    command = [sys.executable, "-c", "from tilewise._program import main; main()", "compare", "--model", checkpoint / "model", "--text", checkpoint / text]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_the_command(checkpoint, tmp_path):
    done = run_command(
        checkpoint, checkpoint / "other.txt", "--length", 300, "--methods", "a_shape:init=4,local=32,random", "--methods", "mean_pool", "--needle", 200, "--density", 0.3,
        "--json", tmp_path / "out.json", "--report", tmp_path / "r.html", "--seed", 5, "--threads", 1,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "a_shape init=4,local=32: refused: has no option density" in done.stdout and "perplexity" in done.stdout and "\033" not in done.stdout
    assert f"report: {tmp_path / 'r.html'}" in done.stdout and f"json:   {tmp_path / 'out.json'}" in done.stdout
    found = tilewise.Comparison.load(tmp_path / "out.json")
    document = found.document
    assert document["input"]["reads"] == "text" and document["input"]["length"] == 300 and document["input"]["model"] == str(checkpoint / "model")
    assert [text["path"] for text in document["input"]["texts"]] == [str(checkpoint / "text.txt"), str(checkpoint / "other.txt")]
    assert [row.name for row in found.rows] == ["a_shape", "random", "mean_pool"] and found.rows[1].options["density"] == 0.3
    assert found.dense.needles[1] == 10 and document["command"].startswith("tilewise compare --model") and document["threads"] == 1
    assert (tmp_path / "r.html").read_text() == found.to_html()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "r.html"]


def test_the_command_tunes(checkpoint, tmp_path, capsys):
    given = ["--length", 200, "--tune", "--max-bits", 0.5, "--methods", "mean_pool:tile=16", "--json", tmp_path / "out.json"]
    assert _program._compare([str(argument) for argument in ("--model", checkpoint / "model", "--text", checkpoint / "text.txt", *given)]) == 0
    assert "mean_pool" in capsys.readouterr().out
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["verdict"]["max_bits"] == 0.5 and document["tune"]["curves"][0]["name"] == "mean_pool" and document["map"] is None


def test_the_command_refuses_by_name(checkpoint, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/tokenizer.json").write_text("{")
    for arguments, code, message in [
        (["--length", 300000], 1, "which is less than the length of 300000"),
        (["--length", 1], 2, "--length: '1' is not a whole number from 2"),
        (["--density", "nan"], 2, "--density: 'nan' is not a number from 0 to 1"),
        (["--max-bit", 1], 2, "unrecognized arguments: --max-bit"),
        (["--save-plans", "x"], 2, "--save-plans does not go with a checkpoint that has a tokenizer"),
        (["--qkv", "x"], 2, "--qkv does not go with"),
        (["--mask", "full"], 2, "--mask does not go with"),
        (["--max-error", 1], 2, "--max-error does not go with"),
        (["--device", "cuda"], 2, "--device cuda is not there"),
        (["--tune", "--density", 0.5], 2, "take one"),
        (["--report", checkpoint / "text.txt"], 2, "would write over a file that is read"),
        (["--report", tmp_path / "a", "--json", tmp_path / "a"], 2, "name the same file"),
        (["--json", tmp_path], 1, "is a folder"),
        (["--json", tmp_path / "no/where.json"], 1, "its folder is not there"),
        (["--methods", "nothing"], 2, "nothing"),
        (["--methods", "random", "a_shape:tile=1"], 2, "16 to 256"),
        (["--methods", "tile=64,random"], 2, "before any method"),
        (["--recipe", tmp_path / "none.json"], 1, "none.json"),
        (["--needle", 100000], 1, "needles of 100000 tokens"),
        (["--model", tmp_path / "bad"], 1, "tokenizer.json cannot be read"),
    ]:
        given = ["--model", checkpoint / "model", "--text", checkpoint / "text.txt", "--length", 100, *arguments]
        try:
            ended = _program._compare([str(argument) for argument in given])
        except SystemExit as exit:
            ended = exit.code
        said = capsys.readouterr()
        assert ended == code and message in said.err and said.out == "", (arguments, ended, said)
        assert said.err.startswith("tilewise: ") and said.err.count("\n") == 1, said.err
    assert (checkpoint / "text.txt").read_text() == TEXT
