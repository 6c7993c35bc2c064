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
r"""
Serve a checkpoint over HTTP in the form that OpenAI's clients speak, with transformers' own server.

    python examples/serve.py CHECKPOINT --port 8000

Takes every flag of `transformers serve`, which by itself finds only the library's own classes. Needs the extra
`serving`: `pip install -e '.[serving]'`. A client names the checkpoint as it was named here:

    curl localhost:8000/v1/chat/completions -H "Content-Type: application/json" \
        -d '{"model": "CHECKPOINT", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}'
"""

import transformers
import typer
from transformers.cli.serve import Serve

from modeling_latent import LatentAttentionForCausalLM


def main(argv: list[str] | None = None) -> None:
    # The server takes a checkpoint's class from the library, by the name that config.json gives.
    transformers.LatentAttentionForCausalLM = LatentAttentionForCausalLM
    app = typer.Typer(add_completion=False)
    app.command()(Serve)
    app(argv)


if __name__ == "__main__":
    main()
