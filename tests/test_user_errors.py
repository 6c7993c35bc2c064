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
"""What users get wrong has a sentence: an error, or one warning, that names the field or file and what to do."""

import json
import logging
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Trainer,
    TrainingArguments,
)
from transformers.utils.logging import warning_once

from common import SIZES, random_ids, tiny_config, tiny_model
from from_llama import convert
from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM


@pytest.fixture
def warned(caplog):
    """Warnings of this package so far, one string each."""
    warning_once.cache_clear()  # an earlier test may have had the warning

    def messages() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("modeling_latent")]

    with caplog.at_level(logging.WARNING):
        yield messages


def edit_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), encoding="utf-8")


# Fields of the configuration


def test_unknown_fields_are_named_in_one_warning_with_the_nearest_known_one(warned, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    edit_config(tmp_path, chunksize=8, num_latent=5, colour="blue")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    (message,) = warned()
    assert "`chunksize` (did you mean `chunk_size`?)" in message
    assert "`num_latent` (did you mean `num_latents`?), `colour`." in message
    assert (model.config.chunksize, model.config.chunk_size) == (8, 4)


def test_what_the_library_reads_and_writes_is_known(warned, tmp_path):
    tiny_config(
        num_labels=3,
        problem_type="regression",
        torch_dtype="float32",
        output_attentions=False,
        classifier_dropout=0.1,
        max_position_embeddings=99,
        tokenizer_class="PreTrainedTokenizerFast",
        rope_theta=500.0,
        temperature=0.5,
        max_new_tokens=3,
        _attn_implementation_autoset=True,
        architectures=["LatentAttentionForCausalLM"],
        is_decoder=True,
        quantization_config={},
    )
    LatentAttentionConfig(**LatentAttentionConfig().to_dict())
    LatentAttentionConfig(**PreTrainedConfig().to_dict())
    for auto_class in (AutoModelForCausalLM, AutoModelForTokenClassification):
        auto_class.from_config(tiny_config()).save_pretrained(tmp_path)
        auto_class.from_pretrained(tmp_path)
    assert warned() == []


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["bf16", "torch.float32"])
def test_a_dtype_that_torch_does_not_know_is_named(field, value, tmp_path):
    with pytest.raises((ValueError, StrictDataclassError), match=f"`dtype` is '{value}' but must be a dtype of torch"):
        tiny_config(**{field: value})
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`dtype`"):
        AutoModelForCausalLM.from_pretrained(tmp_path, **{field: value})
    edit_config(tmp_path, dtype=value)
    with pytest.raises((ValueError, StrictDataclassError), match=f"`dtype` is '{value}' but must be a dtype of torch"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# What training fixed


@pytest.mark.parametrize("way", ["edited", "argument"])
def test_what_training_fixed_is_saved_with_the_weights_and_a_difference_is_one_warning(way, warned, tmp_path):
    tiny_model(layer_pattern=["both", "local"]).save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert warned() == []
    changes = {"chunk_size": 8, "layer_pattern": ["both", "both"], "norm_eps": 1e-3, "use_cache": False}
    if way == "edited":
        edit_config(tmp_path, **changes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, **(changes if way == "argument" else {}))
    (message,) = warned()
    assert "`chunk_size` was 4 and is 8; `layer_pattern` was ['both', 'local'] and is ['both', 'both']" in message
    assert "`norm_eps` was 1e-05 and is 0.001" in message
    assert "use_cache" not in message
    assert model.config.chunk_size == 8
    model.save_pretrained(tmp_path)  # trained on with the new values, as far as anyone knows
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(warned()) == 1


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSequenceClassification, AutoModelForMaskedLM])
def test_a_direction_that_is_not_the_trained_one_is_named_by_every_head(auto_class, warned, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    auto_class.from_pretrained(tmp_path, is_causal=False, output_loading_info=True)
    (message,) = (message for message in warned() if "trained" in message)
    assert "`is_causal` was True and is False" in message


def test_a_configuration_alone_and_an_older_checkpoint_say_nothing_of_training(warned, tmp_path):
    tiny_config().save_pretrained(tmp_path / "config")
    assert AutoConfig.from_pretrained(tmp_path / "config").trained_with is None
    tiny_model().save_pretrained(tmp_path)
    edit_config(tmp_path, trained_with=None)
    AutoModelForCausalLM.from_pretrained(tmp_path, chunk_size=8)
    # A fresh model of another size has no weights that were trained.
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path, chunk_size=8))
    assert warned() == []


