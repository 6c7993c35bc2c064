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
From a checkpoint to a Hub repository. `hub_upload.py` makes a `Request` (request.py), has the folder looked at
(checkpoint.py), and runs the four steps, each in the file of its name: assemble.py, verify.py, show.py, upload.py.
Assembling takes a model (model.py) and a card (card.py); reader.py is what verifying runs in a process of its own.
"""
