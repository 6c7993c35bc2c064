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
Train a causal language model on text, from scratch or from a checkpoint.

    python examples/train.py --output_dir out                                    # the Python standard library
    python examples/train.py --output_dir out --dataset my_texts/                # a folder of .txt or .parquet files
    python examples/train.py --output_dir out --dataset roneneldan/TinyStories   # a data set of the Hub
    python examples/train.py --output_dir out --model path/to/checkpoint         # fine-tune
    python examples/train.py --output_dir out --resume                           # go on after an interruption

Every flag of transformers' `TrainingArguments` works too, except those that change how an evaluation is put together.
A fresh model wants a larger `--learning_rate` than their default, which is made for fine-tuning: the Makefile has the
recipe of `make demo`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import is_zipfile

from datasets import Dataset, DatasetDict
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import sort_checkpoints

import modeling_latent  # noqa: F401 (registers the model with the Auto classes)
from bits_per_byte import BitsPerByte, compressed_bits_per_byte, count_bytes, token_losses
from documents import load_documents
from loss_curve import save_loss_curve


CONFIGURATION = Path(__file__).parents[1] / "configuration" / "latent-tiny"
END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
TOKENIZER_DOCUMENTS = 20_000  # to learn a vocabulary from, which needs no more and must fit into memory
# Bits per byte are counted once, over the predictions of the whole validation.
WHOLE_EVALUATION = {
    "prediction_loss_only": False,
    "eval_do_concat_batches": True,
    "batch_eval_metrics": False,
    "dataloader_drop_last": False,  # would be of the validation, too
}


@dataclass
class ExampleArguments:
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Text to train on, in a column `text`: a .parquet file, a folder of .txt files, each a document, "
            "or of .parquet files, or a data set of the Hub, as `owner/name` or `owner/name:configuration`. Default: "
            "the Python standard library."
        },
    )
    config: str | None = field(
        default=None,
        metadata={"help": "Folder with the config.json of a fresh model. Default: configuration/latent-tiny."},
    )
    model: str | None = field(
        default=None, metadata={"help": "Checkpoint to fine-tune, with its tokenizer, instead of a fresh model."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on from the newest checkpoint in --output_dir that is complete."}
    )
    block_size: int = field(default=512, metadata={"help": "Tokens per row."})

    def __post_init__(self):
        if self.model and self.config:
            raise ValueError(
                f"--model {self.model} comes with a configuration of its own, so --config {self.config} would have no "
                "effect: leave one of them out."
            )
        if self.block_size < 2:
            raise ValueError(f"--block_size is {self.block_size} but must be at least 2: a token and its successor.")


def check_evaluation(training_args: TrainingArguments) -> None:
    for name, needed in WHOLE_EVALUATION.items():
        if getattr(training_args, name) != needed:
            raise ValueError(
                f"--{name} is {not needed} but must be {needed}: bits per byte are counted over the predictions of "
                "the whole validation. Leave it out."
            )


def check_whole(file: Path) -> None:
    """Raise for a file that breaks off."""
    if file.suffix == ".json":
        json.loads(file.read_bytes())
    elif file.suffix == ".safetensors":
        with safe_open(file, "pt"):  # compares the file's length with what its header says
            pass
    elif file.suffix in (".pt", ".pth") and not is_zipfile(file):
        raise ValueError("the end is missing")


def fault_of(checkpoint: Path) -> str | None:
    """Say why training cannot go on from here: a `Trainer` that is killed leaves half a checkpoint, or none."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    files = {file.name: file for file in checkpoint.iterdir() if file.is_file()}
    for name, file in files.items():
        try:
            check_whole(file)
        except (OSError, ValueError, SafetensorError) as error:
            return f"{name}: {error}"
    index = files.get("model.safetensors.index.json")
    shards = ["model.safetensors"] if index is None else json.loads(index.read_bytes())["weight_map"].values()
    missing = {*shards, "trainer_state.json"} - files.keys()  # the latter is written last
    return f"without {' and '.join(sorted(missing))}" if missing else None


def newest_complete(training_args: TrainingArguments) -> str:
    """The newest checkpoint in --output_dir that is complete. Says which one it is, and which it skipped."""
    skipped = []
    for checkpoint in reversed(sort_checkpoints(training_args.output_dir)):
        fault = fault_of(Path(checkpoint))
        if fault is None:
            if training_args.process_index == 0:
                print("\n".join([*skipped, f"going on from {checkpoint}"]))
            return checkpoint
        skipped.append(f"skipping {checkpoint}, which is not complete ({fault})")
    raise ValueError(
        f"--resume found no complete checkpoint in --output_dir {training_args.output_dir}: leave --resume out to "
        "start from the beginning, and give --save_steps to save more often." + "".join(f"\n{it}" for it in skipped)
    )


def checkpoint_to_resume(args: ExampleArguments, training_args: TrainingArguments) -> str | None:
    given = training_args.resume_from_checkpoint
    if given is None:
        return newest_complete(training_args) if args.resume else None
    if args.resume:
        raise ValueError(f"--resume and --resume_from_checkpoint {given} are two checkpoints: leave one of them out.")
    fault = fault_of(Path(given))
    if fault is not None:
        raise ValueError(
            f"--resume_from_checkpoint is {given} but must be a complete checkpoint ({fault}): give the path of "
            "one, or --resume instead for the newest in --output_dir."
        )
    return given


def train_tokenizer(documents: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: no text is out of its vocabulary, and decoding gives back every byte."""
    special_tokens, alphabet = [END_OF_TEXT, PADDING], pre_tokenizers.ByteLevel.alphabet()
    least = len(special_tokens) + len(alphabet)
    if vocab_size < least:
        raise ValueError(
            f"`vocab_size` in the --config is {vocab_size} but must be at least {least}: {len(alphabet)} bytes and "
            f"{len(special_tokens)} special tokens."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special_tokens, initial_alphabet=alphabet)
    texts = documents.take(min(len(documents), TOKENIZER_DOCUMENTS))["text"]
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PADDING
    )


