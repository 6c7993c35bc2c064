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
"""What a run of the command is asked for."""

from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from .errors import BadInput


@dataclass(frozen=True)
class Request:
    """One upload. A field has the name of its flag, and its default is that of the command line."""

    checkpoint: Path  # the folder to upload
    repo_id: str  # the repository, NAME/MODEL
    revision: str | None = None  # the branch to commit to; None stands for main
    create_pr: bool = False  # whether to open a pull request against main instead
    commit_message: str | None = None  # the commit's title; None stands for one that names the command
    public: bool = False  # whether everybody may see a repository that this upload makes
    max_shard_size: str | None = None  # the size up to which weights are one file, as in "500MB"; None stands for 5GB
    include: list[str] = field(default_factory=list)  # patterns of further files in the folder
    merge: bool = False  # whether to merge the folder's adapter into its base and upload the whole model
    license: str | None = None  # the license that the card names; None stands for the card's own, or apache-2.0
    language: list[str] = field(default_factory=list)  # languages that the card names
    dataset: list[str] = field(default_factory=list)  # datasets that the card names
    dry_run: bool = False  # whether to stop before the upload
    skip_verify: bool = False  # whether to upload what nobody has loaded


def check_request(request: Request) -> None:
    """Refuse what can be seen to be wrong before the folder is read."""
    try:
        huggingface_hub.utils.validate_repo_id(request.repo_id)
        is_repo_id = request.repo_id.count("/") == 1
    except HFValidationError:
        is_repo_id = False
    if not is_repo_id:
        raise BadInput(
            f"--repo-id is {request.repo_id!r}, which is not a repository; write NAME/MODEL in letters, digits, '-', "
            "'_' and '.', where NAME is your user or organization"
        )
    if request.revision and request.create_pr:
        raise BadInput(
            f"--revision is {request.revision!r} and --create-pr is given, but the Hub opens pull requests against "
            "main only; give one of the two"
        )
