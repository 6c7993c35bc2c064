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
Distill a converted model from the model that it was converted from, so that its latents win back what its window lost.

    python examples/from_llama.py LLAMA --output_dir out/converted --chunk_size 64
    python examples/distill.py --stage attention --teacher LLAMA --model out/converted --output_dir out/stage1
    python examples/distill.py --stage logits --teacher LLAMA --model out/stage1 --output_dir out/stage2
    python examples/distill.py --stage logits --teacher LLAMA --model out/stage1 --output_dir out/stage2 --resume

The first stage teaches each layer's memory alone: on what the teacher's layer gets, local attention and memory shall
together give what the teacher's attention gives. All layers learn at once from one forward of the teacher, and nothing
but the memory is trained (attention transfer, as in LoLCATs, Zhang et al. 2024, arXiv:2410.10254). The second stage
trains the whole model to give the teacher's distribution of the next token (as RADLADS, Goldstein et al. 2025,
arXiv:2505.03005, does); what the text really says next plays no part, so that the model stays what it was.

Text comes as for train.py, and every flag of transformers' `TrainingArguments` works too. It runs in one process.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from documents import load_documents
from modeling_latent import LatentAttentionForCausalLM
from modeling_latent.chunk_layout import GridLayout, grid_layout
from modeling_latent.local_attention import WindowRotation, local_attention_mask, window_rotation
from train import checkpoint_to_resume, packed_rows, tokenized


LEARNING_RATES = {"attention": 3e-4, "logits": 1e-5}


@dataclass
class DistillationArguments(TrainingArguments):
    """The `Trainer`'s, and what depends on the stage."""

    stage: Literal["attention", "logits"] = field(
        default="attention", metadata={"help": "What is compared: outputs of attention, layer by layer, or logits."}
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "In stage `attention` that of the memory, 3e-4 if not given: it alone moves, and starts from the "
            "projections of the layer's own attention, which 1e-3 lost again in a trial. In stage `logits` that of "
            "all but the attentions, 1e-5 if not given: what the model knows is in there."
        },
    )
    attention_learning_rate: float = field(
        default=1e-4, metadata={"help": "Of both attentions in stage `logits`: they have to learn to share the work."}
    )
    window_dropout: float = field(
        default=0.0,
        metadata={
            "help": "In stage `logits`, the share of rows in which tokens see only their own chunk and the sinks, so "
            "that the memory is needed and not bypassed; it falls to 0 by the end of training, when the model is to "
            "be used with its whole window."
        },
    )

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATES[self.stage]
        if not 0 <= self.window_dropout <= 1:
            raise ValueError(f"--window_dropout is {self.window_dropout} but must be a share, from 0 to 1.")
        if self.window_dropout and self.stage == "attention":
            raise ValueError("--window_dropout is for --stage logits: leave it out, or go on to that stage.")
        super().__post_init__()
        if self.world_size > 1 or self.n_gpu > 1:
            raise ValueError(
                f"Distillation runs in one process on one device, but was started on {self.world_size} processes with "
                f"{self.n_gpu} GPUs each: set CUDA_VISIBLE_DEVICES to one of them."
            )


@dataclass
class ModelArguments:
    teacher: str = field(metadata={"help": "The model that was converted, unchanged: a folder, or an id of the Hub."})
    model: str = field(metadata={"help": "What from_llama.py or the first stage has written, with its tokenizer."})
    dataset: str | None = field(default=None, metadata={"help": "Text to train on, as for train.py."})
    resume: bool = field(
        default=False, metadata={"help": "Go on from the newest checkpoint in --output_dir that is complete."}
    )
    block_size: int = field(
        default=2048, metadata={"help": "Tokens per row, many chunks: the memory learns what lies behind the window."}
    )
    validation_rows: int = field(
        default=16, metadata={"help": "Rows of the validation to measure the distance in: each costs as in training."}
    )


