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
"""The code of docs/export.md runs, and leaves the files that it names: an export takes a minute."""

from test_docs import EXPORT, run_snippets, workplace  # noqa: F401 (a fixture)
from test_export import can_run_exports


@can_run_exports
def test_the_page_on_exports_leaves_its_graphs(workplace):  # noqa: F811
    run_snippets(EXPORT)
    for name in ("prefill.onnx", "decode.onnx"):
        assert (workplace / "exported" / name).stat().st_size > 0
