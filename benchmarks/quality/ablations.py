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
"""What each part of latent attention is worth: recall and language modelling without it, and the time of a step.

    python -m benchmarks.quality.ablations                           # reduced, for two CPU cores: the parts
    python -m benchmarks.quality.ablations --form levers             # what else might help, as small
    python -m benchmarks.quality.ablations --form full --minutes 9   # one GPU; again until it is finished

One part differs from the base in each row; the base is as the ready-made configurations. A start changes only how
weights are drawn (`models.redraw`).
"""

from . import figures, language_model, mqar
from .changes import CHANGES
from .training import Job
from .units import parse_arguments, sweep, write_table


VARIANTS = {
    "base": {},
    "a quarter of the latents": {"num_latents": 1 / 4},
    "twice the latents": {"num_latents": 2},
    "four times the latents": {"num_latents": 4},
    "chunks half as long": {"chunk_size": 1 / 2},
    "chunks twice as long": {"chunk_size": 2},
    "no local attention": {"local_attention": False},
    "no convolution": {"conv_kernel_size": 0, "mlp_conv_kernel_size": 0},
    "no convolution before the MLP": {"mlp_conv_kernel_size": 0},
    "no convolution before the memory": {"conv_kernel_size": 0},
    "convolutions of 2 tokens": {"conv_kernel_size": 2, "mlp_conv_kernel_size": 2},
    "start: content at 0.02": {"start": "small_content"},
    "start: branches as large as in GPT-2": {"start": "large_branches"},
    "start: refinement as large as compression": {"start": "large_refinement"},
    "start: smaller convolution before the memory": {"start": "small_memory_conv"},
    "start: larger convolution before the MLP": {"start": "large_mlp_conv"},
    "start: all at 0.02, as in transformers": {"start": "library"},
    "latents learn 10 times as fast": {"latents_rate": 10.0},
    **{change: {"change": change} for change in CHANGES},
}
# Two forms of one size: what the parts are worth, and what else might help. The rest takes long or is in NOTES.md.
PARTS = ("base", "a quarter of the latents", "chunks twice as long", "no local attention")
PARTS += ("no refinement", "latents in every second layer", "local attention in the own chunk only")
LEFT_OUT = ("twice the latents", "four times the latents", "chunks half as long", "no convolution")
LEFT_OUT += ("start: content at 0.02", "start: branches as large as in GPT-2")
LEVERS = ("base", *(variant for variant in VARIANTS if variant not in PARTS + LEFT_OUT))
TASKS = {"mqar": mqar, "language_model": language_model}
REDUCED = {
    "mqar": {**mqar.FORMS["reduced"], "vocab_size": 64, "examples": 8_192, "batch_size": 32},
    "mqar_base": {"num_latents": 16, "chunk_size": 8},
    "language_model": {**language_model.FORMS["reduced"], "layers": 2, "steps": 100},
    "language_model_base": {"num_latents": 16, "chunk_size": 32},
}
FORMS = {
    "full": {
        "mqar": {**mqar.FORMS["full"], "lengths_and_pairs": [(128, 8)], "widths": [64], "learning_rates": (2.2e-3,)},
        "mqar_base": {"num_latents": 16, "chunk_size": 8},
        "language_model": {**language_model.FORMS["full"], "layers": 6, "steps": 1_500, "learning_rates": (1e-3,)},
        "language_model_base": {"num_latents": 128, "chunk_size": 128},
        "variants": list(VARIANTS),
    },
    "reduced": {**REDUCED, "variants": PARTS},
    "levers": {**REDUCED, "variants": LEVERS},
    "smoke": {
        "mqar": mqar.FORMS["smoke"],
        "mqar_base": {"num_latents": 4, "chunk_size": 8},
        "language_model": language_model.FORMS["smoke"],
        "language_model_base": {"num_latents": 4, "chunk_size": 8},
        "variants": ["base", "no refinement"],
    },
}


def settings_of(variant: str, base: dict) -> dict:
    """The base with one part changed. Numbers of latents and chunk sizes in `VARIANTS` are multiples of the base's."""
    changed = VARIANTS[variant]
    sizes = {name: int(size * changed.get(name, 1)) for name, size in base.items()}
    return {**{name: value for name, value in changed.items() if name not in base}, **sizes}


def points(form: dict, task: str) -> list[dict]:
    """Every variant has the base's shape, not its number of parameters, which is in the result."""
    if task == "mqar":
        (length, pairs), (width,) = form["mqar"]["lengths_and_pairs"][0], form["mqar"]["widths"]
        recipe = {"length": length, "pairs": pairs, "shape": mqar.shape_of(width, form["mqar"]["vocab_size"])}
    else:
        recipe = {"shape": language_model.base_shape(form[task])}
    recipe = {**recipe, **TASKS[task].recipe_of(form[task]), "task": task, "model": "latents_and_window"}
    return [
        {**recipe, "variant": variant, "settings": settings_of(variant, form[f"{task}_base"])}
        for variant in form["variants"]
    ]


def run_unit(unit: dict, job: Job) -> dict | None:
    return TASKS[unit["task"]].run_unit(unit, job)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments("Ablations of latent attention", FORMS, argv)
    form, name = FORMS[args.form], f"quality_ablations_{args.form}"
    both = [
        sweep(name, points(form, task), form[task]["learning_rates"], module.score, run_unit, args)
        for task, module in TASKS.items()
    ]
    swept = {key: both[0][key] + both[1][key] for key in both[0]}
    file = write_table(name, "Ablations of latent attention", FORMS, swept, args)
    figures.draw(figures.ablations, file)


if __name__ == "__main__":
    main()
