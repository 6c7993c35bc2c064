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
"""Everything that `generate()` offers, measured as transformers' own generation suite measures Llama.

Token for token in float64, so that what is equal in exact arithmetic is told from what is only close. Prompts and
what is generated cross several chunks of 4.
"""

import copy
import functools
import re
import shutil
import threading

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils._pytree import tree_leaves, tree_map
from transformers import (
    CompileConfig,
    DynamicCache,
    LlamaConfig,
    PreTrainedTokenizerFast,
    StaticCache,
    TextIteratorStreamer,
    pipeline,
)
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput, GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.utils.import_utils import is_torch_greater_or_equal

from common import CLOSE, PATTERNS, double_model, every_pattern, random_ids, randomize, tiny_config, tiny_model
from modeling_latent import LatentAttention, LatentAttentionForCausalLM, cache_latent
from modeling_latent.cache_name import CACHE_NAME, cache_of


CHUNK, NEW = 4, 13  # NEW: three chunks and one token
SENTENCE = "The state that a model keeps of a text is as large after a million tokens as after a thousand."
CLOSE32 = {"atol": 1e-5, "rtol": 0}  # `generate()` turns logits into float32
EVERYTHING = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}
METHODS = {
    "greedy": {},
    "greedy with processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[5], [7, 8]]},
    "guided greedy": {"guidance_scale": 1.5},
    "sampling": {"do_sample": True, "top_k": 10, "top_p": 0.9, "temperature": 0.7},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beam search": {"num_beams": 3, "length_penalty": 2.0, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 2, "do_sample": True, "top_k": 10},
}
CACHES = [DynamicCache, lambda config: StaticCache(config, max_cache_len=64)]
each_cache = pytest.mark.parametrize("cache_implementation", [None, "static"])


def eager_model(**overrides) -> LatentAttentionForCausalLM:
    """Attention weights are there to be recorded."""
    model = double_model(**overrides)
    model.set_attn_implementation("eager")
    return model


def generate(model, input_ids=None, cache=None, **settings):
    """Greedy unless the settings say otherwise, and always from the same seed."""
    torch.manual_seed(0)
    defaults = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}
    given = {} if cache is None else {CACHE_NAME: cache}
    return model.generate(input_ids, **{**defaults, **settings, **given})