class DistillationTrainer(Trainer):
    """The `Trainer`, whose loss is a distance from a teacher."""

    loss_is_scaled_for_ga = False  # the distance is a mean over the batch

    def __init__(self, teacher: PreTrainedModel, model: LatentAttentionForCausalLM, **kwargs):
        super().__init__(model=model, **kwargs)
        self.model_accepts_loss_kwargs = False  # nothing is summed that a count of labels would have to divide
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        with self.accelerator.autocast():
            distance = self.distance(self.accelerator.unwrap_model(model), inputs)
        return (distance, {}) if return_outputs else distance

    def distance(self, model: LatentAttentionForCausalLM, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Give the attentions a learning rate of their own where all else is trained, too."""
        if self.optimizer is None:
            trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
            attention = [weight for name, weight in trained if "attention" in name]
            others = [weight for name, weight in trained if "attention" not in name]
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rate = self.args.attention_learning_rate if others else self.args.learning_rate
            groups = [{"params": attention, "lr": rate}, {"params": others}]
            self.optimizer = optimizer_class([group for group in groups if group["params"]], **settings)
        return self.optimizer


def teacher_attention(teacher: PreTrainedModel, input_ids: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """For each layer of the teacher what it gets, and what its attention adds to that, `(B, T, D)` both."""
    attended = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda module, args, outputs: attended.append(outputs[0]))
        for layer in teacher.model.layers
    ]
    try:
        with torch.no_grad():
            states = teacher.model(input_ids, use_cache=False, output_hidden_states=True).hidden_states
    finally:
        for hook in hooks:
            hook.remove()
    return zip(states, attended)  # noqa: B905 (the last of the states, behind the last layer, has no attention)


def unexplained(
    layer: nn.Module,
    states: torch.Tensor,
    attended: torch.Tensor,
    layout: GridLayout,
    rotation: WindowRotation,
    mask: torch.Tensor,
) -> torch.Tensor:
    """
    Of what the teacher's attention gives and the window does not, the share that the memory does not give either: the
    mean squared error, divided by that of the window alone. So all layers count alike, however large their outputs.

    Args:
        layer: of the student, with both attentions.
        states, attended: what the teacher's layer gets, and what its attention adds, `(B, T, D)`.
        layout, rotation, mask: of the student's grid.
    """
    states = layout.to_slots(states.to(layer.latent_attention.latents.dtype))  # (B, N, C, D)
    with torch.no_grad():
        local, _, _ = layer.local_attention(layer.local_norm(states), layout, rotation, mask)
        missing = attended - layout.to_tokens(local)
    given, _ = layer.latent_attention(states + local, layout)
    error = layout.to_tokens(given) - missing  # (B, T, D)
    return error.square().mean() / missing.square().mean()


class AttentionTrainer(DistillationTrainer):
    """Stage 1: the memory of every layer beside the teacher's attention of that layer, on the teacher's inputs."""

    def __init__(self, teacher: PreTrainedModel, model: LatentAttentionForCausalLM, **kwargs):
        for name, weight in model.named_parameters():
            weight.requires_grad_("latent_attention" in name)
        super().__init__(teacher, model, **kwargs)

    def distance(self, model: LatentAttentionForCausalLM, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        input_ids, config = inputs["input_ids"], model.config
        layout = grid_layout(input_ids.shape, config.chunk_size, input_ids.device)
        like = model.model.embed_tokens.weight
        rotation, mask = window_rotation(config, layout, like), local_attention_mask(config, layout, like.dtype)
        layers = zip(model.model.layers, teacher_attention(self.teacher, input_ids), strict=True)
        # Only the memory's own numbers are kept for the backward, and with --gradient_checkpointing not even those.
        shares = [
            checkpoint(unexplained, layer, *seen, layout, rotation, mask, use_reentrant=False)
            if model.model.layers[0].gradient_checkpointing
            else unexplained(layer, *seen, layout, rotation, mask)
            for layer, seen in layers
            if layer.kind == "both"
        ]
        return torch.stack(shares).mean()


def kl_divergence(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Of the teacher's distribution of the next token from the student's, in nats, `(B, T)` of `(B, T, V)`."""
    with torch.no_grad():
        teacher_log_probabilities = teacher_logits.float().log_softmax(-1)
        probabilities = teacher_log_probabilities.exp()
        entropy = -(probabilities * teacher_log_probabilities).sum(-1)
    cross_entropy = -(probabilities * logits.float().log_softmax(-1)).sum(-1)
    return cross_entropy - entropy


class LogitsTrainer(DistillationTrainer):
    """Stage 2: the whole model, by the KL divergence to the teacher's logits, in nats per token."""

    def __init__(self, teacher: PreTrainedModel, model: LatentAttentionForCausalLM, **kwargs):
        super().__init__(teacher, model, **kwargs)
        self.cut_rows: torch.Tensor | None = None  # (B,), which of the batch see only their own chunk
        for layer in model.model.layers:
            layer.register_forward_pre_hook(self.cut_window, with_kwargs=True)

    def cut_window(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Hide the chunk before the own one in some rows, whose memory has to tell what it says."""
        mask, config = kwargs["attention_mask"], layer.config  # (B N, 1, C, S + 2C), which is added to scores
        if self.cut_rows is not None:
            rows = self.cut_rows.repeat_interleave(mask.shape[0] // len(self.cut_rows))
            before = torch.arange(mask.shape[-1], device=mask.device) - config.num_sink_tokens
            before = (before >= 0) & (before < config.chunk_size)
            hidden = rows[:, None, None, None] & before
            kwargs["attention_mask"] = mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
        return args, kwargs

    def draw_cut_rows(self, rows: int, device: torch.device) -> torch.Tensor | None:
        share = self.args.window_dropout * (1 - self.state.global_step / max(self.state.max_steps, 1))
        return torch.rand(rows, device=device) < share if self.model.training and share > 0 else None

    def distance(self, model: LatentAttentionForCausalLM, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        input_ids = inputs["input_ids"]
        self.cut_rows = self.draw_cut_rows(len(input_ids), input_ids.device)
        with torch.no_grad():
            teacher_logits = self.teacher(input_ids, use_cache=False).logits
        divergence = kl_divergence(model(input_ids, use_cache=False).logits, teacher_logits)
        counted = inputs["labels"][:, 1:] != -100  # the padding of the last row comes after its text
        return divergence[:, :-1][counted].mean()


TRAINERS = {"attention": AttentionTrainer, "logits": LogitsTrainer}


def check_models(teacher: PreTrainedModel, model: PreTrainedModel, args: ModelArguments, stage: str) -> None:
    """Raise for a student that this teacher, this stage or these rows can teach nothing."""
    if not isinstance(model, LatentAttentionForCausalLM):
        raise ValueError(f"--model is a {type(model).__name__}: give it what from_llama.py has written.")
    for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
        ours, theirs = getattr(model.config, name), getattr(teacher.config, name)
        if ours != theirs:
            raise ValueError(f"`{name}` of --model is {ours}, and of --teacher {theirs}: it wasn't converted from it.")
    if stage == "attention" and "both" not in model.config.layer_kinds:
        raise ValueError(
            f"--stage attention trains latents beside local attention, and --model, of `layer_pattern` "
            f"{model.config.layer_pattern}, has no such layer: go on to --stage logits."
        )
    window = 2 * model.config.chunk_size
    if args.block_size <= window:
        raise ValueError(
            f"--block_size is {args.block_size} but must be greater than the window of {window} tokens: up to there "
            "the converted model gives what its teacher gives."
        )


def main(argv: list[str] | None = None) -> None:
    args, training_args = HfArgumentParser((ModelArguments, DistillationArguments)).parse_args_into_dataclasses(argv)
    set_seed(training_args.seed)
    resumed = checkpoint_to_resume(args, training_args)
    # Nothing of the teacher is trained, so it needs no weights in float32 where bfloat16 is good enough to compute in.
    teacher_dtype = torch.bfloat16 if training_args.bf16 else torch.float32
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=teacher_dtype)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    check_models(teacher, model, args, training_args.stage)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = packed_rows(tokenized(load_documents(args.dataset), tokenizer), tokenizer, args.block_size)
    trainer = TRAINERS[training_args.stage](
        teacher,
        model,
        args=training_args,
        data_collator=default_data_collator,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"].shuffle(seed=0).take(min(args.validation_rows, len(rows["validation"]))),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resumed)
    print(f"validation: {trainer.evaluate()['eval_loss']:.4f}")
    trainer.save_model()
    print(f"model and tokenizer: {training_args.output_dir}")


if __name__ == "__main__":
    main()
