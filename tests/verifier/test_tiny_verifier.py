"""The verifier that ships: complete, small, exact in float32, and sensible when it answers."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from speculators.data.tiny import tiny_conversations, tiny_prompts
from speculators.verifier.tiny import folder
from speculators.verifier.tiny.build import SHIPPED_FILES, build, compare
from speculators.verifier.tiny.initial import initialize
from speculators.verifier.tiny.model import TinyQwen3
from speculators.verifier.tiny.quality import answer_all, distinct_share
from speculators.verifier.tiny.settings import Settings
from speculators.verifier.tiny.train import encode

SMALL = Settings(num_conversations=12, num_layers=5, intermediate_size=32, batch_tokens=512)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(folder())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def config():
    return json.loads((folder() / "config.json").read_text())


def _messages(turns):
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def test_folder_is_complete_and_small():
    sizes = [(folder() / name).stat().st_size for name in SHIPPED_FILES]
    assert sum(sizes) < 4_000_000
    assert (folder() / "model.safetensors").stat().st_size < 3_000_000


def test_loads_in_seconds():
    start = time.process_time()
    AutoTokenizer.from_pretrained(folder())
    AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
    assert time.process_time() - start < 5


def test_config_is_the_one_of_the_settings(config):
    settings = Settings()
    assert config == settings.model_config(config["pad_token_id"], config["eos_token_id"])
    assert config["head_dim"] == 32
    assert config["max_position_embeddings"] >= 1024
    assert config["num_attention_heads"] > config["num_key_value_heads"]


def test_weights_are_exact_in_float32(model):
    stored = load_file(folder() / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    loaded = dict(model.named_parameters())
    assert set(stored) == set(loaded)
    assert all(torch.equal(loaded[name], stored[name].float()) for name in stored)
    assert all(torch.isfinite(tensor).all() for tensor in loaded.values())


def test_own_forward_equals_transformers(model, tokenizer):
    mine = TinyQwen3(Settings())
    mine.load_state_dict(
        {n: t.float() for n, t in load_file(folder() / "model.safetensors").items()}
    )
    ids = torch.tensor([encode(tiny_conversations(1)[0].turns, tokenizer.backend_tokenizer)[0]])
    with torch.inference_mode():
        logits = mine(ids) @ mine.model.embed_tokens.weight.T
        torch.testing.assert_close(logits, model(input_ids=ids).logits, atol=2e-3, rtol=1e-3)


def test_tokenizer_is_lossless_and_leaves_rows_unused(tokenizer, config):
    assert len(tokenizer) < config["vocab_size"]
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    for text in ("Mia has 12 pears.", "def f(x):\n    return x * 2", "Grüße, naïve 東京 🙂"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("2048") == ["2", "0", "4", "8"]


def test_special_tokens(tokenizer, config):
    generation = json.loads((folder() / "generation_config.json").read_text())
    assert tokenizer.bos_token is None
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_id == config["eos_token_id"]
    assert config["eos_token_id"] in generation["eos_token_id"]
    assert tokenizer.pad_token_id == config["pad_token_id"] == generation["pad_token_id"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_template_marks_what_the_assistant_writes(tokenizer):
    for conversation in tiny_conversations(60):
        rendered = tokenizer.apply_chat_template(
            _messages(conversation.turns), return_dict=True, return_assistant_tokens_mask=True
        )
        ids, written = encode(conversation.turns, tokenizer.backend_tokenizer)
        assert rendered["input_ids"] == ids
        assert rendered["assistant_masks"] == [int(w) for w in written]
        ends = [i for i, token in enumerate(ids) if token == tokenizer.eos_token_id]
        assert ends
        assert len(ends) == len(conversation.turns)


def test_generation_prompt_is_a_prefix_of_the_whole(tokenizer):
    turns = tiny_conversations(1)[0].turns
    before = tokenizer.apply_chat_template(_messages(turns[:-1]), add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(_messages(turns))
    assert whole["input_ids"][: len(before["input_ids"])] == before["input_ids"]


def test_rows_of_no_token_are_never_likely(model, tokenizer):
    prompt = _messages(tiny_prompts(1)[0].turns[:1])
    inputs = tokenizer.apply_chat_template(prompt, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
    weight = model.get_input_embeddings().weight
    assert (logits[:, len(tokenizer) :].max(-1).values < logits.max(-1).values - 2).all()
    norms = weight[len(tokenizer) :].norm(dim=-1)
    assert norms.min() > 0
    assert norms.max() < 4 * weight[: len(tokenizer)].norm(dim=-1).mean()


def test_greedy_answers_are_sensible():
    answers = answer_all(tiny_prompts(40, seed=11), folder())
    judged = [answer.right for answer in answers if answer.right is not None]
    shares = [distinct_share(answer.token_ids) for answer in answers]
    assert sum(answer.ended for answer in answers) >= 0.98 * len(answers)
    assert sum(shares) / len(shares) > 0.9
    assert min(shares) > 0.5
    assert sum(judged) > 0.7 * len(judged)


def test_distinct_share():
    assert distinct_share([1, 2, 3, 4, 5]) == 1.0
    assert distinct_share([1, 2, 1, 2, 1, 2, 1]) == 0.5
    assert distinct_share([1, 2]) == 1.0


def test_initial_weights_copy_from_context():
    settings = Settings()
    generator = torch.Generator().manual_seed(0)
    model = TinyQwen3(settings)
    initialize(model, generator)
    drawn = torch.randint(0, settings.num_tokens, (8, 40), generator=generator)
    rows = torch.cat((drawn, drawn[:, :20]), dim=1)
    with torch.inference_mode():
        states = model(rows[:, :-1])[:, 40:]
        guessed = (states @ model.model.embed_tokens.weight.T).argmax(-1)
    assert (guessed == rows[:, 41:]).float().mean() > 0.4


def test_build_twice_gives_the_same_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("speculators.verifier.tiny.build._TOKENIZER_CONVERSATIONS", 200)
    assert build(tmp_path / "one", SMALL) == build(tmp_path / "two", SMALL)
    for name in SHIPPED_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=torch.float32)
    assert loaded.config.num_hidden_layers == 5
    monkeypatch.setattr("speculators.verifier.tiny.build.folder", lambda: tmp_path / "two")
    assert compare(tmp_path / "one") == [f"{name}: equal" for name in SHIPPED_FILES]
