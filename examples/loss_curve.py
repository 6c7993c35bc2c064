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
"""The loss curve of a training run as a picture."""

from pathlib import Path

from matplotlib.figure import Figure  # not pyplot, which may look for a screen


def save_loss_curve(log_history: list[dict], file: Path) -> None:
    """Training and validation loss against steps, from the `log_history` of a `TrainerState`."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for key, label, marker in (("loss", "training", ""), ("eval_nats_per_token", "validation", "o")):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        axes.plot([step for step, _ in points], [loss for _, loss in points], label=label, marker=marker)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
