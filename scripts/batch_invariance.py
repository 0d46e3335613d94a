"""How often the rest of the batch changes a sampled token, on the quickstart's model.

The same 64 requests are sampled 64 at once and 4 at once. A completion counts up to its first differing token;
the rate is differing completions over tokens compared.
"""

import platform

import torch

from burnish import GenerationRequest, NativeGenerator, SamplingSettings, load_policy
from burnish.config.schema import ModelConfig


def main() -> None:
    torch.set_num_threads(2)
    print(f"{platform.platform()}, torch {torch.__version__}, 2 threads")
    for dtype in ("float32", "bfloat16"):
        policy = load_policy(ModelConfig(path="smollm2-135m", compute_dtype=dtype), seed=0)
        sampling = SamplingSettings(max_tokens=32, stop_token_ids=policy.stop_token_ids)
        requests = []
        for index in range(64):
            chat = [{"role": "user", "content": f"What is {index} + {index % 7}?"}]
            text = policy.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            ids = tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"])
            requests.append(GenerationRequest(token_ids=ids, sampling=sampling, seeds=(index,)))
        many = NativeGenerator(policy, max_rows=64).generate(requests)
        few = NativeGenerator(policy, max_rows=4).generate(requests)
        tokens = differing = 0
        for (first,), (second,) in zip(many, few, strict=True):
            pairs = list(zip(first.token_ids, second.token_ids, strict=False))
            differs = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
            differing += differs is not None
            tokens += len(pairs) if differs is None else differs + 1
        print(f"{dtype}: {differing} of 64 completions differ, {tokens} tokens compared")


if __name__ == "__main__":
    main()