def left_padded(lengths, seed: int = 1) -> tuple[list, dict]:
    """Prompts of several lengths `(1, T)`, and the batch of them."""
    rows = [random_ids(1, length, seed=seed + i) for i, length in enumerate(lengths)]
    input_ids, mask = torch.zeros(2, len(rows), max(lengths), dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, -row.shape[1] :], mask[i, -row.shape[1] :] = row[0], 1
    return rows, {"input_ids": input_ids, "attention_mask": mask}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One word per token id: "w2 w3 ...", padded on the left."""
    vocabulary = {"[PAD]": 0, "[EOS]": 1, **{f"w{i}": i for i in range(2, 31)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]", padding_side="left"
    )


# Decoding methods


@every_pattern
@pytest.mark.parametrize("kernel", [0, 4])
def test_greedy_takes_the_likeliest_token_of_a_full_forward_every_time(kernel, pattern):
    model = double_model(conv_kernel_size=kernel, **pattern)
    expected = random_ids(2, 6)
    for _ in range(NEW):
        likeliest = model(expected, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, likeliest], dim=1)
    assert torch.equal(generate(model, expected[:, :6]), expected)


@pytest.mark.parametrize("method", METHODS)
def test_decoding_with_cache_equals_decoding_without(method):
    model, (_, batch) = double_model(), left_padded([9, 6, 1])
    settings = {**batch, **METHODS[method], "return_dict_in_generate": True, "output_scores": True}
    cached, full = generate(model, **settings), generate(model, **settings, use_cache=False)
    assert cache_of(full) is None
    assert torch.equal(cached.sequences, full.sequences)
    for ours, theirs in zip(cached.scores, full.scores, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE32)


def test_sdpa_generates_what_eager_does():
    model, (_, batch) = double_model(), left_padded([7, 3])
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(generate(model, **batch), generate(eager_model(), **batch))


def test_several_sequences_per_prompt_are_rows_of_their_own():
    model, (_, batch) = double_model(), left_padded([7, 3])
    repeated = {name: tensor.repeat_interleave(3, dim=0) for name, tensor in batch.items()}
    samples = generate(model, **batch, do_sample=True, num_return_sequences=3)
    assert torch.equal(samples, generate(model, **repeated, do_sample=True))
    assert len({tuple(sample) for sample in samples.tolist()}) == 6


def test_a_decoding_loop_of_ones_own_gets_a_cache_that_fits():
    def likeliest(model, input_ids, **kwargs):
        for _ in range(NEW):
            unseen = input_ids[:, kwargs[CACHE_NAME].get_seq_length() :]
            logits = model(unseen, cache=kwargs[CACHE_NAME]).logits
            input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], dim=1)
        return input_ids

    model, prompt = double_model(), random_ids(2, 6)
    assert torch.equal(generate(model, prompt, custom_generate=likeliest), generate(model, prompt))


def test_it_is_a_generation_model_that_can_be_rolled_back():
    assert issubclass(LatentAttentionForCausalLM, GenerationMixin)
    assert LatentAttentionForCausalLM.can_generate()
    assert not LatentAttentionForCausalLM._is_stateful
    assert LatentAttentionForCausalLM._supports_default_dynamic_cache()


# Dict outputs


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("method", ["greedy", "several samples", "beam search", "beam sampling"])
def test_dict_outputs_have_the_shapes_of_every_step(method, use_cache):
    model, settings = eager_model(), METHODS[method]
    out = generate(model, random_ids(2, 6), **settings, **EVERYTHING, use_cache=use_cache)
    beams, returned = settings.get("num_beams", 1), settings.get("num_return_sequences", 1)
    rows = 2 * max(beams, returned)
    assert isinstance(out, GenerateDecoderOnlyOutput if beams == 1 else GenerateBeamDecoderOnlyOutput)
    assert out.sequences.shape == (2 * returned, 6 + NEW)
    assert (cache_of(out) is not None) == use_cache
    for per_step in (out.scores, out.logits):
        assert [tensor.shape for tensor in per_step] == [(rows, 31)] * NEW
    tokens = [6] + [1 if use_cache else 6 + step for step in range(1, NEW)]
    assert [[state.shape for state in step] for step in out.hidden_states] == [[(rows, t, 16)] * 3 for t in tokens]
    for step, t in zip(out.attentions, tokens, strict=True):
        both, local = step
        assert local.shape == (rows, 4, t, 0) and both.shape == (rows, 4, t, 3)


def test_what_a_step_records_is_what_a_full_forward_records():
    model, (_, batch) = eager_model(layer_pattern=["both", "latent"]), left_padded([6, 3])
    out = generate(model, **batch, **EVERYTHING)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, NEW - 1, dtype=torch.long)], dim=1)
    full = model(out.sequences[:, :-1], attention_mask=mask, output_hidden_states=True, output_attentions=True)
    assert torch.equal(full.hidden_states[0][:, 3:], model.get_input_embeddings()(out.sequences[:, 3:-1]))
    assert torch.equal(model.lm_head(full.hidden_states[-1]), full.logits)
    for step in range(NEW):
        token = 5 + step
        torch.testing.assert_close(out.logits[step].double(), full.logits[:, token], **CLOSE32)
        for ours, theirs in zip(out.hidden_states[step], full.hidden_states, strict=True):
            torch.testing.assert_close(ours[:, -1], theirs[:, token], **CLOSE)
        for ours, theirs in zip(out.attentions[step], full.attentions, strict=True):
            torch.testing.assert_close(ours[:, :, -1], theirs[:, :, token], **CLOSE)
            torch.testing.assert_close(ours.sum(-1)[:, :, -1], torch.ones(2, 4, dtype=torch.float64), **CLOSE)


def test_attentions_say_which_latent_is_read():
    model, prompt = eager_model(layer_pattern=["both"]), random_ids(2, 6)
    expected = generate(model, prompt, **EVERYTHING)
    for layer in model.model.layers:
        layer.latent_attention.latents.data = layer.latent_attention.latents.data.flip(0)
    flipped = generate(model, prompt, **EVERYTHING)
    assert torch.equal(flipped.sequences, expected.sequences)
    for ours, theirs in zip(tree_leaves(flipped.attentions), tree_leaves(expected.attentions), strict=True):
        torch.testing.assert_close(ours, theirs.flip(-1), **CLOSE)
        assert not torch.allclose(ours, theirs)


# Padding


@every_pattern
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_left_padded_rows_generate_what_they_do_alone(settings, pattern):
    model, (rows, batch) = double_model(**pattern), left_padded([11, 8, 6, 4, 1])
    together = generate(model, **batch, **settings)
    for row, generated in zip(rows, together, strict=True):
        assert torch.equal(generated[-NEW:], generate(model, row, **settings)[0, -NEW:])


def test_a_mask_is_inferred_from_padding_tokens():
    model, (_, batch) = double_model(), left_padded([7, 3])
    assert torch.equal(generate(model, batch["input_ids"]), generate(model, **batch))


def test_a_row_that_ends_early_leaves_the_others_alone():
    model, (rows, batch) = double_model(), left_padded([7, 5, 3])
    end = int(generate(model, **batch)[1, -NEW + 4])  # the fifth token that the second row generates, or earlier
    together = generate(model, **batch, eos_token_id=end)
    for row, generated in zip(rows, together[:, 7:], strict=True):
        alone = generate(model, row, eos_token_id=end)[0, row.shape[1] :]
        assert torch.equal(generated[: len(alone)], alone)
        assert not generated[len(alone) :].any()


# Inputs


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_embeddings_generate_what_their_tokens_do(settings):
    model, (_, batch) = double_model(), left_padded([7, 3])
    embeds, mask = model.get_input_embeddings()(batch["input_ids"]).detach(), batch["attention_mask"]
    expected = generate(model, **batch, **settings)
    assert torch.equal(
        generate(model, batch["input_ids"], inputs_embeds=embeds, attention_mask=mask, **settings), expected
    )
    assert torch.equal(generate(model, inputs_embeds=embeds, attention_mask=mask, **settings), expected[:, 7:])


def test_other_embeddings_beside_the_same_tokens_give_other_scores():
    model, input_ids = double_model(), random_ids(1, 7)
    settings = {"return_dict_in_generate": True, "output_scores": True}
    other = torch.rand(1, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = zip(
        generate(model, input_ids, **settings).scores,
        generate(model, input_ids, inputs_embeds=other, **settings).scores,
        strict=True,
    )
    assert not any(torch.allclose(ours, theirs) for ours, theirs in pairs)


def test_without_a_prompt_generation_starts_from_the_bos_token():
    model = double_model()
    assert torch.equal(generate(model, bos_token_id=1), generate(model, torch.tensor([[1]])))


@each_cache
def test_position_ids_that_only_count_change_nothing(cache_implementation):
    model, (_, batch) = double_model(), left_padded([7, 3])
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with_positions = generate(model, **batch, position_ids=positions, cache_implementation=cache_implementation)
    assert torch.equal(with_positions, generate(model, **batch))


def test_the_last_of_packed_documents_is_continued():
    model, (first, last) = double_model(), (random_ids(1, 6), random_ids(1, 9, seed=2))
    positions = torch.cat([torch.arange(6), torch.arange(9)])[None]
    packed = generate(model, torch.cat([first, last], dim=1), position_ids=positions)
    assert torch.equal(packed[:, 6:], generate(model, last))


old_name = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")


@old_name
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_taken_by_either_name(name):
    """As transformers calls it since 5.24, and before."""
    model, prompt = double_model(), random_ids(2, 7)
    expected = model(prompt).logits[:, 5:]
    for step in (model, model.model):
        cache = DynamicCache(config=model.config)
        for piece in prompt.split([5, 1, 1], dim=1):
            outputs = step(piece, **{name: cache})
        assert cache_of(outputs) is cache and cache.get_seq_length() == 7
    torch.testing.assert_close(model.lm_head(outputs.last_hidden_state), expected[:, -1:], **CLOSE)
    inputs = model.prepare_inputs_for_generation(prompt, **{name: cache})
    assert inputs[CACHE_NAME] is cache


@pytest.mark.skipif(CACHE_NAME != "cache", reason="of a version that has no other name")
def test_the_older_name_is_said_to_be_deprecated():
    model = double_model()
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated: pass `cache`"):
        model(random_ids(1, 5), past_key_values=DynamicCache(config=model.config))


def test_a_cache_by_a_third_name_is_not_ignored():
    model = double_model()
    with pytest.raises(ValueError, match="`cache_params` is a cache, but its name is"):
        model(random_ids(1, 5), cache_params=DynamicCache(config=model.config))


@old_name
def test_two_caches_are_refused():
    model, one, other = double_model(), *(DynamicCache(config=double_model().config) for _ in range(2))
    assert cache_of(model(random_ids(1, 5), cache=one, past_key_values=one)) is one
    for call in (model, model.model, model.prepare_inputs_for_generation):
        with pytest.raises(ValueError, match="two names of the same argument"):
            call(random_ids(1, 5), cache=one, past_key_values=other)


def test_kwargs_of_ones_own_reach_the_forward():
    inputs = double_model().prepare_inputs_for_generation(random_ids(1, 6), some_argument="kept")
    assert inputs["some_argument"] == "kept"


def test_only_the_last_token_gets_logits_unless_asked_for():
    model, prompt, tokens = double_model(), random_ids(1, 7), []
    model.lm_head.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    expected = generate(model, prompt)
    assert tokens == [1] * NEW
    assert torch.equal(generate(model, prompt, logits_to_keep=0), expected)
    assert tokens[NEW:] == [7] + [1] * (NEW - 1)
    assert torch.equal(generate(model, prompt, logits_to_keep=0, prompt_lookup_num_tokens=3), expected)


def test_logits_to_keep_takes_a_number_or_indices():
    model, input_ids = double_model(), random_ids(2, 11)
    logits = model(input_ids).logits
    torch.testing.assert_close(model(input_ids, logits_to_keep=3).logits, logits[:, -3:], **CLOSE)
    kept = torch.tensor([0, 4, 10])
    torch.testing.assert_close(model(input_ids, logits_to_keep=kept).logits, logits[:, kept], **CLOSE)


# Continuation


@every_pattern
@each_cache
@pytest.mark.parametrize("extra", [0, 1, 6])
@pytest.mark.parametrize("lengths", [[7, 7], [7, 4, 1]])
def test_a_returned_cache_is_continued_as_if_all_had_been_one_prompt(lengths, extra, cache_implementation, pattern):
    """`extra`: tokens after the last generated one, which no forward has seen yet; padded in front like a prompt."""
    model, (_, batch) = double_model(**pattern), left_padded(lengths)
    settings = {"cache_implementation": cache_implementation, "return_dict_in_generate": True}
    out = generate(model, **batch, **settings)
    mask = [batch["attention_mask"], torch.ones(len(lengths), NEW, dtype=torch.long)]
    sequences = [out.sequences]
    if extra:
        turn = left_padded([max(extra - 2 * i, 1) for i in range(len(lengths))], seed=7)[1]
        mask, sequences = mask + [turn["attention_mask"]], sequences + [turn["input_ids"]]
    mask, sequences = torch.cat(mask, dim=1), torch.cat(sequences, dim=1)
    continued = generate(model, sequences, attention_mask=mask, cache=cache_of(out))
    for row, real, generated in zip(sequences, mask, continued, strict=True):
        alone = row[real.bool()][None]
        expected = generate(model, alone, attention_mask=torch.ones_like(alone))
        assert torch.equal(generated[-NEW:], expected[0, -NEW:])


def test_only_the_new_tokens_may_be_passed_beside_the_whole_mask():
    model, (_, batch) = double_model(), left_padded([7, 3])
    out, more = generate(model, **batch, return_dict_in_generate=True), random_ids(2, 5, seed=7)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, NEW + 5), value=1)
    expected = generate(model, torch.cat([out.sequences, more], dim=1), attention_mask=mask)
    unseen = torch.cat([out.sequences[:, -1:], more], dim=1)
    continued = generate(model, unseen, attention_mask=mask, cache=cache_of(out))
    assert torch.equal(continued[:, -NEW:], expected[:, -NEW:])


def test_a_cache_is_continued_from_embeddings():
    model, prompt = double_model(), random_ids(2, 6)
    out = generate(model, prompt, return_dict_in_generate=True)
    embeds = model.get_input_embeddings()(torch.cat([out.sequences, random_ids(2, 5, seed=7)], dim=1)).detach()
    continued = generate(model, inputs_embeds=embeds, cache=cache_of(out))
    assert torch.equal(continued, generate(model, inputs_embeds=embeds))


def test_a_continued_cache_holds_what_one_go_leaves():
    model, (_, batch) = double_model(), left_padded([7, 3])
    whole = generate(model, **batch, return_dict_in_generate=True)
    part = generate(model, **batch, return_dict_in_generate=True, max_new_tokens=NEW - 5)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, NEW - 5), value=1)
    settings = {"attention_mask": mask, "max_new_tokens": 5, "return_dict_in_generate": True}
    rest = generate(model, part.sequences, cache=cache_of(part), **settings)
    assert torch.equal(rest.sequences, whole.sequences)
    assert cache_of(rest).get_seq_length() == cache_of(whole).get_seq_length() == 7 + NEW - 1
    for ours, theirs in zip(cache_of(rest).layers, cache_of(whole).layers, strict=True):
        torch.testing.assert_close(tree_leaves(ours.state), tree_leaves(theirs.state), **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
@pytest.mark.parametrize("first", [True, False])
def test_a_cache_that_autocast_filled_is_continued_without_and_the_other_way_round(first, cache_class, attention):
    """Steps within and into chunks, and several tokens at once; within the rounding of bfloat16."""
    model = tiny_model(attn_implementation=attention)
    input_ids = random_ids(2, 30)
    cache = cache_class(config=model.config, **({"max_cache_len": 30} if cache_class is StaticCache else {}))
    pieces = [10, *[1] * 7, 7, *[1] * 6]
    with torch.no_grad():
        for index, (piece, expected) in enumerate(
            zip(input_ids.split(pieces, 1), model(input_ids).logits.split(pieces, 1), strict=True)
        ):
            with torch.autocast("cpu", torch.bfloat16, enabled=first == (index == 0 or index > 8)):
                logits = model(piece, cache=cache).logits
            assert (logits - expected).norm() / expected.norm() < 0.05


@every_pattern
@each_cache
@pytest.mark.parametrize("prefill_chunk_size", [1, 3, 4, 5, 8, 20])
def test_prefill_in_pieces_generates_the_same(prefill_chunk_size, cache_implementation, pattern):
    model, (_, batch) = double_model(**pattern), left_padded([11, 8, 1])
    expected = generate(model, **batch)
    settings = {"prefill_chunk_size": prefill_chunk_size, "cache_implementation": cache_implementation}
    assert torch.equal(generate(model, **batch, **settings), expected)
    assert torch.equal(generate(model, batch["input_ids"][:1], **settings), expected[:1])


# What a cache or the library cannot do for this model, in words instead of other text


def prefilled(model, prompt, mask=None) -> tuple[DynamicCache, dict]:
    """As a decoding loop of one's own has them after the prefill, `generate()`'s count of tokens among them."""
    cache = DynamicCache(config=model.config)
    kwargs = {CACHE_NAME: cache, "attention_mask": torch.ones_like(prompt) if mask is None else mask}
    outputs = model(**model.prepare_inputs_for_generation(prompt, is_first_iteration=True, **kwargs))
    return cache, model._update_model_kwargs_for_generation(outputs, kwargs)


@pytest.mark.parametrize("change", ["expanded", "cropped"])
@torch.no_grad()
def test_a_loop_of_ones_own_may_expand_or_crop_the_cache(change):
    """The host's count of tokens is then no longer the cache's, and the step has to look which rows enter a chunk."""
    model, prompt = double_model(), random_ids(1, 8 if change == "expanded" else 9)
    cache, kwargs = prefilled(model, prompt)
    if change == "expanded":
        cache.batch_repeat_interleave(3)
        _, kwargs = model._expand_inputs_for_generation(expand_size=3, **kwargs)
        sequence = torch.cat([prompt.repeat(3, 1), random_ids(3, 1, seed=2)], dim=1)
    else:
        cache, kwargs = DynamicCache(config=model.config), {}
        cache.activate_past_recording()
        outputs = model(prompt, cache=cache)
        kwargs = model._update_model_kwargs_for_generation(outputs, {"attention_mask": torch.ones_like(prompt)})
        cache.crop(-1)
        sequence = torch.cat([prompt[:, :-1], random_ids(1, 1, seed=2)], dim=1)
    kwargs[CACHE_NAME] = cache
    inputs = model.prepare_inputs_for_generation(sequence[:, -1:], next_sequence_length=1, **kwargs)
    torch.testing.assert_close(model(**inputs).logits[:, -1], model(sequence).logits[:, -1], **CLOSE)


@torch.no_grad()
def test_the_host_counts_several_tokens_of_one_forward():
    model, more = double_model(), random_ids(2, 3, seed=2)
    cache, kwargs = prefilled(model, random_ids(2, 6))
    kwargs = model._update_model_kwargs_for_generation(model(more, cache=cache), kwargs, num_new_tokens=3)
    assert kwargs["token_counts"].per_row == [9, 9]
    assert kwargs["token_counts"].fits(cache, more)


@pytest.mark.parametrize("change", ["reorder_cache", "batch_select_indices"])
@torch.no_grad()
def test_a_loop_of_ones_own_may_exchange_rows_of_different_lengths(change):
    """The host's counts are then those of other rows."""
    model, (rows, batch) = double_model(), left_padded([8, 6])  # one enters a chunk now
    cache, kwargs = prefilled(model, batch["input_ids"], batch["attention_mask"])
    getattr(cache, change)(torch.tensor([1, 0]))
    token = random_ids(2, 1, seed=2)
    inputs = model.prepare_inputs_for_generation(token, next_sequence_length=1, **kwargs)
    logits = model(**inputs).logits[:, -1]
    for row, prompt in enumerate(rows[::-1]):
        whole = torch.cat([prompt, token[row : row + 1]], dim=1)
        torch.testing.assert_close(logits[row], model(whole).logits[0, -1], **CLOSE)


