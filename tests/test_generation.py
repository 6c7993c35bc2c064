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
"""What `generate()` offers for a prompt, measured as transformers' own generation suite measures Llama.

Token for token in float64, so that what is equal in exact arithmetic is told from what is only close. Prompts and
what is generated cross several chunks of 4.
"""

import threading

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer, pipeline
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput, GenerationMixin
from transformers.generation.streamers import BaseStreamer

from common import CLOSE, double_model, every_pattern, random_ids
from generating import CLOSE32, EVERYTHING, METHODS, NEW, each_cache, eager_model, generate, left_padded
from modeling_latent import LatentAttentionForCausalLM
from modeling_latent.cache_name import cache_of


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