def test_a_converted_model_has_the_chunks_that_it_was_converted_to(warned, tmp_path):
    llama = LlamaForCausalLM(LlamaConfig(**SIZES))
    convert(llama, num_latents=3, chunk_size=4, num_sink_tokens=1, latent_every=2).save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert warned() == []
    AutoModelForCausalLM.from_pretrained(tmp_path, chunk_size=8)
    assert ["`chunk_size` was 4 and is 8" in message for message in warned()] == [True]


# Arguments of a forward


def test_an_argument_without_effect_is_one_warning_with_the_nearest_that_has_one(warned):
    model, input_ids = tiny_model(), random_ids(1, 6)
    for _ in range(2):
        model(input_ids, attention_maks=torch.ones(1, 6), logits_to_kep=1, token_type_ids=input_ids, colour=None)
    assert warned() == [
        "This model has no argument `attention_maks` (did you mean `attention_mask`?): it has no effect.",
        "This model has no argument `logits_to_kep` (did you mean `logits_to_keep`?): it has no effect.",
        "This model has no argument `token_type_ids`: it has no effect.",
    ]


def test_what_the_library_sends_to_every_model_is_known(warned):
    model, input_ids = tiny_model(), random_ids(1, 6)
    lengths = {f"cu_seq_lens_{of}": torch.tensor([0, 6]) for of in "qk"} | {f"max_length_{of}": 6 for of in "qk"}
    model(
        input_ids,
        labels=input_ids,
        shift_labels=input_ids,
        num_items_in_batch=6,
        use_cache=False,
        output_attentions=False,
        output_hidden_states=True,
        output_router_logits=False,
        return_dict=True,
        is_causal=True,
        **lengths,
    )
    model.generate(input_ids, max_new_tokens=2, do_sample=False, output_scores=True, return_dict_in_generate=True)
    adapted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    adapted(input_ids, labels=input_ids)
    assert warned() == []


# Labels


@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForTokenClassification])
def test_labels_that_are_no_classes_of_tokens_are_named(auto_class):
    model = auto_class.from_config(tiny_config(is_causal=auto_class is not AutoModelForMaskedLM))
    input_ids, labels = random_ids(2, 9), random_ids(2, 9) % 2
    for wrong in (labels.float(), labels.int(), labels == 0, labels[:, :4], labels.tolist()):
        with pytest.raises(ValueError, match=r"`labels` is .* but must be torch.long of shape \(2, 9\)"):
            model(input_ids, labels=wrong)
    assert model(input_ids, labels=labels).loss.isfinite()


@pytest.mark.parametrize(
    ("settings", "right", "wrong"),
    [
        ({"num_labels": 3}, [torch.tensor([0, 2]), torch.ones(2, 3)], [torch.ones(2), torch.tensor([True, False])]),
        ({"num_labels": 3}, [torch.tensor([[0], [2]])], [torch.tensor([0, 2, 1]), torch.tensor([0, 2]).int(), [0, 2]]),
        ({"num_labels": 1}, [torch.ones(2), torch.ones(2, 1), torch.tensor([3, 4])], [torch.ones(2, 2)]),
        ({"num_labels": 3, "problem_type": "regression"}, [torch.ones(2, 3)], [torch.ones(2)]),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            [torch.ones(2, 3)],
            [torch.ones(2, 3).long(), torch.tensor([0, 2])],
        ),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, [torch.tensor([0, 2])], [torch.ones(2)]),
    ],
    ids=["any of three", "columns of classes", "a number", "numbers", "several classes", "one class"],
)
def test_labels_of_rows_are_those_of_the_problem(settings, right, wrong):
    for labels in right:
        model = AutoModelForSequenceClassification.from_config(tiny_config(**settings))
        assert model(random_ids(2, 9), labels=labels).loss.isfinite()
    for labels in wrong:
        model = AutoModelForSequenceClassification.from_config(tiny_config(**settings))
        with pytest.raises(ValueError, match=r"`labels` is .*`num_labels` . and `problem_type` .* must be torch.long"):
            model(random_ids(2, 9), labels=labels)