def test_padding_that_the_cache_has_read_is_not_hidden_afterwards():
    model, prompt = double_model(), random_ids(2, 6)
    eos = int(generate(model, prompt)[1, 8])
    out = generate(model, prompt, eos_token_id=eos, return_dict_in_generate=True)
    new = out.sequences[:, 6:]
    real = (new == eos).cumsum(1) - (new == eos).long() == 0
    assert not real[1].all()
    mask = torch.cat([torch.ones(2, 6), real, torch.ones(2, 3)], dim=1).long()
    whole = torch.cat([out.sequences, random_ids(2, 3, seed=5)], dim=1)
    with pytest.raises(ValueError, match=f"`attention_mask` hides tokens that `{CACHE_NAME}` has read"):
        generate(model, whole, attention_mask=mask, cache=cache_of(out))
    generate(model, whole, attention_mask=torch.ones_like(mask), cache=cache_of(out))


def test_a_single_row_may_have_meant_the_padding_token_that_the_cache_has_read():
    """Without a mask the library guesses one from padding tokens."""
    model, prompt = double_model(), random_ids(1, 9)
    prompt[0, 4] = 0
    cache = DynamicCache(config=model.config)
    model(prompt, cache=cache)
    whole = torch.cat([prompt, random_ids(1, 3, seed=5)], dim=1)
    expected = generate(model, whole, attention_mask=torch.ones_like(whole))
    assert torch.equal(generate(model, whole, cache=cache), expected)


