"""The peer of launch/bench/shapes.py: each phase as one writes it with transformers and PyTorch, on padded batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

PAD = 0


def padded(sequences: Sequence[Sequence[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, int64 [S, N] each, padded on one side."""
    width = max(map(len, sequences))
    blank = [[PAD] * (width - len(s)) for s in sequences]
    ids = [[*b, *s] if left else [*s, *b] for s, b in zip(sequences, blank)]
    mask = [[0] * len(b) + [1] * len(s) if left else [1] * len(s) + [0] * len(b) for s, b in zip(sequences, blank)]
    return torch.tensor(ids), torch.tensor(mask)


@torch.inference_mode()
def prefill(model, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the next token of each prompt."""
    ids, mask = padded(prompts, left=True)
    return model(ids, attention_mask=mask, logits_to_keep=1).logits[:, -1].argmax(-1)


@torch.inference_mode()
def decode(model, prompts: Sequence[Sequence[int]], new_tokens: int, sample: bool = False) -> Tensor:
    """Return prompts and responses of new_tokens tokens each."""
    ids, mask = padded(prompts, left=True)
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=sample, top_k=0,
        pad_token_id=PAD,
    )  # fmt: skip


@torch.inference_mode()
def score(model, contexts: Sequence[Sequence[int]], choices: Sequence[Sequence[int]], batch: int) -> list[float]:
    """Return the log-likelihood of every choice after every context, in batches of similar length."""
    found = []
    for context in contexts:
        for first in range(0, len(choices), batch):
            part = choices[first : first + batch]
            ids, mask = padded([[*context, *choice] for choice in part])
            logprob = model(ids, attention_mask=mask).logits.log_softmax(-1)
            for row, choice in enumerate(part):
                at = torch.arange(len(context) - 1, len(context) + len(choice) - 1)
                found.append(float(logprob[row, at, torch.tensor(choice)].sum()))
    return found


class SFT:
    """An optimizer step over all weights: cross-entropy on the second half of each sequence."""

    def __init__(self, model, sequences: Sequence[Sequence[int]], batch: int):
        self.model, self.sequences, self.batch = model, sequences, batch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(self) -> None:
        count = sum(len(s) - len(s) // 2 for s in self.sequences)
        for first in range(0, len(self.sequences), self.batch):
            part = self.sequences[first : first + self.batch]
            ids, mask = padded(part)
            labels = ids.masked_fill(mask == 0, -100)
            for row, sequence in enumerate(part):
                labels[row, : len(sequence) // 2] = -100
            logits = self.model(ids, attention_mask=mask).logits[:, :-1]
            (cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / count).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class PPO:
    """An iteration: rollouts, log-probabilities of policy and reference, clipped updates of the top layers."""

    def __init__(self, policy, reference, prompts, new_tokens: int, minibatch: int, epochs: int, top_layers: int):
        self.policy, self.reference, self.prompts = policy, reference, prompts
        self.new_tokens, self.minibatch, self.epochs = new_tokens, minibatch, epochs
        policy.requires_grad_(False)
        trained = [*policy.model.layers[-top_layers:], policy.model.norm]
        for module in trained:
            module.requires_grad_(True)
        self.value = torch.nn.Linear(policy.config.hidden_size, 1)
        weights = [p for module in (*trained, self.value) for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-5)

    def iterate(self) -> None:
        policy, width = self.policy, max(map(len, self.prompts))
        ids = decode(policy, self.prompts, self.new_tokens, sample=True).clone()
        _, mask = padded(self.prompts, left=True)
        mask = torch.cat([mask, torch.ones(len(ids), self.new_tokens, dtype=torch.int64)], 1)
        parts = list(zip(ids.split(self.minibatch), mask.split(self.minibatch)))
        with torch.no_grad():
            old, values = zip(*(self.run(policy, *part) for part in parts))
            reference = [self.run(self.reference, *part)[0] for part in parts]
        scores = [torch.randn(len(part), 1) for part, _ in parts]
        for _ in range(self.epochs):
            for (part, part_mask), before, base, value, reward in zip(parts, old, reference, values, scores):
                advantage = (reward - 0.05 * (before - base) - value).detach()
                logprob, new_value = self.run(policy, part, part_mask)
                ratio = (logprob - before).exp()
                loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
                (loss + (new_value - value - advantage).square().mean()).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
        assert ids.shape[1] == width + self.new_tokens

    def run(self, model, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and value of each response token, [S, new_tokens] each."""
        out = model(ids, attention_mask=mask, output_hidden_states=True, logits_to_keep=self.new_tokens + 1)
        logprob = out.logits[:, :-1].log_softmax(-1)
        chosen = logprob.gather(-1, ids[:, -self.new_tokens :, None])[..., 0]
        return chosen, self.value(out.hidden_states[-1][:, -self.new_tokens - 1 : -1])[..., 0]
