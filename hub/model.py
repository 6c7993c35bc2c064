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
"""The checkpoint's model, and the logits that the export has to give."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import modeling_latent  # noqa: F401 (registers the classes, so that nothing in the checkpoint's folder is run)

from .checkpoint import Checkpoint
from .errors import BadInput


def load_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """Load the checkpoint as this package's classes, in the dtype that it was saved in; an adapter on its base."""
    folder = checkpoint.model_folder
    model, report = load(AutoModelForCausalLM, folder, trust_remote_code=False, output_loading_info=True)
    # The library fills gaps with random weights and drops what has no place, both with no more than a warning.
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            names = ", ".join(sorted(map(str, report[problem]))[:3])
            raise BadInput(
                f"{folder} does not fit its config, {problem}: {names}; upload a whole causal LM checkpoint"
            )
    return add_adapter(model, checkpoint.folder) if checkpoint.base else model


def load(library_class: type, *sources, **kwargs):
    """Call `from_pretrained`, whose many kinds of errors all mean that the last of `sources` is not in order."""
    try:
        return library_class.from_pretrained(*sources, **kwargs)
    except Exception as error:
        raise BadInput(f"{sources[-1]} does not load ({type(error).__name__}: {error}); restore the files") from error


def add_adapter(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Put the adapter on its base model, without merging it."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise BadInput(f"{folder} is a PEFT adapter and peft is not installed; run `pip install peft`") from error
    return load(PeftModel, model, folder).eval()


def merge_adapter(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Add the adapter to the weights of its base model, which is returned."""
    if not hasattr(model, "merge_and_unload"):
        raise BadInput(
            f"--merge is given but peft_type in {folder / 'adapter_config.json'} is a kind that adds nothing to the "
            "weights, so there is nothing to merge; upload the adapter without --merge"
        )
    return model.merge_and_unload()


def reference_logits(model: torch.nn.Module, merge: bool) -> dict[str, torch.Tensor]:
    """
    Compute what the export has to give: `logits` for `input_ids`, up to `tolerance` as a relative error. The text is
    longer than two chunks, so that the latents have something to say.
    """
    config = model.config
    input_ids = (torch.arange(2 * config.chunk_size + 1) * 37 + 11)[None] % config.vocab_size  # (1, T)
    with torch.no_grad():
        logits = model(input_ids).logits  # (1, T, vocab_size)
    # Merging rounds every weight once more; anything else must not change the result.
    merged = 1e-4 if model.dtype == torch.float32 else 3e-2
    tolerance = torch.tensor(merged if merge else 1e-6)
    return {"input_ids": input_ids, "logits": logits.contiguous(), "tolerance": tolerance}
