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
"""
Loads an export as a reader would, in a process of its own, without this project.

    python reader.py EXPORT REFERENCE         # a whole model
    python reader.py EXPORT REFERENCE BASE    # an adapter, and the folder of its base
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module


TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATED_TOKENS = 20


def load_as_a_reader(export: str, reference: str, base: str | None = None) -> None:
    """Load the export, compare its logits with those in the file `reference`, and generate. Whatever fails, raises."""
    # Installed here or not, an import of the package must fail as it does for a reader.
    sys.modules["modeling_latent"] = None
    expected = load_file(reference)
    if Path(export, "config.json").is_file():
        config = AutoConfig.from_pretrained(export, trust_remote_code=True)
        for class_reference in config.auto_map.values():
            get_class_from_dynamic_module(class_reference, export)
        AutoModel.from_pretrained(export, trust_remote_code=True)
    model = load_model(export, base)
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
    difference = ((logits - expected["logits"]).float().norm() / expected["logits"].float().norm()).item()
    # Not `>`: a NaN has to fail.
    if not difference <= expected["tolerance"]:
        raise ValueError(f"the export's logits differ from the checkpoint's, relative error {difference:.1e}")
    print(f"verified    logits of the export and the checkpoint agree, relative error {difference:.1e}")
    print(f"generated   {generate(export, model, expected['input_ids'])!r}")


def load_model(export: str, base: str | None) -> torch.nn.Module:
    """Load a model as its card says: a whole one from the export, an adapter on its base."""
    model = AutoModelForCausalLM.from_pretrained(base or export, trust_remote_code=True)
    if base is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, export)


def generate(export: str, model: torch.nn.Module, input_ids: torch.Tensor) -> str | list[int]:
    """Generate text with a pipeline, which needs a tokenizer, or token ids if the export has none."""
    length = {"min_new_tokens": GENERATED_TOKENS, "max_new_tokens": GENERATED_TOKENS}
    if not Path(export, TOKENIZER_CONFIG).is_file():
        return model.generate(input_ids, **length)[0, input_ids.shape[1] :].tolist()
    whole = Path(export, "config.json").is_file()
    generator = pipeline("text-generation", export if whole else model, tokenizer=export, trust_remote_code=True)
    # The tokenizer itself makes the prompt from ids, so that it is not empty, whatever the vocabulary is.
    prompt = generator.tokenizer.decode(input_ids[0], skip_special_tokens=True)
    return generator(prompt, return_full_text=False, **length)[0]["generated_text"]


if __name__ == "__main__":
    load_as_a_reader(*sys.argv[1:])
