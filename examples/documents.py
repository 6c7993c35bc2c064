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
"""Documents to train on: the Python standard library's sources, local files, or a data set of the Hub."""

import sysconfig
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset


# Tests are left out, as many systems install Python without them.
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
VALIDATION_SHARE = 0.04
READERS = {".txt": "text", ".parquet": "parquet"}  # of the library, by the ending of a file


def standard_library() -> Dataset:
    """One document per source file of the running Python, about 12 MB: real text that every machine has."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(root.rglob("*.py")) if NOT_THE_LIBRARY.isdisjoint(file.relative_to(root).parts)]
    return Dataset.from_dict({"text": [text for text in map(read_utf8, files) if text]})


def read_utf8(file: Path) -> str:
    """The text of a file, or none if it is in another encoding, as a few modules are on purpose."""
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return ""


def local_files(path: Path) -> DatasetDict:
    """A text file is one document, a parquet file has one per row."""
    files = [file for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.suffix in READERS]
    readers = {READERS[file.suffix] for file in files}
    if len(readers) != 1:
        raise ValueError(
            f"--dataset is {path}, which must be a .parquet file, or a folder of .txt or of .parquet files; it has "
            f"{len(files)} files of these kinds. Give one kind, or the name of a data set on the Hub."
        )
    options = {} if readers == {"parquet"} else {"sample_by": "document"}
    return load_dataset(readers.pop(), data_files=[str(file) for file in files], **options)


def split(documents: DatasetDict) -> DatasetDict:
    """Train and validation, split between documents; always the same split of the same documents."""
    if "validation" in documents:
        if not len(documents["validation"]):
            raise ValueError("--dataset has no text in its split `validation` but must have some: add it there.")
        return documents
    if len(documents["train"]) < 2:
        raise ValueError(
            f"--dataset holds {len(documents['train'])} documents with text but at least 2 are needed, one of them "
            "for validation. (A .txt file is one document: give a folder of several.)"
        )
    parts = documents["train"].train_test_split(VALIDATION_SHARE, seed=0)
    return DatasetDict(train=parts["train"], validation=parts["test"])


def load_documents(dataset: str | None) -> DatasetDict:
    """`train` and `validation`, each with a column `text`, without empty documents. See `--dataset` of train.py."""
    if dataset is None:
        documents = DatasetDict(train=standard_library())
    elif Path(dataset).exists():
        documents = local_files(Path(dataset))
    else:
        name, _, configuration = dataset.partition(":")
        documents = load_dataset(name, configuration or None)
    if "train" not in documents:
        raise ValueError(f"--dataset has the splits {list(documents)} but must have one named `train`.")
    columns = documents["train"].column_names
    if "text" not in columns:
        raise ValueError(f"--dataset has the columns {columns} but must have one named `text`: rename it to that.")
    return split(documents.filter(bool, input_columns="text"))
