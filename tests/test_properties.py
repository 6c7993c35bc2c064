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
"""A few random histories of caches, the same each time; deep_properties.py has many, and others each time."""

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from cache_machine import CacheMachine


def test_a_cache_stands_for_the_texts_of_its_rows_whatever_is_done_to_it():
    few = settings(
        CacheMachine.TestCase.settings, max_examples=80, stateful_step_count=12, derandomize=True, database=None
    )
    run_state_machine_as_test(CacheMachine, settings=few)
