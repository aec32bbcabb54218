"""Direct preference optimisation (Rafailov et al. 2023): K responses, K sequences forwarded once, all pairs.

The reference is the policy before training. Its log-probabilities, one number a response, are computed once before the
first step, on the same trunk outputs and in the packs of their first use, so that the first step finds a ratio of 1; a
checkpoint keeps them. Shapes: T tokens, A selected action columns, S responses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.base.errors import UserError
from engine.batch import PackedBatch, action_mask, on_device
from engine.cli.console import short
from engine.objectives.losses import ranking_pairs
from engine.objectives.preferences import best_loss, implicit_rewards, pairs_loss, plackett_luce_loss, sums_of
from engine.settings import DPOSettings, split_of
from engine.text.encoding import Example, RankedExamples
from engine.training.checkpoint import Saved
from engine.training.context import Context
from engine.training.heldout import Estimate, as_share, shown
from engine.training.modules import LanguageModule
from engine.training.ranking_trainer import RankingTrainer
from engine.training.trunk import FrozenWeights, Trunk, frozen_parameters

TRAINED, HELDOUT = "trained_S", "heldout_S"  # the reference's columns in a checkpoint


class DPOTrainer(RankingTrainer):
    """Minimise the mean over prompts of each prompt's loss (engine/objectives/preferences.py)."""

    name = "dpo"

    def __init__(
        self,
        model: torch.nn.Module,
        rankings: Sequence[RankedExamples],
        heldout: Sequence[RankedExamples],
        context: Context,
    ):
        split = split_of(context.stage.top_layers, model.num_layers)
        frozen = frozen_parameters(model, split)
        trunk = None if split is None else Trunk(model, split)
        module, compared = LanguageModule(model, split, context.batch.recompute), [*rankings, *heldout]
        super().__init__(module, model, trunk, FrozenWeights(frozen), rankings, heldout, context, compared)
        # float64, log-probability of each response under the reference; NaN where no step uses the response.
        self.reference_S = torch.full((self.first[-1],), math.nan, dtype=torch.float64)
        self.heldout_first = [0]
        for ranking in heldout:
            self.heldout_first.append(self.heldout_first[-1] + len(ranking.examples))
        self.heldout_reference_S = torch.full((self.heldout_first[-1],), math.nan, dtype=torch.float64)

    @property
    def passes(self) -> int:
        return super().passes + 1  # one for the reference; a resumed run keeps them too, to read the same bits

    def loss(self, records: Sequence[RankedExamples], indices: Sequence[int] | None) -> tuple[Tensor, dict]:
        ref_logprob_S = self.reference_S[self.row_numbers(records, indices)]
        return dpo_loss(self.logprobs(records, indices), ref_logprob_S, records, self.settings)

    def logprobs(self, rankings: Sequence[RankedExamples], indices: Sequence[int] | None) -> Tensor:
        """float64 [S]: log-probability of each response under the policy; `indices` as in `loss`."""
        responses = self.responses_of(rankings, indices)
        batch, columns_A = packed(responses.examples)
        batch, columns_A = batch.to(self.world.device), columns_A.to(self.world.device, non_blocking=True)
        logprob_A = self.zero(batch, self.trunk and self.trunk(batch, responses.rows), columns_A)
        return sums_of(logprob_A, lengths_of(responses.examples))[responses.back_S]

    def prepare(self, saved: Saved | None) -> None:
        super().prepare(saved)
        if saved is None:
            self.world.at("the reference's log-probabilities")
            self._compute_references()
        else:
            self._take_references(saved.columns or {})
        self.checkpoints.columns = {TRAINED: self.reference_S}
        if self.heldout:
            self.checkpoints.columns |= {HELDOUT: self.heldout_reference_S}

    def measure(self) -> tuple[dict[str, Any], dict[str, float], str]:
        """Loss and share of ordered pairs of the held-out rankings, with half of their 95 % interval over rankings.

        accuracy   pairs ordered rightly by the implicit reward; equal ones, as all are at first, count half
        likelier   pairs whose better response is the likelier one under the policy
        """
        mine = {}
        for ids, weight in self.packs_of(self.heldout):
            chosen = [self.heldout[i] for i in ids]
            logprob_S = self.logprobs(chosen, None).cpu()
            for i, own_S in zip(ids, logprob_S.split([len(r.examples) for r in chosen])):
                if weight:
                    ref_logprob_S = self.heldout_reference_S[self.heldout_first[i] : self.heldout_first[i + 1]]
                    mine[i] = measures(own_S, ref_logprob_S, self.heldout[i], self.settings)
        found = {i: values for part in self.world.gather(mine) for i, values in part.items()}
        whole = [found[i] for i in range(len(self.heldout))]
        estimates = {name: Estimate.of([values[name] for values in whole]) for name in whole[0]}
        results = {name: x.mean for name, x in estimates.items()}
        if len(whole) > 1:  # one ranking has no interval
            results["half_intervals"] = {name: x.half for name, x in estimates.items()}
        line = (
            f"loss {shown('loss', estimates['heldout_loss'])}, pairs ordered rightly {as_share(estimates['accuracy'])}"
        )
        logged = {f"eval/{name.removeprefix('heldout_')}": x.mean for name, x in estimates.items()}
        if len(whole) > 1:
            logged |= {f"eval/{name.removeprefix('heldout_')}_half": x.half for name, x in estimates.items()}
        return results, logged, f"{line}, better one likelier {as_share(estimates['likelier'])}"

    def kept_tensors(self, records: Sequence[RankedExamples]) -> dict[str, Tensor]:
        indices = [self.records.index(r) for r in records]
        return {
            **super().kept_tensors(records),
            "prompt_len_S": torch.tensor([e.response_start for r in records for e in r.examples]),
            "ref_logprob_S": self.reference_S[self.row_numbers(records, indices)],
        }

    def keep_loss(self, loss: float) -> None:
        self.results = {"loss_first": loss, **self.results, "loss_last": loss}

    def also_show(self, means: Mapping[str, float]) -> dict[str, str]:
        return {"accuracy": short(means["rewards/accuracies"]), "margin": short(means["rewards/margins"])}

    @torch.no_grad()
    def _compute_references(self) -> None:
        """Fill the columns, each rank its share, under the weights that training starts from."""
        first_uses, seen = [], set()
        for step in self.steps:
            first_uses.append([i for i in dict.fromkeys(step) if i not in seen])
            seen.update(step)
        first_uses = [indices for indices in first_uses if indices]
        with self.console.bar(len(first_uses), "reference", "step") as bar:
            for indices in first_uses:
                records = [self.records[i] for i in indices]
                for ids, weight in self.packs_of(records):
                    chosen, own = [records[i] for i in ids], [indices[i] for i in ids]
                    logprob_S = self.logprobs(chosen, own).cpu()
                    if weight:
                        self.reference_S[self.row_numbers(chosen, own)] = logprob_S
                bar.update()
        for ids, weight in self.packs_of(self.heldout) if self.heldout else ():
            logprob_S = self.logprobs([self.heldout[i] for i in ids], None).cpu()
            rows = [s for i in ids for s in range(self.heldout_first[i], self.heldout_first[i + 1])]
            if weight:
                self.heldout_reference_S[rows] = logprob_S
        self.reference_S, self.heldout_reference_S = map(self._together, (self.reference_S, self.heldout_reference_S))

    def _together(self, x_S: Tensor) -> Tensor:
        """Merge the ranks' parts of a column, which are NaN elsewhere. A sum with zeros changes no bit."""
        counted = self.world.sum(x_S.isfinite().float().to(self.world.device))
        whole_S = self.world.sum(x_S.nan_to_num(0.0).to(self.world.device))
        return torch.where(counted > 0, whole_S, math.nan).cpu()

    def _take_references(self, columns: Mapping[str, Tensor]) -> None:
        trained_S, heldout_S = (columns.get(name, torch.empty(0, dtype=torch.float64)) for name in (TRAINED, HELDOUT))
        is_whole = (trained_S.shape, heldout_S.shape) == (self.reference_S.shape, self.heldout_reference_S.shape)
        rows = [s for step in self.steps for s in self.row_numbers([self.records[i] for i in step], step)]
        if not is_whole or bool(trained_S[rows].isnan().any()):
            raise UserError(
                "the checkpoint does not hold the reference's log-probabilities of this run's data, and only the "
                "initial weights give them: give the --data, --eval-data, --batch-size, --seed and --max-steps it was "
                "made with, or start another run"
            )
        self.reference_S, self.heldout_reference_S = trained_S, heldout_S


