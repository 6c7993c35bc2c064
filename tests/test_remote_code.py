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
"""A saved folder as its readers get it: in environments that hold torch and transformers, but not this package.

The environments are made once, under `.cache/venvs`, and used again until what goes into them changes.
"""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline
from transformers.dynamic_module_utils import get_relative_imports
from transformers.models.auto import modeling_auto

from common import PATTERNS, random_ids, tiny_model
from environments import ROOT, make_environment
from modeling_latent import LatentAttentionConfig, LatentAttentionForCausalLM, LatentAttentionModel


CODE = sorted(path for path in (ROOT / "modeling_latent").glob("*.py") if path.name != "__init__.py")
VERSIONS = ("5.17.0", "5.24.0")
PROMPT = "w05 w09 w02 w17 w04 w08"


def constraints_for(version: str) -> str:
    """constraints.txt where it is for this version of transformers. An older one has other needs, except for torch."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    if any(line.strip() == f"transformers=={version}" for line in lines):
        return "".join(lines)
    return "".join(line for line in lines if line.startswith("torch=="))


@pytest.fixture(scope="session", params=VERSIONS)
def environment(request) -> tuple[Path, str]:
    """The interpreter of an environment with this version of transformers, and the version."""
    folder, version = ROOT / ".cache" / "venvs" / request.param, request.param
    return make_environment(folder, constraints_for(version), ["torch"], [f"transformers=={version}"]), version


def run_alone(python: Path, function, *arguments, scratch: Path) -> dict:
    """What `function(*arguments)` returns in a new process that sees nothing of this one, and no network."""
    results = scratch / "results.pt"
    ending = f"torch.save({function.__name__}(*sys.argv[2:]), sys.argv[1])"
    call = f"import sys, torch\n{inspect.getsource(function)}\n{ending}"
    variables = {**os.environ, "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"}
    # -I: neither PYTHONPATH nor the current folder are searched for modules.
    command = [python, "-I", "-c", call, results, *arguments]
    scratch.mkdir()
    ended = subprocess.run(
        command, env=variables, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return torch.load(results)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word per token: w00 is id 0, and so on."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i:02}": i for i in range(31)}, unk_token="w00"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w01", clean_up_tokenization_spaces=False)


def saved_model(**overrides) -> LatentAttentionForCausalLM:
    return tiny_model(**PATTERNS["mixed with sinks"], pad_token_id=1, **overrides)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    saved_model().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def complete(folder: Path, trust_remote_code: bool = False) -> str:
    generator = pipeline("text-generation", model=str(folder), trust_remote_code=trust_remote_code)
    return generator(PROMPT, max_new_tokens=9, do_sample=False, return_full_text=False)[0]["generated_text"]


def registered_classes() -> dict[str, str]:
    """Every Auto class that knows this package's config, and the entry of `auto_map` that it needs."""
    classes = {"AutoConfig": LatentAttentionConfig}
    for name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None)
        if isinstance(auto_class, type) and mapping is not None and LatentAttentionConfig in mapping:
            classes[name] = mapping[LatentAttentionConfig]
    return {name: f"{entry.__module__.split('.')[-1]}.{entry.__name__}" for name, entry in classes.items()}


