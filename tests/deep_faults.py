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
"""Twenty moments each at which a save, a training and an upload are killed, and bits of a header that are flipped."""

import dying
import figures
from test_faults import (
    check_flipped_bits,
    check_killed_save,
    check_killed_training,
    check_killed_upload,
    kill_at_change,
    kill_at_request,
    saved,  # noqa: F401 (fixtures)
    server,  # noqa: F401
    sharded,  # noqa: F401
    training,  # noqa: F401
    uploaded,  # noqa: F401
)


MOMENTS = 20
ALL = f"{MOMENTS} of {MOMENTS}"
FLIPS = 1_000


def test_saves_that_are_killed(saved, tmp_path):  # noqa: F811
    for index, (moment, limit) in enumerate(dying.moments(saved[2], MOMENTS)):
        check_killed_save(saved, moment, limit, tmp_path / str(index))
    figures.keep("`save_pretrained` over a folder, killed: the last complete state is there", ALL, ALL)


def test_trainings_that_are_killed(training, tmp_path):  # noqa: F811
    for index, (moment, limit) in enumerate(dying.moments(training[2], MOMENTS)):
        check_killed_training(training, moment, limit, tmp_path / str(index))
    figures.keep("`examples/train.py`, killed, then `--resume`: ends as an uninterrupted one does", ALL, ALL)


def test_uploads_that_are_killed(uploaded, tmp_path):  # noqa: F811
    *_, changes, requests = uploaded
    kills = [kill_at_request(number, tmp_path) for number in range(requests)]
    kills += [kill_at_change(*moment, tmp_path) for moment in dying.moments(changes, MOMENTS - requests)]
    assert len(kills) == MOMENTS
    for kill in kills:
        check_killed_upload(uploaded, kill, tmp_path)
    figures.keep("`hub_upload.py`, killed: all files are on the Hub, or none", ALL, ALL)


def test_flipped_bits(sharded, tmp_path):  # noqa: F811
    check_flipped_bits(sharded, FLIPS, tmp_path)
    figures.keep(
        "a flipped bit in the header of weights: noticed", f"{FLIPS:,} of {FLIPS:,}", f"{FLIPS:,} of {FLIPS:,}"
    )
