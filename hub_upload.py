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
From a checkpoint to a Hub repository that anyone can load.

    python hub_upload.py CHECKPOINT --repo-id NAME/MODEL --dry-run    # look first; no network
    python hub_upload.py CHECKPOINT --repo-id NAME/MODEL              # private, unless --public

1. assemble  A clean export in a temporary folder. Only what is on the list goes in: weights, config, code, tokenizer,
             generation config, LICENSE, card, and what --include names.
2. verify    A fresh process loads the export as a reader would, compares logits with the checkpoint's, generates.
3. show      Every file with its size, and with --dry-run the card.
4. upload    One commit, on top of the commit that was the head when the upload began, or none at all.
"""

import argparse
import glob
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import huggingface_hub
import torch
import transformers
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module


T = TypeVar("T")
PROJECT = Path(__file__).resolve().parent
MODEL_TYPE = "latent_attention"
ARCHITECTURES = ["LatentAttentionForCausalLM"]
DEFAULT_LICENSE = "apache-2.0"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER_CONFIG = "tokenizer_config.json"
CARD_TEMPLATE = PROJECT / "hub_card_template.md"
CARD_FIELDS = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "num_latents", "chunk_size", "conv_kernel_size", "local_attention", "mlp_conv_kernel_size"),
    *("norm_type", "vocab_size"),
)
CARD_CONTEXTS = (4_096, 32_768, 131_072)
TRAINING_FACTS = {
    **{"global_step": "optimizer steps", "epoch": "epochs", "train_batch_size": "batch size per device"},
    **{"num_input_tokens_seen": "tokens", "total_flos": "floating-point operations", "best_metric": "best metric"},
}
# What the .gitattributes of a new Hub repository sends to large file storage, and the size from which all files go.
LFS_SUFFIXES = (".bin", ".gz", ".model", ".msgpack", ".npy", ".npz", ".onnx", ".parquet", ".pt", ".pth")
LFS_SUFFIXES += (".safetensors", ".tar", ".tgz", ".zip", ".zst")
LFS_SIZE = 10 * 1024 * 1024
# Top-level files of an earlier upload that would be loaded in place of, or together with, what is uploaded now.
STALE_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*",
    "*.py",
    "config.json",
    "adapter_*.json",
)
# From a pickle to safetensors, in the same folder. A model may hold tied weights, which only its class can sort out.
CONVERSIONS = {
    "model": "import modeling_latent; from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained('{0}').save_pretrained('{0}')",
    "adapter_model": "import torch, safetensors.torch as s; s.save_file("
    "torch.load('{0}/adapter_model.bin', weights_only=True), '{0}/adapter_model.safetensors', {{'format': 'pt'}})",
}
GENERATED_TOKENS = 20
RETRY_PAUSES_S = (2, 8, 30)
REQUEST_TIMEOUT_S = 120
ADVICE = {
    401: "the Hub does not accept the token; log in again with `hf auth login`, or set HF_TOKEN to a valid one",
    403: "the token may not write there; use one with write access to {repo_id}, ask its owner for access where the "
    "repository is gated, or offer the upload with --create-pr",
    404: "{repo_id} or its branch {branch} does not exist, or the token may not see it; check both names, and make a "
    "new branch with `hf repos branch create {repo_id} {branch}`",
    409: "something else is changing {repo_id} at this moment; wait until it is done and run this again",
    412: "somebody committed to {repo_id} while this upload ran, and nothing was overwritten; look at that commit, "
    "then run this again",
}


class Stop(Exception):
    """Ends the command with one line that says why."""

    exit_code = 1


class BadInput(Stop):
    """Something that the user gave cannot be used."""

    exit_code = 2


@dataclass
class Checkpoint:
    """A folder that was found fit to upload; an adapter also has the base model that it was trained on."""

    folder: Path
    base: str | None = None
    base_folder: Path | None = None
    merge: bool = False

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is what gets uploaded."""
        return self.base is not None and not self.merge