def check_folder(folder: Path) -> None:
    """All of the package's files and no others, and an entry for every class, of this folder and no repository."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.py")}
    assert files == {path.name: path.read_bytes() for path in CODE}
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert auto_map == registered_classes()
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM"} <= set(auto_map)


@pytest.fixture(scope="module")
def expected(saved) -> dict:
    """What readers must find: what the package itself computes from the folder."""
    model, ids = LatentAttentionForCausalLM.from_pretrained(saved), torch.arange(2, 25)[None]
    return {
        "logits": model(ids).logits.detach(),
        "hidden_states": model.model(ids).last_hidden_state.detach(),
        "tokens": model.generate(ids, max_new_tokens=9, do_sample=False),
        "text": complete(saved),
    }


def read_as_a_stranger(folder, again, prompt):
    """Runs alone. Loads all that `folder` offers, uses it, and saves it to `again`."""
    import importlib.util

    import transformers
    from transformers import AutoConfig, AutoTokenizer, pipeline

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    # Masked language modelling refuses a causal configuration, so its class is read as bidirectional, without sinks.
    settings = {"AutoModelForMaskedLM": {"is_causal": False, "num_sink_tokens": 0}}
    names = [name for name in config.auto_map if name != "AutoConfig"]
    models = {
        name: getattr(transformers, name).from_pretrained(folder, trust_remote_code=True, **settings.get(name, {}))
        for name in names
    }
    model, ids = models["AutoModelForCausalLM"], torch.arange(2, 25)[None]
    model.save_pretrained(again)
    # A tokenizer needs no code of the folder's.
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(again)
    generator = pipeline("text-generation", model=folder, trust_remote_code=True)
    return {
        "environment": (transformers.__version__, importlib.util.find_spec("modeling_latent") is None),
        "logits": model(ids).logits.detach(),
        "hidden_states": models["AutoModel"](ids).last_hidden_state.detach(),
        "tokens": model.generate(ids, max_new_tokens=9, do_sample=False),
        "text": generator(prompt, max_new_tokens=9, do_sample=False, return_full_text=False)[0]["generated_text"],
    }


def test_a_stranger_loads_uses_and_saves_and_the_next_one_too(environment, saved, expected, tmp_path):
    (python, version), folder = environment, saved
    for reader in ("first", "second"):
        again = tmp_path / f"saved_by_{reader}"
        found = run_alone(python, read_as_a_stranger, folder, again, PROMPT, scratch=tmp_path / reader)
        assert found["environment"] == (version, True)
        assert found["text"] == expected["text"]
        for name in ("logits", "hidden_states", "tokens"):
            assert torch.equal(found[name], expected[name]), name
        check_folder(again)
        folder = again


def load_alone(folder, auto_class):
    """Runs alone. Before any other class was loaded, which would have registered what this one needs."""
    import transformers

    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
    return {"class": type(model).__name__}


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_a_head_loads_without_another_class_before_it(environment, saved, task, tmp_path):
    (python, _), scratch = environment, tmp_path / "reader"
    assert run_alone(python, load_alone, saved, f"AutoModelFor{task}", scratch=scratch)["class"].endswith(task)


def exchange_caches(folder, root):
    """Runs alone. Continues each copy's cache with the other copy, and with itself."""
    from transformers import AutoModelForCausalLM

    ids = torch.arange(2, 25)[None]
    read = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    # Before the package is imported, whose cache layer then takes the place of the folder's.
    read_caches = [read(ids[:, :9], use_cache=True)[1] for _ in range(2)]  # behind the logits, whatever its name
    sys.path.insert(0, root)
    from modeling_latent import LatentAttentionForCausalLM

    own = LatentAttentionForCausalLM.from_pretrained(folder, config=read.config)
    own_cache = own(ids[:, :9], use_cache=True)[1]
    return {
        "copies": [type(cache.layers[0]).__module__.split(".")[0] for cache in (read_caches[0], own_cache)],
        "own_with_read_cache": own(ids[:, 9:], cache=read_caches[0]).logits.detach(),
        "read_with_own_cache": read(ids[:, 9:], cache=own_cache).logits.detach(),
        "read_with_read_cache": read(ids[:, 9:], cache=read_caches[1]).logits.detach(),
    }


@pytest.mark.parametrize("environment", VERSIONS[:1], indirect=True)
def test_copies_of_the_code_take_each_other_s_caches_and_configs(environment, saved, tmp_path):
    python, _ = environment
    found = run_alone(python, exchange_caches, saved, ROOT, scratch=tmp_path / "scratch")
    assert found["copies"] == ["transformers_modules", "modeling_latent"]
    assert torch.equal(found["own_with_read_cache"], found["read_with_read_cache"])
    assert torch.equal(found["read_with_own_cache"], found["read_with_read_cache"])


