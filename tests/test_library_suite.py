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
"""transformers' own common model suite, `ModelTesterMixin`, run on this model: what Llama passes, it passes.

The suite is in no wheel, so it comes from the source distribution of the installed transformers, which pip fetches
once into `.cache/`. It stays out of the repository.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, set_seed
from transformers.models.auto import modeling_auto

from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM, LatentAttentionModel


SUITE = "test_modeling_common"
CACHE = Path(__file__).resolve().parents[1] / ".cache"


def fetch_suite(version: str) -> Path:
    """The folder in `.cache/` that holds the suite of this version of transformers, fetched if it is not there."""
    folder = CACHE / f"transformers-{version}-tests"
    if (folder / f"{SUITE}.py").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    with tempfile.TemporaryDirectory(dir=CACHE) as download:
        # Of the source distribution nothing is installed; pip only asks it for its name and version.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        command += ["--dest", download, f"transformers=={version}"]
        result = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(download).glob("*.tar.gz"))
        if result.returncode or len(archives) != 1:
            raise RuntimeError(
                f"This test runs transformers' own model suite, which pip must fetch once with the source "
                f"distribution of transformers {version}, but `{' '.join(command)}` failed:\n{result.stderr.strip()}"
            )
        with tarfile.open(archives[0]) as archive:
            source = archive.extractfile(f"transformers-{version}/tests/{SUITE}.py").read()
        unpacked = Path(download) / f"{SUITE}.py"
        unpacked.write_bytes(source)
        os.replace(unpacked, folder / unpacked.name)  # in one go: another process may be looking
    return folder


def import_suite(version: str) -> types.ModuleType:
    """The suite as a module, beside empty stand-ins for the two mixins it imports that no distribution contains."""
    package = types.ModuleType("transformers_suite")
    package.__path__ = [str(fetch_suite(version))]
    sys.modules[package.__name__] = package
    for folder, module, mixin in (
        ("exporters", "test_export", "ExportTesterMixin"),
        ("generation", "test_utils", "GenerationTesterMixin"),
    ):
        parent = sys.modules[f"{package.__name__}.{folder}"] = types.ModuleType(f"{package.__name__}.{folder}")
        parent.__path__ = []
        child = sys.modules[f"{parent.__name__}.{module}"] = types.ModuleType(f"{parent.__name__}.{module}")
        setattr(child, mixin, type(mixin, (), {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)  # the library's own marks
        return importlib.import_module(f"{package.__name__}.{SUITE}")


# At import, because a mixin has to exist when its tests are collected.
suite = import_suite(transformers.__version__)
NUM_LATENTS = 5


class ModelTester:
    """The sizes and inputs of the library's `CausalLMModelTester`."""

    batch_size = 13
    seq_length = 7
    is_training = True
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2

    def __init__(self, config_class: type[transformers.PreTrainedConfig], **settings):
        self.config_class = config_class
        self.settings = settings

    def get_config(self) -> transformers.PreTrainedConfig:
        return self.config_class(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            hidden_act="gelu",
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **self.settings,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[transformers.PreTrainedConfig, dict[str, torch.Tensor]]:
        input_ids = suite.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids).tril()}


class CommonModelTest(suite.ModelTesterMixin):
    # It only asks whether the class also has the generation suite, which is in a file of its own here.
    test_generation_tester_mixin_inheritance = None

    def setUp(self):
        set_seed(0)
        suite.global_rng.seed(0)  # input ids


class LlamaModelTest(CommonModelTest, unittest.TestCase):
    """The measure. Not collected by itself: see `test_skips_no_test_that_llama_runs`."""

    __test__ = False
    all_model_classes = (LlamaModel, LlamaForCausalLM)

    def setUp(self):
        super().setUp()
        self.model_tester = ModelTester(LlamaConfig)