def dpo_loss(
    logprob_S: Tensor, ref_logprob_S: Tensor, rankings: Sequence[RankedExamples], dpo: DPOSettings
) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
    """(sum of the losses of the rankings, {metric: (sum over rankings, number of rankings)}), names as in TRL.

    `logprob_S` and `ref_logprob_S` are float64, the log-probability of each response under policy and reference.
    Metrics of pairs are means over a ranking's pairs of different ranks: `rewards/chosen` of the better response,
    `rewards/rejected` of the worse one, `rewards/accuracies` the share of pairs with the better reward above.
    """
    ranks = [r.ranks for r in rankings]
    length_S = on_device(lengths_of([e for r in rankings for e in r.examples]), torch.int64, logprob_S.device)
    ref_logprob_S = ref_logprob_S.to(logprob_S.device, non_blocking=True)
    reward_S = implicit_rewards(logprob_S, ref_logprob_S, dpo.beta, length_S if dpo.length_normalised else None)
    if dpo.dpo_loss == "pairs":
        loss = pairs_loss(reward_S, ranks, dpo.label_smoothing)
    else:
        loss = plackett_luce_loss(reward_S, ranks)
    nll = best_loss(logprob_S, length_S, ranks) if dpo.sft_coef else None
    if nll is not None:
        loss = loss + dpo.sft_coef * nll
    better_P, worse_P, weight_P = (x.to(logprob_S.device, non_blocking=True) for x in ranking_pairs(ranks))
    margin_P = reward_S[better_P] - reward_S[worse_P]
    of_pairs = {
        "rewards/chosen": reward_S[better_P], "rewards/rejected": reward_S[worse_P], "rewards/margins": margin_P,
        "rewards/accuracies": (margin_P > 0).float(),
        "logps/chosen": logprob_S[better_P], "logps/rejected": logprob_S[worse_P],
        "log_ratio/chosen": (logprob_S - ref_logprob_S)[better_P],
        "log_ratio/rejected": (logprob_S - ref_logprob_S)[worse_P],
    }  # fmt: skip
    metrics = {name: ((weight_P * x_P.detach()).sum(), len(rankings)) for name, x_P in of_pairs.items()}
    return loss, metrics if nll is None else {**metrics, "nll_loss": (nll.detach(), len(rankings))}


