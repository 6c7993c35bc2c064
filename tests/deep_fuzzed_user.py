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
"""Many users at random, others each time. They take minutes, so `pytest tests` leaves them out."""

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from user_machine import UserMachine


def test_a_user_gets_right_numbers_whatever_came_before():
    """A failure is printed with the fewest calls that show it, to be made a test of its own."""
    many = settings(UserMachine.TestCase.settings, max_examples=1000, stateful_step_count=15, database=None)
    run_state_machine_as_test(UserMachine, settings=many)
