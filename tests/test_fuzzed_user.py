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
"""What a user does, right and wrong: every call gives the right numbers, or refuses in a sentence."""

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from illegal_inputs import (
    mistakes_of_caches,
    mistakes_of_configurations,
    mistakes_of_forwards,
    mistakes_of_layers,
    mistakes_of_methods,
    what_is_wrong,
)
from user_machine import HEADS, UserMachine, head_model


def wrongly_answered(mistakes) -> list[str]:
    return [wrong for mistake in mistakes if (wrong := what_is_wrong(mistake))]


def test_mistakes_in_a_configuration_are_refused(tmp_path):
    assert wrongly_answered(mistakes_of_configurations(tmp_path)) == []


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_mistakes_in_the_arguments_of_a_forward_are_refused(head):
    assert wrongly_answered(mistakes_of_forwards(head_model(head))) == []


@pytest.mark.parametrize("mistakes", [mistakes_of_layers, mistakes_of_caches, mistakes_of_methods])
def test_mistakes_with_layers_caches_and_methods_are_refused(mistakes):
    assert wrongly_answered(mistakes()) == []


def test_a_user_gets_right_numbers_whatever_came_before():
    few = settings(
        UserMachine.TestCase.settings, max_examples=50, stateful_step_count=12, derandomize=True, database=None
    )
    run_state_machine_as_test(UserMachine, settings=few)
