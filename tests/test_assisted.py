# Copyright 2026 The Latent Attention Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Assisted generation: a helper proposes tokens, and the model takes those that it would have generated itself.

What it leaves in the cache, and what it does with a cache that it was given.
"""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils._pytree import tree_leaves, tree_map
from transformers import DynamicCache, PreTrainedTokenizerFast

from common import CLOSE, double_model, random_ids, randomize, tiny_config
from generating import CLOSE32, EVERYTHING, NEW, eager_model, generate, left_padded
from modeling_latent import LatentAttentionForCausalLM
from modeling_latent.cache_name import cache_of


SENTENCE = "The state that a model keeps of a text is as large after a million tokens as after a thousand."


def helper_settings(model, helper: str, tokens: int) -> dict:
    """`tokens` candidates per round."""
    assistant = {
        "same weights": double_model(layer_pattern=model.config.layer_pattern),
        "random weights": double_model(seed=9, num_hidden_layers=1),
    }
    if helper == "prompt lookup":
        return {"prompt_lookup_num_tokens": tokens}
    assistant = assistant.get(helper, model)
    assistant.generation_config.num_assistant_tokens = tokens
    assistant.generation_config.assistant_confidence_threshold = 0
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    return {"assistant_early_exit": 1} if helper == "early exit" else {"assistant_model": assistant}


each_helper = pytest.mark.parametrize(
    "helper", ["same weights", "same model", "random weights", "early exit", "prompt lookup"]
)


@each_helper
@pytest.mark.parametrize("tokens", [1, 4, 6])
def test_assisted_generation_equals_greedy(helper, tokens):
    model, prompt = double_model(), random_ids(1, 5).repeat(1, 2)
    for settings in ({}, {"repetition_penalty": 1.2}):
        assisted = generate(model, prompt, **settings, **helper_settings(model, helper, tokens))
        assert torch.equal(assisted, generate(model, prompt, **settings))


def test_assisted_generation_accepts_many_tokens_in_one_forward():
    model, forwards = double_model(), []
    model.model.register_forward_pre_hook(lambda module, args: forwards.append(args))
    generate(model, random_ids(1, 6), **helper_settings(model, "same weights", 5))
    assert len(forwards) == 3  # 6 + 6 + 1 tokens


@each_helper
def test_assisted_generation_takes_a_padded_prompt(helper):
    model, (rows, batch) = double_model(), left_padded([7, 10])
    batch = {name: tensor[:1] for name, tensor in batch.items()}
    assisted = generate(model, **batch, **helper_settings(model, helper, 3))
    assert torch.equal(assisted[:, 10:], generate(model, rows[0])[:, 7:])


@each_helper
def test_assisted_generation_returns_everything_as_greedy_does(helper):
    """
    Not the values of hidden states and attentions: the library cuts those of the first round off the prompt's. And it
    wants attentions of every layer.
    """
    model, prompt = eager_model(), random_ids(1, 6)
    assisted = generate(model, prompt, **EVERYTHING, **helper_settings(model, helper, 3))
    greedy = generate(model, prompt, **EVERYTHING)
    for name in ("scores", "logits"):
        torch.testing.assert_close(assisted[name], greedy[name], **CLOSE32)
    for name in ("hidden_states", "attentions"):
        assert tree_map(torch.Tensor.size, assisted[name]) == tree_map(torch.Tensor.size, greedy[name])
    for ours, theirs in zip(cache_of(assisted).layers, cache_of(greedy).layers, strict=True):
        torch.testing.assert_close(tree_leaves(ours.state), tree_leaves(theirs.state), **CLOSE)


def test_assisted_sampling_returns_everything_for_every_token():
    model, prompt = eager_model(), random_ids(1, 6)
    out = generate(model, prompt, do_sample=True, **EVERYTHING, **helper_settings(model, "same weights", 3))
    assert out.sequences.shape == (1, 6 + NEW)
    for per_step in (out.scores, out.logits, out.hidden_states, out.attentions):
        assert len(per_step) == NEW
    assert cache_of(out).get_seq_length() == 6 + NEW - 1


def test_assisted_generation_needs_a_cache_in_the_words_of_the_library():
    model = double_model()
    with pytest.raises((ValueError, RuntimeError), match="(?i)assisted .* requires .*cache"):
        generate(model, random_ids(1, 6), assistant_model=double_model(), use_cache=False)


# An assistant with another tokenizer


def spelling_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Bytes, and the pairs of them that a sentence has most often."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["[PAD]", "[EOS]"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([SENTENCE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]", bos_token="[EOS]")


@pytest.mark.parametrize("start", range(0, 40, 8))
def test_an_assistant_may_have_a_tokenizer_of_its_own(start):
    """What it wrote is cut into tokens anew each round, so it goes back behind where it started."""
    tokenizer, other = spelling_tokenizer(280), spelling_tokenizer(262)
    model, assistant = (
        randomize(LatentAttentionForCausalLM(tiny_config(vocab_size=len(each))), seed).double().eval()
        for seed, each in enumerate((tokenizer, other))
    )
    prompt = tokenizer(SENTENCE[start:], return_tensors="pt")["input_ids"]
    settings = {"assistant_model": assistant, "tokenizer": tokenizer, "assistant_tokenizer": other}
    assisted = generate(model, prompt, max_new_tokens=24, **settings)
    assert torch.equal(assisted, generate(model, prompt, max_new_tokens=24))


# Caches


@each_helper
@pytest.mark.parametrize("again", [{}, {"prompt_lookup_num_tokens": 3}])
def test_the_cache_of_assisted_generation_is_continued(helper, again):
    model, prompt = double_model(), random_ids(1, 6)
    out = generate(model, prompt, return_dict_in_generate=True, **helper_settings(model, helper, 3))
    more = torch.cat([out.sequences, random_ids(1, 5, seed=7)], dim=1)
    # Assisted generation of the library takes what the cache has not seen, and no more.
    settings = {"attention_mask": torch.ones_like(more), "cache": cache_of(out)}
    expected = generate(model, more, attention_mask=settings["attention_mask"])
    if again:
        with pytest.raises(ValueError, match="only the tokens that the cache has not read"):
            generate(model, more, **settings, **again)
    assert torch.equal(generate(model, more[:, -6:], **settings, **again)[:, -NEW:], expected[:, -NEW:])


def test_the_cache_of_assisted_generation_stays_of_constant_size():
    model, prompt = double_model(), random_ids(1, 6)
    cache = DynamicCache(config=model.config)
    out = generate(model, prompt, prompt_lookup_num_tokens=3, cache=cache)
    generate(model, out, cache=cache)
    assert not any(layer.history for layer in cache.layers)


def test_a_cache_that_recorded_before_assisted_generation_goes_on_recording():
    model, prompt = double_model(), random_ids(1, 6)
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    generate(model, prompt, prompt_lookup_num_tokens=3, cache=cache)
    assert all(layer.record_past for layer in cache.layers)