def generate_beside_copies(folder, other, root):
    """Runs alone. Each of three copies of the code generates, alone and when all of them have been loaded."""
    from transformers import AutoModelForCausalLM

    ids, mask = torch.arange(2, 24).view(2, 11), torch.ones(2, 11, dtype=torch.long)
    mask[1, :3] = 0

    def generate(model, assistant):
        kwargs = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
        answers = [
            model.generate(ids, attention_mask=mask, **kwargs, **settings)
            for settings in ({}, {"num_beams": 2}, {"cache_implementation": "static"})
        ]
        answers.append(model.generate(ids[:1], assistant_model=assistant, **kwargs))
        caches = [answer.get("cache") or answer["past_key_values"] for answer in answers]  # by the version's name
        packages = {type(cache.layers[0]).__module__.rpartition(".")[0] for cache in caches}
        return {"tokens": [answer.sequences for answer in answers], "packages": packages}

    models = [AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)]
    alone = generate(models[0], models[0])
    models.append(AutoModelForCausalLM.from_pretrained(other, trust_remote_code=True))
    sys.path.insert(0, root)
    from modeling_latent import LatentAttentionForCausalLM

    models.append(LatentAttentionForCausalLM.from_pretrained(folder, config=models[0].config))
    beside = [generate(model, assistant) for model, assistant in zip(models, models[1:] + models[:1], strict=True)]
    return {"alone": alone, "beside": beside, "own": [type(model).__module__.rpartition(".")[0] for model in models]}


@pytest.mark.parametrize("environment", VERSIONS[:1], indirect=True)
def test_two_checkpoints_in_one_process_each_run_their_own_code(environment, saved, tmp_path):
    python, _ = environment
    other = shutil.copytree(saved, tmp_path / "another")
    with (other / "cache_latent.py").open("a", encoding="utf-8") as code:
        code.write("# another version\n")
    found = run_alone(python, generate_beside_copies, saved, other, ROOT, scratch=tmp_path / "scratch")
    assert len(set(found["own"])) == 3
    for package, beside in zip(found["own"], found["beside"], strict=True):
        assert beside["packages"] == {package}
        assert all(map(torch.equal, beside["tokens"], found["alone"]["tokens"]))


@pytest.mark.parametrize("overrides", [{}, {"is_causal": False}, {"layer_pattern": ["latent"], "conv_kernel_size": 0}])
@pytest.mark.parametrize("base_alone", [False, True])
def test_the_folder_holds_all_code_and_names_every_class(overrides, base_alone, tmp_path):
    model = tiny_model(**overrides)
    (model.model if base_alone else model).save_pretrained(tmp_path)
    check_folder(tmp_path)


def test_a_copy_of_a_repository_names_its_own_code(tmp_path):
    """As read from the Hub, entries name the repository that the code came from."""
    read = {name: f"someone/model--{path}" for name, path in registered_classes().items()}
    tiny_model(auto_map=read).save_pretrained(tmp_path)
    check_folder(tmp_path)


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_imports_resolve_in_the_folder_or_at_any_reader_s(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    relative = {(node.level, node.module) for node in imported if node.level}
    assert relative <= {(1, file.stem) for file in CODE}
    # What the library looks for is text, in docstrings too.
    assert set(get_relative_imports(path)) == {module for _, module in relative}
    absolute = {node.module.split(".")[0] for node in imported if not node.level}
    absolute |= {name.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for name in node.names}
    assert absolute <= {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names


def test_with_the_package_imported_its_own_classes_load(saved):
    model, ids = AutoModelForCausalLM.from_pretrained(saved), random_ids(2, 11)
    assert type(model) is LatentAttentionForCausalLM
    assert torch.equal(model(ids).logits, saved_model()(ids).logits)
    base = AutoModel.from_pretrained(saved, trust_remote_code=True)
    assert type(base) is LatentAttentionModel
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_pipeline_gives_what_generate_gives(saved):
    tokenizer, model = word_tokenizer(), LatentAttentionForCausalLM.from_pretrained(saved)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    tokens = model.generate(ids, max_new_tokens=9, do_sample=False)[0, ids.shape[1] :]
    assert len(tokens) == 9
    # The pipeline leaves special tokens out, padding among them, which random weights may well choose.
    assert complete(saved, trust_remote_code=True) == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_auto_is_the_dtype_that_was_saved(dtype, tmp_path):
    tiny_model(dtype=dtype).save_pretrained(tmp_path)
    as_saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in as_saved.parameters()} == {dtype}
    ids = random_ids(2, 11)
    assert torch.equal(as_saved(ids).logits, tiny_model(dtype=dtype)(ids).logits)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float16}
