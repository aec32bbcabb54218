"""The peer of evaluation/bench.py: score token ids with lm-eval, in a process and a Python of its own.

Reads lines of JSON, {"requests": [[context ids, continuation ids], ...]}, and answers each with {"seconds", "lls"}. It
imports nothing from this project, so that lm-eval's Python does not need this project installed.
"""

import contextlib
import json
import sys
import time

import torch


def main(model: str, batch_size: int, num_threads: int, max_length: int) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # stdout carries only answers
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(num_threads)
        # BLOOM's config names no length: without max_length, lm-eval would cut requests to 2,048 tokens.
        peer = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=batch_size, max_length=max_length)
    print(json.dumps({"version": lm_eval.__version__}), flush=True)
    for line in sys.stdin:
        # lm-eval's entry point after tokenization. It uses the texts only as cache keys, and its cache is off.
        requests = [(("", ""), context, continuation) for context, continuation in json.loads(line)["requests"]]
        with contextlib.redirect_stdout(sys.stderr):
            began = time.perf_counter()
            answers = peer._loglikelihood_tokens(requests, disable_tqdm=True)
            seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "lls": [ll for ll, _ in answers]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
