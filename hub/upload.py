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
"""One commit on the Hub, or none."""

import argparse
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from .card import load_line
from .checkpoint import Checkpoint
from .errors import BadInput, Stop
from .export import exported_files
from .reader import TOKENIZER_CONFIG


T = TypeVar("T")
# Top-level files of an earlier upload that would be loaded in place of, or together with, what is uploaded now.
STALE_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*",
    "*.py",
    "config.json",
    "adapter_*.json",
)
# The same where the upload has a tokenizer. One without leaves that of an earlier upload in place.
STALE_TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
)
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
    patterns = STALE_PATTERNS + (STALE_TOKENIZER_PATTERNS if TOKENIZER_CONFIG in files else ())
    stale = [name for name in remote if name not in files and any(is_stale(name, pattern) for pattern in patterns)]
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
