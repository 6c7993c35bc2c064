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
Convert a model, distill it in stages, and measure after each what it has won back.

    python -m benchmarks.conversion                   # SmolLM2-135M, reduced to an hour of two CPU cores
    python -m benchmarks.conversion --minutes 60      # stop after so long; the same command goes on from there
    python -m benchmarks.conversion --form full       # about 5 million tokens: a day on two CPU cores
    python -m benchmarks.conversion --form tiny       # a rehearsal of a few steps

What is done is kept in --output_dir and not done again. Result, tables and figure are written anew after each model.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import modeling_latent  # noqa: F401 (registers the classes)
from benchmarks import record

from . import measure, tables
from .recall import KINDS
from .sources import save_smollm2, save_texts


EXAMPLES = Path(__file__).parents[2] / "examples"
# What two CPU cores do in less than an hour: 0.10 and 0.06 million tokens.
REDUCED = {
    "chunk_size": 64,
    "latent_every": 2,
    "block_size": 1024,
    "rows_per_step": 1,
    "steps": {"attention": 100, "logits": 60},
    "learning_rates": {"attention": 3e-4, "logits": 1e-5},
    "window_dropout": 0.3,
    "recall_documents": 600,  # about 0.6 of 6 million tokens
    "edges": [0, 128, 256, 512, 1024, 2048, 4096, 8191],
    "documents": 3,
    "lengths": [2000, 4000],
    "save_steps": 50,
}
FORMS = {
    "reduced": REDUCED,
    "full": {
        **REDUCED,
        "block_size": 2048,
        "rows_per_step": 2,
        "steps": {"attention": 400, "logits": 800},  # 1.6 and 3.3 million tokens
        "documents": 8,
        "lengths": [2000, 4000, 8000],
    },
    "tiny": {
        **REDUCED,
        "chunk_size": 16,
        "block_size": 128,
        "steps": {"attention": 2, "logits": 2},
        "recall_documents": 4,
        "edges": [0, 32, 64, 128],
        "documents": 2,
        "lengths": [100],
        "save_steps": 1,
    },
}


class OutOfTime(Exception):
    """The minutes are over. What is done is done."""


def start(script: str, arguments: list[str], seconds: float) -> None:
    """Run one of the `examples/` as a user would. Raises `OutOfTime` if it takes longer than these seconds."""
    try:
        command = [sys.executable, str(EXAMPLES / script), *arguments]
        subprocess.run(command, check=True, timeout=None if seconds == float("inf") else seconds)
    except subprocess.TimeoutExpired:
        raise OutOfTime from None


def run(script: str, flags: list, output: Path, deadline: float) -> None:
    """
    Run one of the `examples/` unless its `output` is there, or let it go on where it was stopped.

    Raises:
        `OutOfTime`: at the `deadline`, in seconds since the epoch.
    """
    if (output / "model.safetensors").is_file():
        return
    arguments = [*map(str, flags), "--output_dir", str(output)]
    if list(output.glob("checkpoint-*/trainer_state.json")):
        arguments.append("--resume")
    if time.time() >= deadline:
        raise OutOfTime
    start(script, arguments, deadline - time.time())


def distill(stage: str, model: Path, output: Path, steps: int, folder: Path, form: dict, deadline: float) -> None:
    flags = ["--stage", stage, "--model", model]
    flags += ["--teacher", folder / "llama", "--dataset", folder / "texts" / "train"]
    flags += ["--block_size", form["block_size"], "--max_steps", steps, "--per_device_train_batch_size", 1]
    flags += ["--gradient_accumulation_steps", form["rows_per_step"], "--learning_rate", form["learning_rates"][stage]]
    flags += ["--warmup_steps", steps // 10, "--lr_scheduler_type", "cosine", "--adam_beta2", 0.95, "--bf16"]
    flags += ["--save_steps", form["save_steps"], "--save_total_limit", 2, "--logging_steps", 10]
    flags += ["--report_to", "none", "--disable_tqdm", "true"]
    if not torch.cuda.is_available():
        flags.append("--use_cpu")
    if stage == "logits":
        flags += ["--window_dropout", form["window_dropout"]]
    run("distill.py", flags, output, deadline)


def convert(name: str, folder: Path, form: dict, deadline: float, **changed) -> Path:
    settings = {"chunk_size": form["chunk_size"], "latent_every": form["latent_every"], **changed}
    flags = [part for field, value in settings.items() for part in (f"--{field}", value)]
    run("from_llama.py", [folder / "llama", *flags], folder / name, deadline)
    return folder / name


def models(folder: Path, form: dict, deadline: float):
    """Make one model after another: the name that it has in the results, and its folder."""
    steps = form["steps"]
    yield tables.LLAMA, folder / "llama"
    yield "window", convert("window_alone", folder, form, deadline, latent_every=0, num_sink_tokens=0)
    window = convert("window", folder, form, deadline, latent_every=0)
    yield tables.SINKS, window
    longer = 4 * form["chunk_size"]
    yield (
        f"{tables.SINKS}, chunks of {longer}",
        convert("longer_window", folder, form, deadline, latent_every=0, chunk_size=longer),
    )
    distill(
        "attention",
        convert("memory", folder, form, deadline),
        folder / "stage1",
        steps["attention"],
        folder,
        form,
        deadline,
    )
    yield "with latents, after stage 1", folder / "stage1"
    distill("logits", folder / "stage1", folder / "stage2", steps["logits"], folder, form, deadline)
    yield tables.LATENTS, folder / "stage2"
    yield "the same with its latents left out", folder / "stage2"
    distill("logits", window, folder / "window_stage2", sum(steps.values()), folder, form, deadline)
    yield tables.TRAINED_SINKS, folder / "window_stage2"


def load(name: str, folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if "left out" in name:
        for parameter_name, weight in model.named_parameters():
            if parameter_name.endswith("latent_to_input.o_proj.weight"):
                torch.nn.init.zeros_(weight)
    return model


def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], form: dict) -> dict:
    edges, lengths = form["edges"], form["lengths"]
    longest = max(edges[-1], *lengths)
    documents = measure.long_documents(tokenizer, texts, longest, form["documents"])
    return {
        "environment": record.environment("cpu"),
        "parameters": model.num_parameters(),
        "loss": measure.loss_by_position(model, documents, edges),
        "recall": {
            kind: {
                str(length): measure.recall(model, list(measure.chats(tokenizer, documents, kind, length)))
                for length in lengths
            }
            for kind in KINDS
        },
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, default="reduced", help="how much is trained and measured")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--output_dir", type=Path, default=Path("out/conversion"), help="for models and texts")
    args = parser.parse_args(argv)
    form, folder, deadline = FORMS[args.form], args.output_dir / args.form, time.time() + 60 * args.minutes
    # Each asks for the file that is written last.
    if not (folder / "llama" / "tokenizer_config.json").exists():
        save_smollm2(folder / "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder / "llama")
    if not (folder / "texts" / "held_out.parquet").exists():
        save_texts(folder / "texts", tokenizer, form["recall_documents"])
    texts = Dataset.from_parquet(str(folder / "texts" / "held_out.parquet"))["text"]
    name = f"conversion_{args.form}"
    result = record.read(name) or {"form": form, "models": {}}
    try:
        for model_name, model_folder in models(folder, form, deadline):
            if model_name not in result["models"]:
                result["models"][model_name] = measured(load(model_name, model_folder), tokenizer, texts, form)
                record.write(name, result)
                tables.main(name)
    except OutOfTime:
        print("The minutes are over; the same command goes on from here.")


if __name__ == "__main__":
    main()
