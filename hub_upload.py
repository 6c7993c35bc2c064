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
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from safetensors.torch import save_file

from hub import reader
from hub.checkpoint import Checkpoint, check_checkpoint
from hub.errors import BadInput, Stop
from hub.export import assemble, exported_files
from hub.upload import upload


# What the .gitattributes of a new Hub repository sends to large file storage, and the size from which all files go.
LFS_SUFFIXES = (".bin", ".gz", ".model", ".msgpack", ".npy", ".npz", ".onnx", ".parquet", ".pt", ".pth")
LFS_SUFFIXES += (".safetensors", ".tar", ".tgz", ".zip", ".zst")
LFS_SIZE = 10 * 1024 * 1024


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
    add("--max-shard-size", type=shard_size, metavar="SIZE", help="of a weight file (default: 5GB)")
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


def verify(export: Path, reference: Path, checkpoint: Checkpoint, scratch: Path):
    """Loads the export in a process that has neither this package, nor the network, nor the token."""
    environment = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    environment |= {"HF_HOME": str(scratch), "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"}
    # An adapter's base is read from where `find_base` found it.
    environment["HF_HUB_CACHE"] = huggingface_hub.constants.HF_HUB_CACHE
    base = [str(checkpoint.base_folder)] if checkpoint.is_adapter else []
    command = [sys.executable, "-I", reader.__file__, str(export), str(reference), *base]
    process = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    if process.returncode != 0:
        print(process.stderr, file=sys.stderr)
        reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise Stop(f"verification failed, nothing was uploaded: {reason}")
    print(process.stdout, end="")


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


def run(args: argparse.Namespace) -> int:
    """The four steps."""
    check_arguments(args)
    token = None if args.dry_run else read_token()
    checkpoint = check_checkpoint(args)
    with tempfile.TemporaryDirectory(prefix="hub_upload_") as folder:
        export, reference = Path(folder, "export"), Path(folder, "reference.safetensors")
        export.mkdir()
        save_file(assemble(args, checkpoint, export), reference)
        if args.skip_verify:
            print("NOT VERIFIED: --skip-verify was given, nobody has loaded this export")
        else:
            verify(export, reference, checkpoint, Path(folder))
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