class Parser(argparse.ArgumentParser):
    """Errors on one line."""

    def error(self, message: str):
        # argparse repeats what it does not know, and a token must not reach a terminal or a log.
        raise BadInput(re.sub(r"--token\b.*", "--token; set HF_TOKEN or log in with `hf auth login` instead", message))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(
        prog="hub_upload.py",
        description="Uploads a latent attention checkpoint so that anyone can load it with trust_remote_code=True.",
        epilog="The token is read from HF_TOKEN or the saved login (`hf auth login`).",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a folder of Trainer or save_pretrained, or a PEFT adapter folder")
    add("--repo-id", required=True, metavar="NAME/MODEL", help="the repository, made if it does not exist")
    add("--revision", metavar="BRANCH", help="an existing branch to commit to (default: main)")
    add("--create-pr", action="store_true", help="open a pull request against main instead of committing to it")
    add("--commit-message", metavar="TEXT", help="the commit's title")
    add("--public", action="store_true", help="make a new repository public; without this it is private")
    add("--max-shard-size", type=shard_size, default="5GB", metavar="SIZE", help="of a weight file (default: 5GB)")
    add("--include", action="append", default=[], metavar="PATTERN", help="also upload these files of CHECKPOINT")
    add("--merge", action="store_true", help="merge an adapter into its base and upload the whole model")
    add("--license", metavar="ID", help="for the card (default: the card's own, else apache-2.0)")
    add("--language", action="append", default=[], metavar="CODE", help="for the card; may be repeated")
    add("--dataset", action="append", default=[], metavar="ID", help="for the card; may be repeated")
    add("--dry-run", action="store_true", help="assemble, verify and show; no network")
    add("--skip-verify", action="store_true", help="do not load the export before the upload")
    return parser.parse_args(argv)


def shard_size(text: str) -> str:
    """Checks a size such as 5GB: what all of the library's functions that it goes to can read."""
    if not re.fullmatch(r"0*[1-9]\d*[KMGT]B", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write a whole number and KB, MB, GB or TB, as in 500MB or 5GB"
        )
    return text


def check_arguments(args: argparse.Namespace):
    """Refuses what the rest of the command could only fail on later."""
    try:
        huggingface_hub.utils.validate_repo_id(args.repo_id)
        is_repo_id = args.repo_id.count("/") == 1
    except HFValidationError:
        is_repo_id = False
    if not is_repo_id:
        raise BadInput(
            f"--repo-id is {args.repo_id!r}, which is not a repository; write NAME/MODEL in letters, digits, '-', "
            "'_' and '.', where NAME is your user or organization"
        )
    if args.revision and args.create_pr:
        raise BadInput(
            f"--revision is {args.revision!r} and --create-pr is given, but the Hub opens pull requests against main "
            "only; give one of the two"
        )


def read_token() -> str:
    """The token of the environment or the saved login."""
    token = huggingface_hub.get_token()
    if token is None:
        raise BadInput("no token: HF_TOKEN is not set and nobody is logged in; run `hf auth login` or set HF_TOKEN")
    if not re.fullmatch(r"[!-~]+", token):
        # The HTTP client would refuse it with an error that quotes it.
        raise BadInput("the token holds characters that no token has; check HF_TOKEN, or run `hf auth login`")
    return token


def check_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """Finds out what the folder is and whether it is whole, without loading it."""
    folder = args.checkpoint
    if (folder / "adapter_config.json").is_file():
        checkpoint = find_base(args)
    elif not (folder / "config.json").is_file():
        raise BadInput(
            f"CHECKPOINT is {str(folder)!r}, a folder with a config.json (or adapter_config.json) is needed"
        )
    elif args.merge:
        raise BadInput(f"--merge is given but {folder} holds no adapter_config.json; leave --merge out")
    else:
        checkpoint = Checkpoint(folder)
    model_folder = checkpoint.base_folder or folder
    check_config(model_folder / "config.json")
    check_weights(model_folder, "model")
    return checkpoint


def check_config(path: Path):
    """Only language models are uploaded: the export and its card are made for one."""
    config = read_json(path)
    for field, allowed in (("model_type", [MODEL_TYPE]), ("architectures", [ARCHITECTURES, None])):
        if config.get(field) not in allowed:
            raise BadInput(f"{field} in {path} is {config.get(field)!r}, only {allowed[0]!r} is allowed")
    if not config.get("is_causal", True):
        raise BadInput(f"is_causal in {path} is False, only True is allowed: the model could not generate")


def find_base(args: argparse.Namespace) -> Checkpoint:
    """An adapter's base: from a local folder only to be merged, else from the local cache, so without network."""
    folder, config_file = args.checkpoint, args.checkpoint / "adapter_config.json"
    config = read_json(config_file)
    base, task_type = config.get("base_model_name_or_path"), config.get("task_type")
    if task_type not in ("CAUSAL_LM", None):
        raise BadInput(
            f"task_type in {config_file} is {task_type!r}, only 'CAUSAL_LM' is allowed: of a head for another task "
            "nothing would be left in the upload"
        )
    check_weights(folder, "adapter_model")
    if base and Path(base).is_dir():
        if args.merge:
            return Checkpoint(folder, base, Path(base), merge=True)
        raise BadInput(
            f"base_model_name_or_path in {config_file} is the folder {base!r}, which no reader has; upload the base "
            "first and put its repository id there, or give --merge"
        )
    try:
        snapshot = huggingface_hub.snapshot_download(base or "", local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise BadInput(
            f"base_model_name_or_path in {config_file} is {base!r}, neither a folder nor a model in the local cache; "
            f"run `hf download {base}` first"
        ) from error
    return Checkpoint(folder, base, Path(snapshot), args.merge)


def read_json(path: Path) -> dict:
    """A JSON file that must hold an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds a {type(content).__name__}, not a JSON object; restore the file")
    return content


def check_weights(folder: Path, name: str):
    """Refuses pickles, and safetensors files that are missing or cut short."""
    index = folder / f"{name}.safetensors.index.json"
    shards = {f"{name}.safetensors"}
    if index.is_file():
        shards = set(read_json(index).get("weight_map", {}).values())
    elif not (folder / f"{name}.safetensors").is_file() and (pickles := sorted(folder.glob("*model*.bin"))):
        raise BadInput(
            f"{pickles[0]} is a pickle, which can run code when it is loaded; convert it first: "
            f'python -c "{CONVERSIONS[name].format(folder)}"'
        )
    for shard in sorted(shards):
        check_shard(folder / shard)


def check_shard(path: Path):
    """A safetensors file states its size in its header, so that reading the header shows a file that was cut."""
    if not path.is_file():
        raise BadInput(f"{path} is missing; copy the whole checkpoint again")
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise BadInput(f"{path} is cut short or damaged ({error}); copy the checkpoint again") from error


def included_files(args: argparse.Namespace) -> list[str]:
    """The files that --include names. As in a shell, a wildcard does not match a name that begins with a dot."""
    files = []
    for pattern in args.include:
        matches = glob.glob(pattern, root_dir=args.checkpoint, recursive=True)
        inside = not Path(pattern).is_absolute() and ".." not in Path(pattern).parts
        found = [name for name in matches if inside and (args.checkpoint / name).is_file()]
        if not found:
            raise BadInput(f"--include is {pattern!r}, which matches no file inside {args.checkpoint}; check the name")
        files += found
    return files


def load_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """The checkpoint as this package's classes, in the dtype that it was saved in."""
    # Registers the classes, so that nothing in the checkpoint's folder is run here. The reader's process, which runs
    # this file too, must not have it: hence not at the top.
    import modeling_latent  # noqa: F401

    folder = checkpoint.base_folder or checkpoint.folder
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
    """`from_pretrained`, whose many kinds of errors all mean that the last of `sources` is not in order."""
    try:
        return library_class.from_pretrained(*sources, **kwargs)
    except Exception as error:
        raise BadInput(f"{sources[-1]} does not load ({type(error).__name__}: {error}); restore the files") from error


def add_adapter(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The base model with the adapter on it, not merged."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise BadInput(f"{folder} is a PEFT adapter and peft is not installed; run `pip install peft`") from error
    return load(PeftModel, model, folder).eval()


def merge_adapter(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The base model with the adapter added to its weights."""
    if not hasattr(model, "merge_and_unload"):
        raise BadInput(
            f"--merge is given but peft_type in {folder / 'adapter_config.json'} is a kind that adds nothing to the "
            "weights, so there is nothing to merge; upload the adapter without --merge"
        )
    return model.merge_and_unload()


def reference_logits(model: torch.nn.Module, merge: bool) -> dict:
    """What the export has to give: logits over more than two chunks, so that the latents have something to say."""
    config = model.config
    input_ids = (torch.arange(2 * config.chunk_size + 1) * 37 + 11)[None] % config.vocab_size  # (1, T)
    with torch.no_grad():
        logits = model(input_ids).logits
    # Merging rounds every weight once more; anything else must not change the result.
    merged = 1e-4 if model.dtype == torch.float32 else 3e-2
    return {"input_ids": input_ids, "logits": logits, "tolerance": merged if merge else 1e-6}


def assemble(args: argparse.Namespace, checkpoint: Checkpoint, export: Path) -> dict:
    """Fills the empty folder `export`; returns the logits that it must give."""
    extras = included_files(args)
    model = load_model(checkpoint)
    reference = reference_logits(model, args.merge)
    if checkpoint.is_adapter:
        for name in ADAPTER_FILES:
            shutil.copyfile(checkpoint.folder / name, export / name)
    else:
        model = merge_adapter(model, checkpoint.folder) if args.merge else model
        model.save_pretrained(export, max_shard_size=args.max_shard_size)
    folders = [checkpoint.folder] + ([checkpoint.base_folder] if args.merge else [])
    if tokenizer_folders := [folder for folder in folders if (folder / TOKENIZER_CONFIG).is_file()]:
        load(AutoTokenizer, tokenizer_folders[0], trust_remote_code=False).save_pretrained(export)
    card = make_card(args, checkpoint, model, has_tokenizer=bool(tokenizer_folders))
    card.save(export / "README.md")
    shutil.copyfile(find_license(args, card), export / "LICENSE")
    for name in extras:
        # The export's own files stay: the checkpoint's config.json may know nothing of the code beside it.
        if not (export / name).exists():
            (export / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(args.checkpoint / name, export / name)
    return reference


def find_license(args: argparse.Namespace, card: ModelCard) -> Path:
    """The checkpoint's own license file, or this project's where that is the license that the card names."""
    if (args.checkpoint / "LICENSE").is_file():
        return args.checkpoint / "LICENSE"
    if card.data.license != DEFAULT_LICENSE:
        raise BadInput(
            f"the license is {card.data.license!r} and {args.checkpoint} holds no LICENSE file; put its text "
            f"there (only for {DEFAULT_LICENSE!r} this project's own is used)"
        )
    return PROJECT / "LICENSE"


def make_card(
    args: argparse.Namespace, checkpoint: Checkpoint, model: torch.nn.Module, has_tokenizer: bool
) -> ModelCard:
    """The checkpoint's own card with its metadata completed, or one from the template."""
    data = ModelCardData(
        license=args.license or DEFAULT_LICENSE,
        library_name="peft" if checkpoint.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["custom_code", "latent-attention"],
        language=args.language or None,
        datasets=args.dataset or None,
        base_model=checkpoint.base if checkpoint.base and not Path(checkpoint.base).is_dir() else None,
    )
    path = args.checkpoint / "README.md"
    if path.is_file():
        return complete_card(path, data, args.license)
    facts = card_facts(args, checkpoint, model)
    return ModelCard.from_template(data, template_path=CARD_TEMPLATE, has_tokenizer=has_tokenizer, **facts)


def complete_card(path: Path, data: ModelCardData, license: str | None) -> ModelCard:
    """Lists are joined; of the rest, what the upload knows wins, but a license only if it was asked for."""
    try:
        card = ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(f"the metadata at the top of {path} is not valid ({error}); correct or remove it") from error
    data.license = license or card.data.license or data.license
    # Where an adapter was trained on a folder, PEFT writes that folder here. The Hub makes `base_model:` tags itself.
    card.data.pop("base_model")
    card.data.tags = [tag for tag in map(str, card.data.tags or []) if not tag.startswith("base_model:")]
    for name, value in data.to_dict().items():
        if isinstance(value, list):
            old = card.data.get(name) or []
            value = list(dict.fromkeys(([old] if isinstance(old, str) else old) + value))
        card.data[name] = value
    return card


def card_facts(args: argparse.Namespace, checkpoint: Checkpoint, model: torch.nn.Module) -> dict:
    """What the template says about this model, all of it read, none of it guessed."""
    config, dtype = model.config, model.dtype
    llama_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    versions = {"torch": torch, "transformers": transformers, "huggingface_hub": huggingface_hub}
    return {
        "title": args.repo_id.split("/")[1],
        "repo_id": args.repo_id,
        "base": checkpoint.base if checkpoint.is_adapter else None,
        "load_line": load_line(args.repo_id, "COMMIT_HASH", checkpoint),
        "configuration": {name: getattr(config, name) for name in CARD_FIELDS},
        "parameters": model.num_parameters(),
        "dtype": str(dtype).removeprefix("torch."),
        "cache": [(tokens, config.state_bytes(1, dtype), llama_token * tokens) for tokens in CARD_CONTEXTS],
        "training": training_facts(args.checkpoint),
        "evaluation": evaluation_facts(args.checkpoint),
        "verified": not args.skip_verify,
        "versions": {"Python": platform.python_version(), **{name: m.__version__ for name, m in versions.items()}},
    }


def load_line(repo_id: str, revision: str, checkpoint: Checkpoint) -> str:
    """The Python expression that loads exactly one commit; for an adapter, one commit of its base too."""
    line = 'AutoModelForCausalLM.from_pretrained("{}", revision="{}", trust_remote_code=True)'
    if not checkpoint.is_adapter:
        return line.format(repo_id, revision)
    base = line.format(checkpoint.base, checkpoint.base_folder.name)
    return f'PeftModel.from_pretrained({base}, "{repo_id}", revision="{revision}")'


def training_facts(folder: Path) -> dict:
    """From the Trainer's own record, where there is one."""
    path = folder / "trainer_state.json"
    state = read_json(path) if path.is_file() else {}
    history = state.get("log_history") or []
    facts = {name: state.get(key) for key, name in TRAINING_FACTS.items()}
    facts["last training loss"] = next((entry["loss"] for entry in reversed(history) if "loss" in entry), None)
    facts["last validation loss"] = next((e["eval_loss"] for e in reversed(history) if "eval_loss" in e), None)
    return {name: value for name, value in facts.items() if value}


def evaluation_facts(folder: Path) -> dict | None:
    """From `evaluation.json`, `{"tool": a script of this project, "results": {metric: number}}`."""
    path = folder / "evaluation.json"
    if not path.is_file():
        return None
    evaluation = read_json(path)
    tool, results = evaluation.get("tool"), evaluation.get("results")
    scripts = [
        path.relative_to(PROJECT).as_posix()
        for tools in ("benchmarks", "examples")
        for path in (PROJECT / tools).rglob("*.py")
    ]
    if tool not in scripts or not isinstance(results, dict):
        raise BadInput(
            f"tool in {path} is {tool!r}; the card shows only results that a script of this project wrote, as "
            '{"tool": "examples/NAME.py", "results": {...}}; remove the file, or write it with such a script'
        )
    return evaluation


def verify(export: Path, reference: Path, scratch: Path):
    """Loads the export in a process that has neither this package, nor the network, nor the token."""
    environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    environment |= {"HF_HOME": str(scratch), "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"}
    # An adapter's base is read from where `find_base` found it.
    environment["HF_HUB_CACHE"] = huggingface_hub.constants.HF_HUB_CACHE
    run = "import runpy, sys; runpy.run_path(sys.argv[1])['load_as_a_reader'](*sys.argv[2:])"
    command = [sys.executable, "-I", "-c", run, __file__, str(export), str(reference)]
    process = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    if process.returncode != 0:
        print(process.stderr, file=sys.stderr)
        reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise Stop(f"verification failed, nothing was uploaded: {reason}")
    print(process.stdout, end="")


def load_as_a_reader(export: str, reference: str):
    """Runs in the fresh process."""
    # Installed here or not, an import of the package must fail as it does for a reader.
    sys.modules["modeling_latent"] = None
    expected = torch.load(reference)
    if Path(export, "config.json").is_file():
        config = AutoConfig.from_pretrained(export, trust_remote_code=True)
        for class_reference in config.auto_map.values():
            get_class_from_dynamic_module(class_reference, export)
        AutoModel.from_pretrained(export, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True)
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
    difference = ((logits - expected["logits"]).float().norm() / expected["logits"].float().norm()).item()
    # Not `>`: a NaN has to fail.
    if not difference <= expected["tolerance"]:
        raise ValueError(f"the export's logits differ from the checkpoint's, relative error {difference:.1e}")
    print(f"verified    logits of the export and the checkpoint agree, relative error {difference:.1e}")
    print(f"generated   {generate(export, model, expected['input_ids'])!r}")


def generate(export: str, model: torch.nn.Module, input_ids: torch.Tensor) -> str | list[int]:
    """Twenty tokens through a pipeline, or without a tokenizer, which a pipeline needs, as numbers."""
    length = {"min_new_tokens": GENERATED_TOKENS, "max_new_tokens": GENERATED_TOKENS}
    if not Path(export, TOKENIZER_CONFIG).is_file():
        return model.generate(input_ids, **length)[0, input_ids.shape[1] :].tolist()
    generator = pipeline("text-generation", model=export, trust_remote_code=True)
    # Text of the tokenizer's own making is never empty, whatever its vocabulary.
    prompt = generator.tokenizer.decode(input_ids[0], skip_special_tokens=True)
    return generator(prompt, return_full_text=False, **length)[0]["generated_text"]


def exported_files(export: Path) -> list[str]:
    """Paths in the repository."""
    return sorted(path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file())


def show(args: argparse.Namespace, export: Path):
    """Prints what goes where."""
    sizes = {name: (export / name).stat().st_size for name in exported_files(export)}
    print(f"repository  {args.repo_id}")
    print(f"revision    {'a new pull request against main' if args.create_pr else args.revision or 'main'}")
    print(f"visibility  {'public' if args.public else 'private'}")
    for name, size in sizes.items():
        kind = "LFS" if name.endswith(LFS_SUFFIXES) or size > LFS_SIZE else "regular"
        print(f"{size:>15,} bytes  {kind:<7}  {name}")
    print(f"{sum(sizes.values()):>15,} bytes  in {len(sizes)} files")
    if args.dry_run:
        print((export / "README.md").read_text(encoding="utf-8"))


def upload(args: argparse.Namespace, checkpoint: Checkpoint, export: Path, token: str):
    """Uploads, and says how to load exactly that."""
    api = HfApi(token=token)
    try:
        parent = with_retries(lambda: prepare_repository(api, args))
        commit = with_retries(lambda: commit_export(api, args, export, parent))
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # `from None` and one line: a traceback is no place for what an HTTP error may quote.
        raise Stop(explain(unwrap(error), args).replace(token, "***")) from None
    print(f"uploaded    {args.repo_id}, commit {commit.oid}")
    if commit.pr_url:
        print(f"review it   {commit.pr_url}")
    print(f"load it     {load_line(args.repo_id, commit.oid, checkpoint)}")


def explain(error: Exception, args: argparse.Namespace) -> str:
    """What to do about an error of the client, and the error."""
    advice = "run this again later" if is_transient(error) else "correct what the client reports"
    if isinstance(error, HfHubHTTPError):
        advice = ADVICE.get(error.response.status_code, advice)
    advice = advice.format(repo_id=args.repo_id, branch=args.revision or "main")
    return f"upload failed: {advice}. The client reports: {type(error).__name__}: {error}"


def prepare_repository(api: HfApi, args: argparse.Namespace) -> str:
    """Makes the repository if there is none; returns the commit that the upload builds on."""
    api.create_repo(args.repo_id, private=not args.public, exist_ok=True)
    info = api.model_info(args.repo_id, revision=args.revision)
    if not info.private and not args.public:
        raise BadInput(f"{args.repo_id} exists and is public; give --public, or make it private in its settings first")
    if info.private and args.public:
        print(f"note        {args.repo_id} exists and stays private; that is changed in its settings")
    return info.sha


def commit_export(api: HfApi, args: argparse.Namespace, export: Path, parent: str) -> huggingface_hub.CommitInfo:
    """
    One commit or none. Not `upload_folder`: where hf_xet is installed, that may split an upload into several commits,
    of which only the first names its parent.

    A retry looks at the head again. If the commit was made and only its answer was lost, no file differs, and the
    client returns that commit instead of making another. (A pull request is not the head: it may be opened twice.)
    """
    files = exported_files(export)
    remote = api.list_repo_files(args.repo_id, revision=args.revision)
    stale = [
        name for name in remote if name not in files and any(is_stale(name, pattern) for pattern in STALE_PATTERNS)
    ]
    return api.create_commit(
        args.repo_id,
        [CommitOperationDelete(name) for name in stale] + [CommitOperationAdd(name, export / name) for name in files],
        commit_message=args.commit_message or "Upload with hub_upload.py",
        revision=args.revision,
        create_pr=args.create_pr,
        parent_commit=parent,
    )


def is_stale(name: str, pattern: str) -> bool:
    """Only at the top level, where from_pretrained looks."""
    return "/" not in name and fnmatch(name, pattern)


def unwrap(error: Exception) -> Exception:
    """The client hides the reason why a shard did not arrive behind a RuntimeError."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error


def is_transient(error: Exception) -> bool:
    """Server errors, timeouts and broken connections."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, HTTPError)


def with_retries(call: Callable[[], T]) -> T:
    """The client itself retries the transfer of files, but neither the making of a repository nor the commit."""
    for pause in (*RETRY_PAUSES_S, None):
        # The client's default is to wait forever.
        huggingface_hub.get_session().timeout = REQUEST_TIMEOUT_S
        try:
            return call()
        except (HTTPError, RuntimeError) as error:
            if pause is None or not is_transient(unwrap(error)):
                raise
            print(f"retrying    in {pause} s, a request failed ({type(unwrap(error)).__name__})")
            time.sleep(pause)


def run(args: argparse.Namespace) -> int:
    """The four steps."""
    check_arguments(args)
    token = None if args.dry_run else read_token()
    checkpoint = check_checkpoint(args)
    with tempfile.TemporaryDirectory(prefix="hub_upload_") as folder:
        export, reference = Path(folder, "export"), Path(folder, "reference.pt")
        export.mkdir()
        torch.save(assemble(args, checkpoint, export), reference)
        if args.skip_verify:
            print("NOT VERIFIED: --skip-verify was given, nobody has loaded this export")
        else:
            verify(export, reference, Path(folder))
        show(args, export)
        if args.dry_run:
            return 1 if args.skip_verify else 0
        upload(args, checkpoint, export, token)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 for a failure, 2 for bad input."""
    try:
        return run(parse_arguments(argv))
    except Stop as stop:
        print(f"hub_upload.py: {' '.join(str(stop).split())}", file=sys.stderr)
        return stop.exit_code


if __name__ == "__main__":
    sys.exit(main())
