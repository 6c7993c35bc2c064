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
Train on rows of many tokens, each of which several processes share (context parallel).

    torchrun --nproc_per_node 4 examples/train_long.py --output_dir out/long --cp_size 4
    accelerate launch --num_processes 4 examples/train_long.py --output_dir out/long --cp_size 2

Neighbouring processes share a row, --cp_size of them; with more processes there are groups of them, each with rows of
its own (data parallel). The text, --model and --config are as in train.py; so are transformers' `TrainingArguments`.

The `Trainer` does not know that rows are shared. Its own way, a `ParallelismConfig(cp_size=...)` among its arguments
or in `accelerate launch --parallelism_config_cp_size`, is for models whose every layer is full attention: accelerate
replaces that one operation, and refuses models with other layers. So the mesh of such a `ParallelismConfig` goes to
the model, and the `Trainer` takes the processes for data parallel ones, of which each group gets the same rows. What
it then does is right: a loss is the same on all processes of a group, and the mean of their gradients is its gradient.
"""

from dataclasses import dataclass, field

from accelerate import ParallelismConfig
from datasets import Dataset
from transformers import HfArgumentParser, Trainer, TrainingArguments, default_data_collator, set_seed

import modeling_latent  # noqa: F401 (registers the model with the Auto classes)
from documents import load_documents
from train import ExampleArguments, checkpoint_to_resume, load_model, load_tokenizer, packed_rows, tokenized


@dataclass
class LongArguments(ExampleArguments):
    block_size: int = field(default=65_536, metadata={"help": "Tokens per row."})
    cp_size: int = field(default=1, metadata={"help": "Processes that share each row."})

    def groups(self, training_args: TrainingArguments) -> int:
        """How many groups of processes there are that share rows."""
        groups, left = divmod(training_args.world_size, max(self.cp_size, 1))
        if self.cp_size < 1 or groups < 1 or left:
            raise ValueError(
                f"--cp_size is {self.cp_size} but must divide the number of processes, {training_args.world_size}: "
                "start as many by `torchrun --nproc_per_node` or `accelerate launch --num_processes`."
            )
        return groups


def check_order(training_args: TrainingArguments) -> None:
    """Reject what would deal out rows in another way than `rows_of_groups` counts on."""
    if training_args.train_sampling_strategy != "sequential":
        raise ValueError(
            f"--train_sampling_strategy is {training_args.train_sampling_strategy} but must be sequential: the rows "
            "are shuffled once, before they are dealt out to processes that share them. Leave it out."
        )
    if training_args.accelerator_config.split_batches or training_args.accelerator_config.dispatch_batches:
        raise ValueError(
            "--accelerator_config has `split_batches` or `dispatch_batches`, with which processes that share a row "
            "would get different ones. Leave them out."
        )
    if training_args.parallelism_config is not None:
        raise ValueError(
            "--parallelism_config is for models whose every layer is full attention: give --cp_size instead."
        )


def rows_of_groups(rows: Dataset, batch_size: int, groups: int, cp_size: int) -> Dataset:
    """
    Repeat every batch for the processes of a group, which the `Trainer` deals out to processes in turn. Rows that do
    not fill a batch of every group are left out.
    """
    taken = len(rows) // (batch_size * groups) * batch_size * groups
    if taken == 0:
        raise ValueError(
            f"--dataset gives {len(rows)} rows of --block_size tokens, but {groups} groups of processes with a batch "
            f"of {batch_size} need at least {batch_size * groups}. Take shorter rows, or more text."
        )
    batches = [range(start, start + batch_size) for start in range(0, taken, batch_size)]
    return rows.select([row for batch in batches for _ in range(cp_size) for row in batch])


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((LongArguments, TrainingArguments))
    parser.set_defaults(train_sampling_strategy="sequential", prediction_loss_only=True)
    args, training_args = parser.parse_args_into_dataclasses(argv)
    check_order(training_args)
    groups = args.groups(training_args)
    set_seed(training_args.seed)
    checkpoint = checkpoint_to_resume(args, training_args)
    documents = load_documents(args.dataset)
    model = load_model(args, checkpoint)
    tokenizer = load_tokenizer(checkpoint or args.model, documents["train"], model.config.vocab_size)
    if args.cp_size > 1:
        # A dimension of one is left out, so that a single group has a mesh of `cp` alone.
        parallelism = ParallelismConfig(dp_shard_size=groups, cp_size=args.cp_size)
        model.enable_context_parallel(parallelism.get_device_mesh(training_args.device.type))

    with training_args.main_process_first():  # the others read what it has written
        rows = packed_rows(tokenized(documents, tokenizer), tokenizer, args.block_size)
    train_size, eval_size = training_args.per_device_train_batch_size, training_args.per_device_eval_batch_size
    trainer = Trainer(
        model=model,
        args=training_args,
        data_collator=default_data_collator,
        train_dataset=rows_of_groups(rows["train"].shuffle(training_args.seed), train_size, groups, args.cp_size),
        eval_dataset=rows_of_groups(rows["validation"], eval_size, groups, args.cp_size),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"validation loss: {metrics['eval_loss']:.3f} nats per token")
        print(f"model and tokenizer: {training_args.output_dir}")


if __name__ == "__main__":
    main()