@torch.no_grad()
def test_a_loop_of_ones_own_may_pass_the_mask_of_a_new_turn_alone():
    model, (_, batch), (_, turn) = double_model(), left_padded([7, 3]), left_padded([5, 2], seed=7)
    whole = {name: torch.cat([batch[name], turn[name]], dim=1) for name in turn}
    for first in (True, False):
        cache, kwargs = prefilled(model, batch["input_ids"], batch["attention_mask"])
        inputs = model.prepare_inputs_for_generation(**{**kwargs, **turn}, is_first_iteration=first)
        torch.testing.assert_close(model(**inputs).logits[:, -1], model(**whole).logits[:, -1], **CLOSE)


@pytest.mark.parametrize("start", [0, 1])
def test_packed_prompts_are_not_prefilled_in_pieces(start):
    model, prompt = double_model(), random_ids(1, 15)
    position_ids = torch.cat([torch.arange(6), torch.arange(9)])[None] + start
    with pytest.raises(ValueError, match="`position_ids` start anew"):
        generate(model, prompt, position_ids=position_ids, prefill_chunk_size=4)


def test_right_padding_is_not_prefilled_in_pieces():
    model, prompt = double_model(), random_ids(1, 9)
    mask = torch.tensor([[1] * 6 + [0] * 3])
    with pytest.raises(ValueError, match="Pad on the left"):
        generate(model, prompt, attention_mask=mask, prefill_chunk_size=3)


