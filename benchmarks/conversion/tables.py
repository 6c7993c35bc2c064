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
"""The tables and the figure of results/conversion_*.json: `python -m benchmarks.conversion.tables`."""

from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import record, report
from benchmarks.speed.targets import Target

from .recall import KINDS


PAGE = Path(__file__).parents[2] / "docs" / "conversion.md"
# Names of the models that targets compare.
LLAMA, SINKS, LATENTS = "the Llama", "window and sinks", "with latents, after stage 2"
TRAINED_SINKS = f"{SINKS}, after stage 2 on as many tokens"
FROM = 1024  # where the losses of the targets begin: from this token to the next edge
# Of nats per token, by model.
TARGETS = (
    Target("window and sinks, not trained, behind the Llama", lambda nats: nats[SINKS] - nats[LLAMA], "≤", 0.2),
    Target("the same with chunks of 256", lambda nats: nats[f"{SINKS}, chunks of 256"] - nats[LLAMA], "≤", 0.06),
    Target("with latents, after stage 2, behind the Llama", lambda nats: nats[LATENTS] - nats[LLAMA], "≤", 0.06),
    Target("the same, ahead of window and sinks", lambda nats: nats[TRAINED_SINKS] - nats[LATENTS], "≥", 0.03),
)


def loss_table(result: dict) -> str:
    """Nats per token, by position."""
    edges = result["form"]["edges"]
    head = ["nats per token"] + [f"{start:,}–{stop:,}" for start, stop in zip(edges, edges[1:], strict=False)]
    return report.markdown(
        [head] + [[name, *(f"{x:.3f}" for x in of["loss"])] for name, of in result["models"].items()]
    )


def target_table(result: dict) -> str:
    """Differences of losses beside what they shall be, where the positions that the targets name were measured."""
    edges = result["form"]["edges"]
    if FROM not in edges:
        return ""
    column = edges.index(FROM)
    nats = {name: of["loss"][column] for name, of in result["models"].items()}
    head = [f"nats per token, {FROM:,}–{edges[column + 1]:,}", "target", "value", ""]
    return report.markdown([head, *(target.row(nats) for target in TARGETS)], align="llrl")


def recall_table(result: dict) -> str:
    """Share of right answers, and nats per token of the answer."""
    columns = [(kind, str(length)) for kind in KINDS for length in result["form"]["lengths"]]
    head = ["right answers (nats per token)"] + [f"{kind}, {int(length):,}" for kind, length in columns]
    rows = []
    for name, of in result["models"].items():
        cells = [of["recall"][kind][length] for kind, length in columns]
        rows.append([name, *(f"{cell['right']:.2f} ({cell['nats']:.2f})" for cell in cells)])
    return report.markdown([head, *rows])


def caption(result: dict) -> str:
    form, environments = result["form"], [of["environment"] for of in result["models"].values()]
    environment, revisions = environments[-1], [each["revision"] for each in environments]
    tokens = {stage: steps * form["rows_per_step"] * form["block_size"] for stage, steps in form["steps"].items()}
    return (
        f"Chunks of {form['chunk_size']} tokens, latents in one of every {form['latent_every']} layers; "
        f"{tokens['attention'] / 1e6:.2f} million tokens in stage 1, {tokens['logits'] / 1e6:.2f} million in stage 2; "
        f"{form['documents']} held-out documents. {environment['device']}, torch {environment['torch']}, transformers "
        f"{environment['transformers']}, {environment['date']}, {record.code_at(revisions)}.\n"
    )


def plot(result: dict, figure: Figure) -> None:
    """How far each model's loss is behind the Llama's, against position."""
    edges, models = result["form"]["edges"], result["models"]
    axes = figure.subplots()
    for name, of in models.items():
        behind = [loss - of_llama for loss, of_llama in zip(of["loss"], models[LLAMA]["loss"], strict=True)]
        axes.plot(edges[1:], behind, "o-", label=name, markersize=4)
    axes.set(xlabel="tokens read, up to", ylabel="nats per token behind the Llama", xscale="log")
    axes.set_yscale("symlog", linthresh=0.3)  # the window without sinks is several times as far behind as all others
    axes.set_xticks(edges[1:], [f"{edge:,}" for edge in edges[1:]])
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=2)


def measured() -> str:
    """The name of the result that the page shows: of the full form, where that has been measured."""
    return "conversion_full" if record.read("conversion_full") else "conversion_reduced"


def render(result: dict | None) -> str:
    """What the page shows."""
    if result is None:
        return "Not measured yet: `make convert` writes it, in an hour on two CPU cores.\n"
    figure = f"![How far behind the Llama, by position](../benchmarks/results/{measured()}.svg)\n"
    return f"{figure}\n{caption(result)}\n{target_table(result)}\n{loss_table(result)}\n{recall_table(result)}"


def main(name: str | None = None) -> None:
    """Print the tables, and draw the figure; the tables of what the page shows go into the page, too."""
    name = name or measured()
    result = record.read(name)
    print(render(result))
    if result is not None:
        report.draw(partial(plot, result), record.RESULTS / f"{name}.svg", size=(9, 5))
    if name == measured():
        page = report.fill_in(PAGE.read_text(encoding="utf-8"), "conversion", render(result))
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