def test_places_of_answers_that_are_no_numbers_of_tokens_are_named():
    model, places = AutoModelForQuestionAnswering.from_config(tiny_config()), torch.tensor([1, 2])
    for wrong in (places.float(), places.int(), places.tolist()):
        with pytest.raises(ValueError, match="`end_positions` is .* but must be torch.long"):
            model(random_ids(2, 9), start_positions=places, end_positions=wrong)


# Attention, files, adapters


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
def test_flash_attention_is_refused_with_what_to_take_instead(name, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for ask in (
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name),
        lambda: LatentAttentionForCausalLM(tiny_config(attn_implementation=name)),
        lambda: model.set_attn_implementation(name),
    ):
        with pytest.raises(ValueError, match=f"`attn_implementation` is '{name}', but .*local attention.*\"sdpa\""):
            ask()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee50593a96\nsize 30\n"


@pytest.mark.parametrize("damage", [lambda file: POINTER, lambda file: file[: len(file) // 2], lambda file: b""])
@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
def test_a_file_of_weights_that_is_cut_off_or_a_pointer_is_named(max_shard_size, damage, tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size=max_shard_size)
    files = sorted(tmp_path.glob("*.safetensors"))
    files[-1].write_bytes(damage(files[-1].read_bytes()))
    with pytest.raises(ValueError, match="can't be read .*cut off, or git has left a pointer") as error:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [file.name in str(error.value) for file in files] == [False] * (len(files) - 1) + [True]


@pytest.mark.parametrize("auto_class", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_an_adapter_of_a_language_model_says_why_a_classifier_does_not_take_it(auto_class, tmp_path):
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2)
    peft.get_peft_model(tiny_model(), settings).save_pretrained(tmp_path)
    classifier = auto_class.from_config(tiny_config())
    with pytest.raises(AttributeError, match=f'{type(classifier).__name__} does not generate.*"CAUSAL_LM".*"SEQ_CLS"'):
        peft.PeftModel.from_pretrained(classifier, tmp_path)
    assert not hasattr(classifier, "prepare_inputs_for_generation")
    assert not hasattr(classifier, "colour")


# Training that gives the latents nothing to read


def train_on(folder, length: int, padded_to: int | None = None, **overrides) -> None:
    """Three steps by `Trainer`, on rows of so many tokens."""
    model, width = tiny_model(**overrides), padded_to or length
    real = torch.arange(width) < length
    row = {"input_ids": random_ids(width).where(real, 0), "attention_mask": real.long()}
    row["labels"] = row["input_ids"].where(real, -100)
    settings = {"max_steps": 3, "per_device_train_batch_size": 2, "save_strategy": "no", "eval_strategy": "steps"}
    arguments = TrainingArguments(folder, eval_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, **settings)
    Trainer(model, arguments, train_dataset=[row] * 4, eval_dataset=[row]).train()


@pytest.mark.parametrize("settings", [{"length": 4}, {"length": 2, "padded_to": 9}], ids=str)
def test_rows_that_fit_into_a_chunk_are_one_warning_per_training(settings, warned, tmp_path):
    for trainings in (1, 2):
        train_on(tmp_path, **settings)
        assert len(warned()) == trainings
    assert "No sequence of this batch is longer than a chunk (`chunk_size` is 4)" in warned()[0]


@pytest.mark.parametrize(
    "settings", [{"length": 5}, {"length": 4, "is_causal": False}, {"length": 4, "layer_pattern": ["local"]}], ids=str
)
def test_rows_of_two_chunks_and_models_without_latents_or_with_both_directions_train_in_silence(
    settings, warned, tmp_path
):
    if settings.get("is_causal", True):
        train_on(tmp_path, **settings)
    else:
        model = AutoModelForMaskedLM.from_config(tiny_config(is_causal=False))
        model(random_ids(2, 4), labels=random_ids(2, 4)).loss.backward()
    assert warned() == []


def test_packed_documents_are_looked_at_one_by_one(warned):
    for lengths in ([4, 4, 3], [4, 5, 2]):
        mask = torch.cat([torch.full((length,), number + 1) for number, length in enumerate(lengths)])[None]
        tiny_model().train()(random_ids(1, 11), mask)
    assert len(warned()) == 1