def test_training_with_gradient_checkpointing_keeps_no_cache():
    model, prompt = double_model(), random_ids(2, 6)
    model.gradient_checkpointing_enable()
    expected = generate(model, prompt)
    model.train()
    assert cache_of(model(prompt, use_cache=True)) is None
    with pytest.raises(ValueError, match="gradient checkpointing, whose layers keep no cache"):
        model(prompt, cache=DynamicCache(config=model.config))
    for use_cache in (True, False):  # where there are no gradients, there are no checkpoints
        assert torch.equal(generate(model, prompt, use_cache=use_cache), expected)


def test_a_new_turn_alone_needs_the_mask_of_the_past():
    model = double_model()
    cache = cache_of(generate(model, random_ids(1, 6), return_dict_in_generate=True))
    with pytest.raises(ValueError, match="a mask that covers the past as well"):
        generate(model, random_ids(1, 5, seed=4), cache=cache)


def test_assisted_generation_needs_a_cache_in_the_words_of_the_library():
    model = double_model()
    with pytest.raises((ValueError, RuntimeError), match="(?i)assisted .* requires .*cache"):
        generate(model, random_ids(1, 6), assistant_model=double_model(), use_cache=False)


def test_continuous_batching_is_refused():
    model = eager_model()
    with pytest.raises(ValueError, match="Continuous batching"):
        model.generate_batch([[2, 3, 4]])
    generate(model, random_ids(1, 6))


# Caches


@every_pattern
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["greedy", "sampling", "beam search"])
def test_static_cache_generates_what_a_dynamic_one_does(method, dtype, pattern):
    model, (_, batch) = tiny_model(dtype=dtype, **pattern), left_padded([7, 3])
    out = generate(model, **batch, **METHODS[method], cache_implementation="static", return_dict_in_generate=True)
    assert type(cache_of(out)) is StaticCache
    assert torch.equal(out.sequences, generate(model, **batch, **METHODS[method]))


@pytest.mark.parametrize("make", CACHES)
def test_a_cache_serves_again_after_reset(make):
    model = double_model()
    cache = make(config=model.config)
    for seed, rows in ((1, 2), (2, 2), (3, 1)):  # the last of another batch size
        prompt = random_ids(rows, 6 + seed, seed=seed)
        assert torch.equal(generate(model, prompt, cache=cache), generate(model, prompt))
        cache.reset()


@pytest.mark.parametrize("make", CACHES)
def test_after_reset_a_cache_serves_another_model_of_as_many_layers(make):
    prompt, cache = random_ids(2, 6), make(config=double_model().config)
    for overrides in ({}, {"chunk_size": 5}):
        model = double_model(**overrides)
        assert torch.equal(generate(model, prompt, cache=cache), generate(model, prompt))
        cache.reset()


def test_the_length_that_a_static_cache_was_asked_for_is_no_limit():
    model, prompt = double_model(), random_ids(1, 6)
    cache = StaticCache(config=model.config, max_cache_len=2)
    assert torch.equal(generate(model, prompt, cache=cache), generate(model, prompt))


# Compiled. `backend="eager"` traces and guards like any other, and spares the minutes of code generation.


