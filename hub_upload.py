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
import re
import sys
import tempfile
from pathlib import Path

from hub.assemble import assemble
from hub.checkpoint import inspect_checkpoint
from hub.errors import BadInput, Stop
from hub.request import Request, check_request
from hub.show import show
from hub.upload import read_token, upload
from hub.verify import verify


class Parser(argparse.ArgumentParser):
    """A parser whose errors are printed as all others of this command are, on one line."""

    def error(self, message: str):
        # argparse repeats what it does not know, and a token must not reach a terminal or a log.
        raise BadInput(re.sub(r"--token\b.*", "--token; set HF_TOKEN or log in with `hf auth login` instead", message))


def parse_arguments(argv: list[str] | None) -> Request:
    """Read the command line."""
    parser = Parser(
        prog="hub_upload.py",
        description="Uploads a latent attention checkpoint so that anyone can load it with trust_remote_code=True.",
        epilog="The token is read from HF_TOKEN or the saved login (`hf auth login`).",
        argument_default=argparse.SUPPRESS,  # so that the defaults are those of `Request`
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a folder of Trainer or save_pretrained, or a PEFT adapter folder")
    add("--repo-id", required=True, metavar="NAME/MODEL", help="the repository, made if it does not exist")
    add("--revision", metavar="BRANCH", help="an existing branch to commit to (default: main)")
    add("--create-pr", action="store_true", help="open a pull request against main instead of committing to it")
    add("--commit-message", metavar="TEXT", help="the commit's title")
    add("--public", action="store_true", help="make a new repository public; without this it is private")
    add("--max-shard-size", type=shard_size, metavar="SIZE", help="of a weight file (default: 5GB)")
    add("--include", action="append", metavar="PATTERN", help="also upload these files of CHECKPOINT")
    add("--merge", action="store_true", help="merge an adapter into its base and upload the whole model")
    add("--license", metavar="ID", help="for the card (default: the card's own, else apache-2.0)")
    add("--language", action="append", metavar="CODE", help="for the card; may be repeated")
    add("--dataset", action="append", metavar="ID", help="for the card; may be repeated")
    add("--dry-run", action="store_true", help="assemble, verify and show; no network")
    add("--skip-verify", action="store_true", help="do not load the export before the upload")
    return Request(**vars(parser.parse_args(argv)))


def shard_size(text: str) -> str:
    """Check a size such as 5GB; this form is one that every function of the library that it goes to can read."""
    if not re.fullmatch(r"0*[1-9]\d*[KMGT]B", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write a whole number and KB, MB, GB or TB, as in 500MB or 5GB"
        )
    return text


def run(request: Request) -> int:
    """Run the four steps; return the exit code."""
    check_request(request)
    token = None if request.dry_run else read_token()
    checkpoint = inspect_checkpoint(request)
    with tempfile.TemporaryDirectory(prefix="hub_upload_") as scratch:
        export = Path(scratch, "export")
        export.mkdir()
        reference = assemble(request, checkpoint, export)
        if request.skip_verify:
            print("NOT VERIFIED: --skip-verify was given, nobody has loaded this export")
        else:
            verify(export, reference, checkpoint, Path(scratch))
        show(request, export)
        if request.dry_run:
            return 1 if request.skip_verify else 0
        upload(request, checkpoint, export, token)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 for success, 1 for a failure, 2 for bad input."""
    try:
        return run(parse_arguments(argv))
    except Stop as stop:
        print(f"hub_upload.py: {' '.join(str(stop).split())}", file=sys.stderr)
        return stop.exit_code


if __name__ == "__main__":
    sys.exit(main())
