"""Logits of a checkpoint by transformers alone, in a process where GPTQModel has loaded none.

python logits.py DIRECTORY FORMAT TOKENS.npy OUTPUT.npy
"""

import os
import sys

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig


def main() -> None:
    """Load it in float32 and run it."""
    directory, form, given, output = sys.argv[1:]
    backend, config = ("torch_awq", AwqConfig) if form == "awq" else ("gptq_torch", GPTQConfig)
    quantization = config(bits=4, backend=backend)
    options = {"dtype": torch.float32, "device_map": "cpu", "quantization_config": quantization}
    model = AutoModelForCausalLM.from_pretrained(directory, **options)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(np.load(given))[None]).logits[0]
    np.save(output, logits.float().numpy())


if __name__ == "__main__":
    main()