def load_model(args: ExampleArguments, checkpoint: str | None) -> PreTrainedModel:
    """A fresh one that resumes gets the checkpoint's weights from the `Trainer`."""
    if args.model:
        return AutoModelForCausalLM.from_pretrained(args.model)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.config or checkpoint or CONFIGURATION))


def load_tokenizer(source: str | None, documents: Dataset, vocab_size: int) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(source) if source else train_tokenizer(documents, vocab_size)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer of {source} has no `eos_token`, which ends every document: set one.")
    return tokenizer


def tokenize(documents: dict, tokenizer: PreTrainedTokenizerBase) -> dict:
    return {"input_ids": tokenizer(documents["text"], add_special_tokens=False)["input_ids"]}


def tokenized(documents: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    columns = documents["train"].column_names
    return documents.map(tokenize, batched=True, remove_columns=columns, fn_kwargs={"tokenizer": tokenizer})


def pack(documents: dict, eos_token_id: int, block_size: int) -> dict:
    """
    Rows of `block_size` tokens, a document's end after each document.

    A row begins with the last token of the row before, so that every token is predicted exactly once. The rest of the
    last row is not, and needs no mask: it comes after everything that is.
    """
    stream = [eos_token_id]
    for ids in documents["input_ids"]:
        stream += [*ids, eos_token_id]
    rows = [stream[start : start + block_size] for start in range(0, len(stream) - 1, block_size - 1)]
    rest = block_size - len(rows[-1])
    labels = [*rows[:-1], rows[-1] + [-100] * rest]
    return {"input_ids": [*rows[:-1], rows[-1] + [eos_token_id] * rest], "labels": labels}


def packed_rows(tokens: DatasetDict, tokenizer: PreTrainedTokenizerBase, block_size: int) -> DatasetDict:
    """Rows to train on, as `pack` makes them."""
    settings = {"eos_token_id": tokenizer.eos_token_id, "block_size": block_size}
    return tokens.map(pack, batched=True, remove_columns=["input_ids"], fn_kwargs=settings)


def train(trainer: Trainer, checkpoint: str | None) -> None:
    """Train to the end. From a checkpoint that is at the last step the `Trainer` itself would take one step more."""
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")) if checkpoint else TrainerState()
    if not 0 < trainer.args.max_steps <= state.global_step:
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    if trainer.is_world_process_zero():
        print(f"{checkpoint} has taken all --max_steps {trainer.args.max_steps}: nothing is left to train")
    trainer.model.load_state_dict(AutoModelForCausalLM.from_pretrained(checkpoint).state_dict())
    trainer.state = state


def report(metrics: dict[str, float], compressed: dict[str, float], output_dir: str) -> str:
    lines = ["bits per byte of the validation documents"]
    lines += [f"  {name + ', one by one':24}{bits:8.3f}" for name, bits in compressed.items()]
    lines += [
        f"  {'this model':24}{metrics['eval_bits_per_byte']:8.3f}",
        f"validation loss: {metrics['eval_nats_per_token']:.3f} nats per token",
        f"model, tokenizer and loss.png: {output_dir}",
    ]
    return "\n".join(lines)


def save_evaluation(metrics: dict[str, float], file: Path) -> None:
    """What a model card quotes: hub_upload.py takes numbers only from a file that this project's programs wrote."""
    names = {"eval_bits_per_byte": "validation bits per byte", "eval_nats_per_token": "validation nats per token"}
    results = {name: round(metrics[key], 4) for key, name in names.items()}
    file.write_text(json.dumps({"tool": "examples/train.py", "results": results}, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    args, training_args = HfArgumentParser((ExampleArguments, TrainingArguments)).parse_args_into_dataclasses(argv)
    check_evaluation(training_args)
    set_seed(training_args.seed)
    checkpoint = checkpoint_to_resume(args, training_args)
    documents = load_documents(args.dataset)
    model = load_model(args, checkpoint)
    tokenizer = load_tokenizer(checkpoint or args.model, documents["train"], model.config.vocab_size)

    tokens = tokenized(documents, tokenizer)
    rows = packed_rows(tokens, tokenizer, args.block_size)
    validation_texts = documents["validation"]["text"]
    predicted = sum(len(ids) + 1 for ids in tokens["validation"]["input_ids"])

    trainer = Trainer(
        model=model,
        args=training_args,
        data_collator=default_data_collator,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        compute_metrics=BitsPerByte(count_bytes(validation_texts) / predicted),
        preprocess_logits_for_metrics=token_losses,
    )
    train(trainer, checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        save_loss_curve(trainer.state.log_history, Path(training_args.output_dir) / "loss.png")
        save_evaluation(metrics, Path(training_args.output_dir) / "evaluation.json")
        print(report(metrics, compressed_bits_per_byte(validation_texts), training_args.output_dir))


if __name__ == "__main__":
    main()
