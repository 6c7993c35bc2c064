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
"""The fourth step: one commit on the Hub, or none."""

import re
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from .assemble import exported_files
from .card import load_line
from .checkpoint import Checkpoint
from .errors import BadInput, Stop
from .reader import TOKENIZER_CONFIG
from .request import Request


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
# The same, if the upload has a tokenizer. If it has none, that of an earlier upload stays.
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


def read_token() -> str:
    """Read the token from the environment or the saved login."""
    token = huggingface_hub.get_token()
    if token is None:
        raise BadInput("no token: HF_TOKEN is not set and nobody is logged in; run `hf auth login` or set HF_TOKEN")
    if not re.fullmatch(r"[!-~]+", token):
        # The HTTP client would refuse it with an error that quotes it.
        raise BadInput("the token holds characters that no token has; check HF_TOKEN, or run `hf auth login`")
    return token


def upload(request: Request, checkpoint: Checkpoint, export: Path, token: str) -> None:
    """Upload the export, and say how to load exactly that."""
    api = HfApi(token=token)
    try:
        parent = with_retries(lambda: prepare_repository(api, request))
        commit = with_retries(lambda: commit_export(api, request, export, parent))
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # An HTTP error may quote the token. It is taken out of the message, and `from None` shows nothing else.
        raise Stop(explain(unwrap(error), request).replace(token, "***")) from None
    print(f"uploaded    {request.repo_id}, commit {commit.oid}")
    if commit.pr_url:
        print(f"review it   {commit.pr_url}")
    print(f"load it     {load_line(request.repo_id, commit.oid, checkpoint)}")


def explain(error: Exception, request: Request) -> str:
    """Say what to do about an error of the client, and quote it."""
    advice = "run this again later" if is_transient(error) else "correct what the client reports"
    if isinstance(error, HfHubHTTPError):
        advice = ADVICE.get(error.response.status_code, advice)
    advice = advice.format(repo_id=request.repo_id, branch=request.revision or "main")
    return f"upload failed: {advice}. The client reports: {type(error).__name__}: {error}"


def prepare_repository(api: HfApi, request: Request) -> str:
    """Make the repository if there is none; return the commit that the upload builds on."""
    repo_id = request.repo_id
    api.create_repo(repo_id, private=not request.public, exist_ok=True)
    info = api.model_info(repo_id, revision=request.revision)
    if not info.private and not request.public:
        raise BadInput(f"{repo_id} exists and is public; give --public, or make it private in its settings first")
    if info.private and request.public:
        print(f"note        {repo_id} exists and stays private; that is changed in its settings")
    return info.sha


def commit_export(api: HfApi, request: Request, export: Path, parent: str) -> huggingface_hub.CommitInfo:
    """
    Make one commit or none. `upload_folder` does not promise that: where hf_xet is installed, it may split an upload
    into several commits, of which only the first names its parent.

    A retry looks at the head again. If the commit was made and only its answer was lost, no file differs, and the
    client returns that commit instead of making another. (A pull request is not the head: it may be opened twice.)
    """
    files = exported_files(export)
    remote = api.list_repo_files(request.repo_id, revision=request.revision)
    patterns = STALE_PATTERNS + (STALE_TOKENIZER_PATTERNS if TOKENIZER_CONFIG in files else ())
    stale = [name for name in remote if name not in files and any(is_stale(name, pattern) for pattern in patterns)]
    return api.create_commit(
        request.repo_id,
        [CommitOperationDelete(name) for name in stale] + [CommitOperationAdd(name, export / name) for name in files],
        commit_message=request.commit_message or "Upload with hub_upload.py",
        revision=request.revision,
        create_pr=request.create_pr,
        parent_commit=parent,
    )


def is_stale(name: str, pattern: str) -> bool:
    """Whether the name matches, at the top level only, which is where `from_pretrained` looks."""
    return "/" not in name and fnmatch(name, pattern)


def unwrap(error: Exception) -> Exception:
    """Return the reason why a shard did not arrive, which the client hides behind a RuntimeError."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error


def is_transient(error: Exception) -> bool:
    """Whether it may go away by itself: a server's error, a timeout or a broken connection."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, HTTPError)


def with_retries(call: Callable[[], T]) -> T:
    """
    Make a call again if it fails for a reason that may go away. The client itself does that for the transfer of files,
    but neither for making a repository nor for the commit.
    """
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