@pytest.fixture
def compiled():
    """Settings that make `generate()` compile on any device, and count graphs from zero."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()

    def settings(backend="eager"):
        config = CompileConfig(fullgraph=True, backend=backend, mode=None)
        config._compile_all_devices = True
        return {"cache_implementation": "static", "compile_config": config}

    yield settings
    torch.compiler.reset()


def compiled_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


# Rows that enter a chunk together: none or all; none, one or two.
@pytest.mark.parametrize(
    ("lengths", "graphs", "pattern"),
    [([6], 2, {}), ([6, 6], 2, {}), *(([8, 6, 4], 3, pattern) for pattern in PATTERNS.values())],
    ids=str,
)
def test_compiled_greedy_equals_dynamic_with_a_few_graphs_for_any_number_of_tokens(compiled, lengths, graphs, pattern):
    model, settings = double_model(**pattern), compiled()
    for seed, new in ((1, NEW), (7, 2 * NEW)):
        batch = left_padded(lengths, seed)[1]
        expected = generate(model, **batch, max_new_tokens=new)
        assert torch.equal(generate(model, **batch, max_new_tokens=new, **settings), expected)
        assert compiled_graphs() == graphs


def test_any_number_of_rows_may_enter_a_chunk_in_one_compiled_step(compiled):
    model, (_, batch) = (
        double_model(num_hidden_layers=1, layer_pattern=["both"], num_sink_tokens=2),
        left_padded([5, 6, 10, 7, 3, 11, 4, 8, 12, 16]),
    )  # one, two, three and four
    expected = generate(model, **batch)
    assert torch.equal(generate(model, **batch, **compiled()), expected)
    assert compiled_graphs() <= 3


def test_compiled_steps_record_everything(compiled):
    model, prompt = eager_model(num_hidden_layers=1, layer_pattern=["both"]), random_ids(2, 6)
    ours, expected = generate(model, prompt, **EVERYTHING, **compiled()), generate(model, prompt, **EVERYTHING)
    assert compiled_graphs() == 2
    for name in ("scores", "logits", "hidden_states", "attentions"):
        torch.testing.assert_close(tree_leaves(ours[name]), tree_leaves(expected[name]), **CLOSE32)


@pytest.mark.parametrize("lengths", [[9], [9, 6]])
def test_prefill_in_pieces_compiles(compiled, lengths):
    model, (_, batch) = double_model(num_hidden_layers=1, layer_pattern=["both"]), left_padded(lengths)
    out = generate(model, **batch, prefill_chunk_size=3, **compiled())
    assert torch.equal(out, generate(model, **batch))


@every_pattern
def test_a_compiled_step_finds_out_by_itself_which_rows_enter_a_chunk(compiled, pattern):
    model, (_, batch) = double_model(**pattern), left_padded([8, 6, 4])
    more = random_ids(3, NEW, seed=7)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, NEW), value=1)
    expected = model(torch.cat([batch["input_ids"], more], dim=1), attention_mask=mask).logits[:, 8:]
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(**batch, cache=cache)
    step = torch.compile(model, backend="eager", fullgraph=True)
    logits = [step(token, cache=cache).logits for token in more.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)
    assert compiled_graphs() == 1


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.skipif(not is_torch_greater_or_equal("2.13"), reason="this version of torch writes before it has read")
def test_generated_code_equals_dynamic(compiled):
    model, prompt = double_model(num_hidden_layers=1, layer_pattern=["both"]), random_ids(1, 6)
    assert torch.equal(generate(model, prompt, **compiled("inductor")), generate(model, prompt))


# Assisted generation


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


def test_a_crop_can_be_followed_by_one_that_goes_further_back():
    model, input_ids = double_model(), random_ids(1, 200)
    cache = DynamicCache(config=model.config)
    model(input_ids[:, :7], cache=cache)
    cache.activate_past_recording()
    start = 7
    for size, removed in ((9, 3), (2, 5), (1, 4), (150, 1)):
        model(input_ids[:, start : start + size], cache=cache)
        cache.crop(-removed)
        start += size - removed
        state = DynamicCache(config=model.config)
        model(input_ids[:, :start], cache=state)
        for mine, whole in zip(cache.layers, state.layers, strict=True):
            for ours, theirs in zip(tree_leaves(mine.state), tree_leaves(whole.state), strict=True):
                torch.testing.assert_close(ours, theirs, **CLOSE)
    assert len(cache.layers[0].history) == 1  # the last piece alone is longer than what can be undone once more
    with pytest.raises(RuntimeError, match="64 tokens before it can still be undone"):
        cache.crop(-start)


def test_64_tokens_before_a_crop_can_still_be_undone():
    model, cache = double_model(), DynamicCache(config=double_model().config)
    cache.activate_past_recording()
    for token in random_ids(1, 80).split(1, dim=1):
        model(token, cache=cache)
    cache.crop(-1)
    cache.crop(-64)
    assert cache.get_seq_length() == 80 - 1 - 64


@pytest.mark.parametrize("settings", [{}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_a_cache_made_without_a_configuration_gets_layers(settings):
    model, prompt, cache = double_model(), random_ids(1, 6), DynamicCache()
    assert torch.equal(generate(model, prompt, cache=cache, **settings), generate(model, prompt))
    expected = cache_of(generate(model, prompt, return_dict_in_generate=True))
    for ours, theirs in zip(cache.layers, expected.layers, strict=True):
        torch.testing.assert_close(tree_leaves(ours.state), tree_leaves(theirs.state), **CLOSE)


def test_nothing_recorded_is_left_when_recording_stops():
    """As the library stops it: forwards after that are not recorded, so a crop must not undo those before."""
    model = double_model()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    model(random_ids(2, 13), cache=cache)
    for layer in cache.layers:
        layer.record_past = False
    model(random_ids(2, 5, seed=7), cache=cache)
    assert all(layer.history == [] for layer in cache.layers)
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.crop(-2)
    assert cache.get_seq_length() == 18


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


def test_assisted_sampling_returns_everything_for_every_token():
    model, prompt = eager_model(), random_ids(1, 6)
    out = generate(model, prompt, do_sample=True, **EVERYTHING, **helper_settings(model, "same weights", 3))
    assert out.sequences.shape == (1, 6 + NEW)
    for per_step in (out.scores, out.logits, out.hidden_states, out.attentions):
        assert len(per_step) == NEW
    assert cache_of(out).get_seq_length() == 6 + NEW - 1


# Streamers and the pipeline


class RecordingStreamer(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], 0

    def put(self, value):
        self.pieces.append(value)

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}])
def test_a_streamer_gets_the_prompt_and_then_every_token(settings):
    model, prompt, streamer = double_model(), random_ids(1, 6), RecordingStreamer()
    sequence = generate(model, prompt, streamer=streamer, **settings)
    assert torch.equal(streamer.pieces[0], prompt)
    assert torch.equal(torch.cat([piece.flatten() for piece in streamer.pieces]), sequence[0])
    assert streamer.ended == 1


def test_text_is_streamed_while_it_is_generated():
    model, tokenizer, prompt = double_model(), tiny_tokenizer(), random_ids(1, 6)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    worker = threading.Thread(target=generate, args=(model, prompt), kwargs={"streamer": streamer})
    worker.start()
    text = "".join(streamer)
    worker.join()
    assert text == tokenizer.decode(generate(model, prompt)[0, 6:])


def test_text_generation_pipeline_gives_each_prompt_its_own_text():
    model, tokenizer = double_model(), tiny_tokenizer()
    prompts = ["w2 w3 w4 w5 w6 w7 w8 w9 w10", "w11 w12", "w20 w21 w22 w23"]
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    settings = {"max_new_tokens": NEW, "do_sample": False, "return_full_text": False}
    together = generator(prompts, batch_size=3, **settings)
    for prompt, (result,) in zip(prompts, together, strict=True):
        row = tokenizer(prompt, return_tensors="pt").input_ids
        new = generate(model, row)[0, row.shape[1] :]
        assert result["generated_text"].strip() == tokenizer.decode(new, skip_special_tokens=True)


# What a step costs


def record_calls(module: torch.nn.Module, calls: list) -> None:
    """The leading dimension, rows, of what the module is called with."""
    module.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[0]))


@each_cache
def test_the_latents_side_runs_once_per_chunk(cache_implementation):
    model = double_model(layer_pattern=["both", "latent"])
    names = ("latent_self", "input_to_latent.q_proj", "latent_to_input.k_proj")
    calls = [{name: [] for name in names} for _ in model.model.layers]
    for layer, of_layer in zip(model.model.layers, calls, strict=True):
        for name in names:
            record_calls(layer.latent_attention.get_submodule(name), of_layer[name])
    generate(model, random_ids(1, 6), max_new_tokens=3 * CHUNK, cache_implementation=cache_implementation)
    # Once in the prefill; then tokens 9, 13 and 17 enter a chunk. The last that is generated is not read.
    for of_layer in calls:
        assert {name: len(rows) for name, rows in of_layer.items()} == dict.fromkeys(names, 1 + 3)


@each_cache
def test_only_the_rows_that_enter_a_chunk_are_computed(cache_implementation):
    model, rows = double_model(), []
    record_calls(model.model.layers[0].latent_attention.latent_to_input.k_proj, rows)
    batch = left_padded([8, 6, 4, 2])[1]
    generate(model, **batch, max_new_tokens=CHUNK + 1, cache_implementation=cache_implementation)
    # Of four steps the first takes rows 0 and 2 into a new chunk, the third rows 1 and 3.
    assert rows == [4, 2, 2]


def test_beams_of_equal_lengths_enter_a_chunk_without_asking_the_device(monkeypatch):
    model, known = double_model(), []
    prepare = model.prepare_inputs_for_generation

    @functools.wraps(prepare)
    def recording(*args, **kwargs):
        inputs = prepare(*args, **kwargs)
        known.append("new_chunk_rows" in inputs)
        return inputs

    monkeypatch.setattr(model, "prepare_inputs_for_generation", recording)
    generate(model, random_ids(2, 6), num_beams=3)
    assert known == [False] + [True] * (NEW - 1)


def test_a_decoding_step_never_waits_for_the_device(monkeypatch):
    """On the meta device there are no values: to look at one, which elsewhere is to wait for it, is an error."""
    model, steps = double_model(), []
    prepare = model.prepare_inputs_for_generation

    @functools.wraps(prepare)
    def recording(*args, **kwargs):
        steps.append(copy.deepcopy((args, kwargs)))
        return prepare(*args, **kwargs)

    monkeypatch.setattr(model, "prepare_inputs_for_generation", recording)
    generate(model, **left_padded([8, 6, 4])[1], max_new_tokens=2 * CHUNK)

    def without_values(value):
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    model, entering = double_model().to("meta"), []
    for args, kwargs in steps[1:]:  # the prefill may look
        cache = kwargs.pop(CACHE_NAME)  # how long it is, the host knows
        for layer in cache.layers:
            layer.state = tree_map(without_values, layer.state)
        args, kwargs = tree_map(without_values, (args, kwargs))
        kwargs[CACHE_NAME] = cache
        inputs = model.prepare_inputs_for_generation(*args, **kwargs)
        entering.append(inputs["new_chunk_rows"].shape[0])
        assert model(**inputs).logits.shape == (3, 1, 31)
    assert entering == [2, 0, 1, 0, 2, 0, 1]

    with pytest.raises((RuntimeError, NotImplementedError)):  # a mask passed by hand is looked at
        model(**{**inputs, "attention_mask": torch.ones(3, 1, device="meta")})


# Errors


@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_a_bidirectional_model_does_not_generate(settings):
    with pytest.raises(ValueError, match="is_causal=True"):
        generate(double_model(is_causal=False), random_ids(1, 6), **settings)


def test_a_mask_of_four_dimensions_is_refused():
    model, mask = double_model(), torch.ones(1, 1, 6, 6)
    with pytest.raises(ValueError, match="must be 2D"):
        generate(model, random_ids(1, 6), attention_mask=mask)
    with pytest.raises(ValueError, match="must be 2-D"):
        model(random_ids(1, 6), attention_mask=mask)


@pytest.mark.parametrize(("past", "width"), [(0, 5), (0, 7), (4, 5)])
def test_a_mask_that_does_not_fit_the_tokens_is_refused(past, width):
    """Beside a cache it may be longer, and cover the past."""
    model = double_model()
    cache = cache_of(model(random_ids(1, past), use_cache=True)) if past else None
    with pytest.raises(ValueError, match=rf"`attention_mask` is of shape \(1, {width}\) but must be 2-D, \(1, 6\)"):
        model(random_ids(1, 6), torch.ones(1, width), cache=cache)


@pytest.mark.parametrize("names", [[], ["input_ids", "inputs_embeds"]], ids=str)
def test_it_takes_either_ids_or_embeddings(names):
    model, input_ids = double_model(), random_ids(1, 6)
    inputs = {"input_ids": input_ids, "inputs_embeds": model.get_input_embeddings()(input_ids)}
    with pytest.raises(ValueError, match="Pass exactly one of `input_ids` and `inputs_embeds`"):
        model(**{name: inputs[name] for name in names})


def test_a_bidirectional_model_takes_no_cache():
    model = double_model(is_causal=False)
    with pytest.raises(ValueError, match=f"`{CACHE_NAME}` is for causal models"):
        model(random_ids(1, 6), cache=DynamicCache(config=model.config))


def makes_streams() -> bool:
    """Whether there is a stream on the device of these tests, as the library's offloaded caches want one."""
    try:
        torch.Stream(device=torch.accelerator.current_accelerator() or "cpu")
    except RuntimeError:
        return False
    return True


