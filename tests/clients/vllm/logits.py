"""Logarithms of what vLLM predicts after each token, of a checkpoint on the CPU: run in vLLM's environment.

python logits.py DIRECTORY TOKENS.npy OUTPUT.npy
"""

import os
import sys

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import numpy as np
from vllm import LLM, SamplingParams


def main() -> None:
    """Ask for the logarithm of every token's probability, after every token but the last."""
    directory, given, output = sys.argv[1:]
    tokens = np.load(given).tolist()
    model = LLM(directory, dtype="float16", enforce_eager=True, max_model_len=64, max_logprobs=-1)
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1)
    (found,) = model.generate([{"prompt_token_ids": tokens}], asked, use_tqdm=False)
    rows = [
        [each[token].logprob for token in range(len(each))] for each in found.prompt_logprobs[1:]
    ]
    np.save(output, np.array(rows, np.float32))


if __name__ == "__main__":
    main()