def measures(logprob_S: Tensor, ref_logprob_S: Tensor, ranking: RankedExamples, dpo: DPOSettings) -> dict[str, float]:
    """The measures of one held-out ranking, see `DPOTrainer.measure`."""
    loss, _ = dpo_loss(logprob_S, ref_logprob_S, [ranking], dpo)
    better_P, worse_P, _ = ranking_pairs([ranking.ranks])
    reward_S = logprob_S - ref_logprob_S
    if dpo.length_normalised:
        reward_S = reward_S / torch.tensor(lengths_of(ranking.examples))

    def above(x_S: Tensor) -> float:
        return float((0.5 * (x_S[better_P] - x_S[worse_P]).sign() + 0.5).mean())

    return {"heldout_loss": float(loss), "accuracy": above(reward_S), "likelier": above(logprob_S)}


def packed(examples: Sequence[Example]) -> tuple[PackedBatch, Tensor]:
    """(the sequences end to end, the columns whose targets are response tokens, int64 [A]), on the CPU."""
    batch = PackedBatch.from_sequences([e.tokens for e in examples], prompt_lens=[e.prompt_len for e in examples])
    return batch, action_mask(batch, [e.response_start for e in examples]).nonzero()[:, 0]


def lengths_of(examples: Sequence[Example]) -> list[int]:
    """The number of response tokens of each sequence."""
    return [len(e.tokens) - e.response_start for e in examples]