needs_streams = pytest.mark.skipif(not makes_streams(), reason="this version of torch makes no stream on a CPU")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param({"cache_implementation": "offloaded"}, "stays on the device", marks=needs_streams),
        pytest.param({"cache_implementation": "offloaded_static"}, "stays on the device", marks=needs_streams),
        ({"cache_implementation": "quantized"}, "QuantizedCache.*latent_attention"),
        (
            {"cache_implementation": "quantized", "cache_config": {"backend": "hqq"}},
            "QuantizedCache.*latent_attention",
        ),
    ],
)
def test_caches_that_it_cannot_have_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        generate(double_model(), random_ids(1, 6), **settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DynamicCache(config=LlamaConfig(num_hidden_layers=2)),
        lambda: StaticCache(config=LlamaConfig(num_hidden_layers=2), max_cache_len=64),
        lambda: DynamicCache(config=double_model(num_hidden_layers=3).config),
    ],
    ids=["Llama", "static Llama", "more layers"],
)
def test_an_empty_cache_made_for_another_model_is_refused(make):
    for call in (double_model(), functools.partial(generate, double_model())):
        with pytest.raises(ValueError, match=r"Pass `DynamicCache\(config=model.config\)`"):
            call(random_ids(1, 6), cache=make())


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize(
    "other",
    [
        {"chunk_size": 8},
        {"num_latents": 5},
        {"hidden_size": 32},
        {"num_key_value_heads": 4},
        {"num_attention_heads": 8, "head_dim": 4},
        {"head_dim": 8},
        {"conv_kernel_size": 0},
        {"conv_kernel_size": 3},
        {"mlp_conv_kernel_size": 0},
        {"mlp_conv_kernel_size": 4},
        {"num_sink_tokens": 2},
        {"layer_pattern": ["local"]},
        {"layer_pattern": ["latent"]},
        {"layer_pattern": ["local", "both"]},
    ],
    ids=str,
)
def test_a_cache_that_another_model_has_filled_is_refused(other, tokens):
    other = double_model(**other)
    cache = DynamicCache(config=other.config)
    other(random_ids(1, 9), cache=cache)
    with pytest.raises(ValueError, match=r"Pass `DynamicCache\(config=model.config\)`"):
        double_model()(random_ids(1, tokens), cache=cache)