# The suite looks for the library's warnings of old names, which other tests here ignore.
@pytest.mark.filterwarnings("always::FutureWarning")
class LatentAttentionModelTest(CommonModelTest, unittest.TestCase):
    all_model_classes = (LatentAttentionModel, LatentAttentionForCausalLM)
    _torch_compile_train_cls = LatentAttentionForCausalLM
    is_causal = True

    def setUp(self):
        super().setUp()
        # Chunks of 4: a sequence of 7 tokens has a complete one, which the latents take in, and a part of one. The
        # first layer has latents, not the second as by default: the suite reads `attentions[0]`.
        self.model_tester = ModelTester(
            LatentAttentionConfig,
            num_latents=NUM_LATENTS,
            chunk_size=4,
            layer_pattern=["both", "local"],
            is_causal=self.is_causal,
        )
        # Attentions are what each token reads from the latents, (B, H, T, M): there are M keys, not T.
        self.model_tester.key_length = NUM_LATENTS
        # The suite asks these tables which class is the base model and which takes labels; they list what is part of
        # the library.
        for table, model_class in (
            (modeling_auto.MODEL_MAPPING_NAMES, LatentAttentionModel),
            (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, LatentAttentionForCausalLM),
        ):
            patch = mock.patch.dict(table, {LatentAttentionConfig.model_type: model_class.__name__})
            patch.start()
            self.addCleanup(patch.stop)

    def test_retain_grad_hidden_states_attentions(self):
        # Attentions are computed in the chunk layout and handed out in the order of tokens. What is handed out is a
        # copy, which the output does not depend on; so only hidden states are asked for a gradient of the output ...
        with mock.patch.object(type(self), "has_attentions", False):
            super().test_retain_grad_hidden_states_attentions()

    def test_attentions_carry_gradients(self):
        # ... and of attentions, that a loss on them trains the model.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = LatentAttentionModel._from_config(config, attn_implementation="eager").to(suite.torch_device)
        attentions = model(**inputs, output_attentions=True).attentions
        self.assertEqual(attentions[1].shape[-1], 0)
        attentions[0].square().sum().backward()
        self.assertGreater(model.embed_tokens.weight.grad.abs().max(), 0)
        self.assertGreater(model.layers[0].latent_attention.latents.grad.abs().max(), 0)

    def test_recorded_outputs_are_in_the_order_of_tokens(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = LatentAttentionModel._from_config(config, attn_implementation="eager").to(suite.torch_device).eval()
        input_ids, record = inputs["input_ids"], {"output_hidden_states": True, "output_attentions": True}
        padded, mask = (torch.nn.functional.pad(ids, (2, 0)) for ids in (input_ids, torch.ones_like(input_ids)))
        alone, beside = model(input_ids, **record), model(padded, attention_mask=mask, **record)
        self.assertEqual([len(alone.hidden_states), len(alone.attentions)], [3, 2])
        for name, time in (("hidden_states", 1), ("attentions", 2)):
            for expected, actual in zip(alone[name], beside[name], strict=True):
                if expected is None:  # attentions of the layer without latents
                    self.assertIsNone(actual)
                    continue
                torch.testing.assert_close(actual.narrow(time, 2, 7), expected, atol=1e-5, rtol=1e-5)


class BidirectionalModelTest(LatentAttentionModelTest):
    all_model_classes = (LatentAttentionModel,)
    is_causal = False


def skipped_tests(test_class: type[unittest.TestCase], model_name: str) -> set[str]:
    """Names of the tests and subtests that are skipped, without the model's name."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(test_class).run(result)
    return {
        test.id().removeprefix(f"{__name__}.{test_class.__name__}.").replace(model_name, "")
        for test, _ in result.skipped
    }


@pytest.mark.filterwarnings("ignore")  # of Llama on some versions
def test_skips_no_test_that_llama_runs():
    extra = skipped_tests(LatentAttentionModelTest, "LatentAttention") - skipped_tests(LlamaModelTest, "Llama")
    # Positions never exceed the window, so there is nothing to scale, and the config refuses these ways to do it.
    assert extra == {
        "test_model_rope_scaling_frequencies",
        "test_model_rope_scaling_from_config_0_linear",
        "test_model_rope_scaling_from_config_1_dynamic",
        "test_model_rope_scaling_from_config_2_yarn",
    }
