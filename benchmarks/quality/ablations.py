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

    python -m benchmarks.quality.ablations                           # reduced, for two CPU cores
    python -m benchmarks.quality.ablations --form full --minutes 9   # one GPU; again until it is finished

One part differs from the base in each row. The base has latents in the first of every two layers; all rows have as
many parameters as latents in every layer beside feed-forward layers twice the model's width, so that what a part costs
is paid for.
"""

from . import figures, language_model, mqar
from .changes import CHANGES
from .models import count_parameters, matched_shape
from .training import Job
from .units import parse_arguments, sweep, write_table


BASE = {"layer_pattern": ["both", "local"]}
VARIANTS = {
    "base: both, local": {},
    "both": {"layer_pattern": ["both"]},
    "local, both": {"layer_pattern": ["local", "both"]},
    "local, both, both, local": {"layer_pattern": ["local", "both", "both", "local"]},
    "local, local, both": {"layer_pattern": ["local", "local", "both"]},
    "local, both, local, local": {"layer_pattern": ["local", "both", "local", "local"]},
    "both, local, local, local": {"layer_pattern": ["both", "local", "local", "local"]},
    "local, local, local, both": {"layer_pattern": ["local", "local", "local", "both"]},
    "local": {"layer_pattern": ["local"]},
    "1 sink": {"num_sink_tokens": 1},
    "4 sinks": {"num_sink_tokens": 4},
    **{change: {"change": change} for change in CHANGES},
}
FORMS = {
    "full": {
        "mqar": {**mqar.FORMS["full"], "lengths_and_pairs": [(128, 8)], "widths": [64], "learning_rates": (2.2e-3,)},
        "mqar_base": {"num_latents": 16, "chunk_size": 8},
        "language_model": {**language_model.FORMS["full"], "layers": 8, "steps": 1_500, "learning_rates": (1e-3,)},
        "language_model_base": {"num_latents": 128, "chunk_size": 128},
        "layers": 8,
        "variants": list(VARIANTS),
    },
    "reduced": {
        "mqar": {
            **mqar.FORMS["reduced"],
            "vocab_size": 64,
            "examples": 8_192,
            "batch_size": 32,
            "learning_rates": (3e-3,),
        },
        "mqar_base": {"num_latents": 16, "chunk_size": 8},
        "language_model": language_model.FORMS["reduced"],
        "language_model_base": {"num_latents": 32, "chunk_size": 32},
        "layers": 4,
        "variants": list(VARIANTS),
    },
    "smoke": {
        "mqar": mqar.FORMS["smoke"],
        "mqar_base": {"num_latents": 4, "chunk_size": 8},
        "language_model": language_model.FORMS["smoke"],
        "language_model_base": {"num_latents": 4, "chunk_size": 8},
        "layers": 2,
        "variants": ["base: both, local", "no refinement"],
    },
}
TASKS = {"language_model": language_model, "mqar": mqar}


def points(form: dict, task: str) -> list[dict]:
    base = form[f"{task}_base"]
    if task == "mqar":
        (length, pairs), (width,) = form["mqar"]["lengths_and_pairs"][0], form["mqar"]["widths"]
        recipe = {"length": length, "pairs": pairs}
        shape = mqar.shape_of(width, form["mqar"]["vocab_size"])
    else:
        recipe, shape = {}, language_model.base_shape(form[task])
    shape["num_hidden_layers"] = form["layers"]
    recipe = {**recipe, **TASKS[task].recipe_of(form[task]), "task": task, "model": "latents_and_window"}
    parameters = count_parameters("latents_in_every_layer", shape, base)
    rows = [(variant, {**base, **BASE, **VARIANTS[variant]}) for variant in form["variants"]]
    return [
        {
            **recipe,
            "variant": variant,
            "settings": settings,
            "shape": matched_shape("latents_and_window", shape, settings, parameters),
        }
        for variant, settings in rows
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
