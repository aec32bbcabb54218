"""The modules that are trained: language model, reward model and policy, whole or only their top layers.

Shapes: T tokens, A selected action columns, S sequences, D model, V vocabulary.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.batch import PackedBatch
from kernels.common.codes import Codes
from kernels.linear_logprob import linear_logprob


class Top(nn.Module):
    """The layers from `start` on and the final norm, run on the trunk's output. They are the model's own tensors."""

    def __init__(self, model: nn.Module, start: int, recompute: bool = False):
        super().__init__()
        self.run_layers, self.recompute = model.run_layers, recompute
        self.layers = nn.ModuleDict({str(i): model.layers[i] for i in range(start, model.num_layers)})
        self.final_norm = model.final_norm

    def forward(self, batch: PackedBatch, trunk_TD: Tensor | None, columns_A: Tensor) -> Tensor:
        """Return h_AD after the final norm."""
        h_TD = self.run_layers(list(self.layers.values()), trunk_TD, batch, recompute=self.recompute)
        return self.final_norm(h_TD[columns_A])


class Whole(nn.Module):
    """A whole model in the place of Top, when every layer is trained and there is no trunk."""

    def __init__(self, model: nn.Module, recompute: bool = False):
        super().__init__()
        self.model, self.recompute = model, recompute

    def forward(self, batch: PackedBatch, trunk_TD: Tensor | None, columns_A: Tensor) -> Tensor:
        """Return h_AD after the final norm."""
        model = self.model
        h_TD = model.run(model.embed(batch), batch, 0, model.num_layers, recompute=self.recompute)
        return model.norm(h_TD[columns_A])


def body_of(model: nn.Module, split: int | None, recompute: bool = False) -> Top | Whole:
    """Return the trained part: the layers from `split` on, or all for None. Freezes the rest.

    With recompute, a backward runs each layer's forward again instead of keeping what is inside the layers.
    """
    body = Whole(model, recompute) if split is None else Top(model, split, recompute)
    model.requires_grad_(False)
    return body.requires_grad_(True)


class LanguageModule(nn.Module):
    """A language model that returns log-probabilities of chosen targets. With a Top, the LM head is frozen."""

    def __init__(self, model: nn.Module, split: int | None = None, recompute: bool = False):
        super().__init__()
        self.body = body_of(model, split, recompute)
        # A tuple is not registered, so DeepSpeed does not see it.
        self.frozen_head: tuple[Tensor | Codes, ...] = () if split is None else (model.head_weight,)

    @property
    def head_VD(self) -> Tensor | Codes:
        return self.frozen_head[0] if self.frozen_head else self.body.model.head_weight

    def forward(self, batch: PackedBatch, trunk_TD: Tensor | None, columns_A: Tensor) -> Tensor:
        """Return float32 [A]: the log-probability of the token after each column."""
        h_AD = self.body(batch, trunk_TD, columns_A)
        return linear_logprob(h_AD, self.head_VD, batch.target_T[columns_A])[0]


class ScalarHead(nn.Linear):
    """One float32 number per row, in any dtype of the weights: in bfloat16, 4 of 1,000 scores would tie."""

    def __init__(self, hidden_size: int, bias: bool):
        super().__init__(hidden_size, 1, bias)

    def forward(self, h_AD: Tensor) -> Tensor:
        """Return float32 [A]."""
        bias = None if self.bias is None else self.bias.float()
        return linear(h_AD.float(), self.weight.float(), bias)[:, 0]


class RewardModule(nn.Module):
    """A model body with a scalar head on the last token of each sequence."""

    def __init__(
        self, model: nn.Module, score_weight_D: Tensor, split: int | None = None, recompute: bool = False
    ):  # fmt: skip
        super().__init__()
        self.body = body_of(model, split, recompute)
        self.score = ScalarHead(model.hidden_size, bias=False)
        self.score.weight.data = score_weight_D.to(next(model.parameters())).reshape(1, -1).clone()

    @staticmethod
    def new_score_weight(model: nn.Module, seed: int) -> Tensor:
        """Draw float32 [D] from normal(0, 1 / sqrt(D + 1)) (Stiennon et al. 2020): first scores have deviation about 1.

        A head of zeros would pass no gradient to the body at first.
        """
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(model.hidden_size, generator=generator) * (model.hidden_size + 1) ** -0.5

    def forward(self, batch: PackedBatch, trunk_TD: Tensor | None) -> Tensor:
        """Return float32 [S], the score of each sequence."""
        return self.score(self.body(batch, trunk_TD, batch.last_S))


class Policy(LanguageModule):
    """What PPO trains: the body and, if asked, a critic, a value head on the same body or on its own.

    `value_offset` (float32) is added to every value: the level of the scores, which bfloat16 weights cannot hold
    exactly and which the policy's learning rate would take long to reach. While `critic_alone` is set, values pass no
    gradient to a shared body.
    """

    def __init__(self, model: nn.Module, split: int | None, has_critic: bool = True, recompute: bool = False):
        super().__init__(model, split, recompute)
        self.critic: Top | Whole | None = None
        self.value: ScalarHead | None = None
        self.value_offset, self.critic_alone = 0.0, False
        if not has_critic:
            return
        self.value = ScalarHead(model.hidden_size, bias=True)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.value.to(next(model.parameters()))

    def separate_critic(self, reward: RewardModule | None, mean: float = 0.0, std: float = 1.0) -> None:
        """Give the value head its own body: the reward model's, so that values start as normalised scores.

        Without a reward model, a copy of the policy's body with a head of zeros.
        """
        self.critic = copy.deepcopy(self.body if reward is None else reward.body).requires_grad_(True)
        self.critic.recompute = self.body.recompute
        if reward is not None:
            like = self.value.weight
            self.critic.to(like.device)
            self.value = ScalarHead(reward.score.in_features, bias=True).to(like)
            self.value.weight.data.copy_(reward.score.weight.data / std)
            self.value.bias.data.fill_(-mean / std)

    def forward(
        self,
        batch: PackedBatch,
        trunk_TD: Tensor | None,
        columns_A: Tensor,
        temperature: float,
        critic_trunk_TD: Tensor | None = None,
        with_value: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return float32 [A] each: log-probability of the action, entropy, value before it.

        The value is None without a critic. If it is not wanted, it is a 0 through which every weight gets a gradient
        of 0: ZeRO-3 would keep the last step's gradient of a weight that has none in a step's first microbatch.
        `critic_trunk_TD` is the trunk's output for a critic with another trunk than the policy's.
        """
        h_AD = self.body(batch, trunk_TD, columns_A)
        logprob_A, _, entropy_A = linear_logprob(h_AD, self.head_VD, batch.target_T[columns_A], temperature)
        if self.value is None:
            return logprob_A, entropy_A, None
        if not with_value:
            return logprob_A, entropy_A, self._unused_value(batch, h_AD)
        if self.critic_alone:
            h_AD = h_AD.detach()
        if self.critic is not None:
            h_AD = self.critic(batch, trunk_TD if critic_trunk_TD is None else critic_trunk_TD, columns_A)
        return logprob_A, entropy_A, self.value(h_AD) + self.value_offset

    def _unused_value(self, batch: PackedBatch, h_AD: Tensor) -> Tensor:
        """Return a scalar 0, from the value of one row, of a separate critic for one token."""
        row_AD = h_AD[:1]
        if self.critic is not None:
            one = PackedBatch.of_singles(batch.tokens_T[:1], batch.positions_T[:1])
            row_AD = self.critic(one, row_AD.new_zeros(1, self.value.in_features), one.last_S)
        return 0.0 * self.value(row_AD).sum()

    def reference(self) -> Reference:
        """Return a frozen copy of the current body, which shares the frozen head."""
        return Reference(copy.deepcopy(self.body), self.frozen_head)


class Reference(nn.Module):
    """The policy before training: log-probabilities without gradients."""

    def __init__(self, body: Top | Whole, frozen_head: tuple[Tensor | Codes, ...]):
        super().__init__()
        self.body = body.requires_grad_(False)
        self.frozen_head = frozen_head

    @torch.no_grad()
    def forward(self, batch: PackedBatch, trunk_TD: Tensor | None, columns_A: Tensor, temperature: float) -> Tensor:
        """Return float32 [A], the log-probability of each action."""
        h_AD = self.body(batch, trunk_TD, columns_A)
        head_VD = self.frozen_head[0] if self.frozen_head else self.body.model.head_weight
        return linear_logprob(h_AD, head_VD, batch.target_T[columns_A], temperature)[0]