def test_the_error_names_what_differs_and_nothing_else():
    other = double_model(chunk_size=8)
    cache = cache_of(other(random_ids(1, 9), use_cache=True))
    with pytest.raises(ValueError, match="a model with {'chunk_size': 8}, but this one has {'chunk_size': 4}"):
        double_model()(random_ids(1, 1), cache=cache)
    # A pattern counts by the layers that come of it.
    same = double_model(layer_pattern=["both", "local", "latent"])
    same(random_ids(1, 1), cache=cache_of(double_model()(random_ids(1, 9), use_cache=True)))


def test_empty_layers_of_another_copy_of_the_code_give_way_to_layers_of_the_same_kind():
    def of_another_copy(own, **attributes):
        return type(own.__name__, (), {"state": None, "record_past": False, **attributes})()

    dynamic, static = cache_latent.LatentAttentionCacheLayer, cache_latent.StaticLatentAttentionCacheLayer
    layers = [of_another_copy(dynamic), of_another_copy(dynamic, record_past=True)]
    layers.append(of_another_copy(static, max_cache_len=64))
    cache_latent.take_over_empty_layers(layers)
    assert [type(layer) for layer in layers] == [dynamic, dynamic, static]
    assert [layer.record_past for layer in layers] == [False, True, False]
    assert layers[2].max_cache_len == 64


@pytest.mark.parametrize("make", CACHES)
def test_a_cache_of_another_batch_size_is_refused(make):
    model = double_model()
    cache = make(config=model.config)
    generate(model, random_ids(2, 6), cache=cache)
    for tokens in (1, 6):
        with pytest.raises(ValueError, match="batch size 2 but the input of 3.*batch_repeat_interleave"):
            model(random_ids(3, tokens), cache=cache)


def test_a_tuple_is_no_cache():
    with pytest.raises(ValueError, match=f"`{CACHE_NAME}` is a tuple of 0 layers"):
        double_model()(random_ids(1, 6), cache=())


def test_a_padded_cache_is_not_expanded_for_beams():
    model, (_, batch) = double_model(), left_padded([6, 3])
    out = generate(model, **batch, return_dict_in_generate=True)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, NEW), value=1)
    with pytest.raises(ValueError, match="batch size 2 but the input of 4.*batch_repeat_interleave"):
        generate(model, out.sequences, attention_mask=mask, cache=cache_of(out), num_beams=2)


@pytest.mark.parametrize("shape", [(0, 6), (2, 0)])
def test_an_input_without_any_token_is_refused(shape):
    with pytest.raises(ValueError, match=rf"of shape \({shape[0]}, {shape[1]}\), without any token"):
        double_model()(random_ids(*shape))


def test_a_single_sequence_has_to_be_a_batch_of_one():
    with pytest.raises(
        ValueError, match=r"of shape \(6,\), or as embeddings \(6, 16\), but must be \(batch, tokens\)"
    ):
        double_model()(random_ids(6))
    with pytest.raises(ValueError, match="put a single sequence into a batch of one"):
        LatentAttention(tiny_config())(torch.randn(6, 16))


@pytest.mark.parametrize("name", ["position_ids", "seq_idx"])
@pytest.mark.parametrize("shape", [(6,), (1, 5), (2, 7), (3, 2, 6)], ids=str)
def test_packing_of_another_shape_is_refused(name, shape):
    message = re.escape(f"`{name}` is of shape {shape} but must be a tensor of shape (2, 6)")
    with pytest.raises(ValueError, match=message):
        double_model()(random_ids(2, 6), **{name: torch.zeros(shape, dtype=torch.long)})


@pytest.mark.parametrize(
    ("places", "found"),
    [
        ([0, 6], "of type list"),
        (torch.tensor([[0, 6]]), r"torch.int64 of shape \(1, 2\)"),
        (torch.tensor([0, 2.5, 6]), r"torch.float32 of shape \(3,\)"),
    ],
)
def test_sequences_are_told_by_a_vector(places, found):
    with pytest.raises(ValueError, match=f"`cu_seq_lens_q` is {found} but must be integers of shape"):
        double_model()(random_ids(1, 6), cu_seq_lens_q=places)


def test_a_prompt_without_a_token_behind_the_cache_is_refused():
    model, prompt = double_model(), random_ids(1, 6)
    cache = cache_of(model(prompt, use_cache=True))
    with pytest.raises(ValueError, match="at least one token more"):
        generate(model, prompt, cache=cache)


def test_a_cache_that_was_cropped_to_nothing_takes_another_batch_size():
    model = double_model()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    for batch in (2, 3):
        model(random_ids(batch, 6), cache=cache)
        assert {layer.batch_size for layer in cache.layers} == {batch}
        cache.crop(-6)
