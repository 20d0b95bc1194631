"""The pattern of the released code: whole sequences, float32 logits of every position, a model for each role."""

import torch
from torch import Tensor

from bench.cases import PAIRS, SUMMARY, load
from bench.ways import Found, Way, dpo


def whole_logps(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """(rows, T - 1) log-probs of all tokens except the first, from float32 logits of all positions."""
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
    return torch.log_softmax(logits[:, :-1], -1).gather(2, ids[:, 1:, None])[..., 0]


class Released(Way):
    """Policy, KL reference, generator and reference as four models."""

    def setup(self) -> None:
        part = self.case.what
        self.anchor = load(self.case) if part == "whole_step" else None
        self.generator = load(self.case) if part in ("scoring", "whole_step") else None
        self.reference = load(self.case) if part in ("scoring", "whole_step", "generator_step") else None

    def pairs(self, model: torch.nn.Module, items: list) -> tuple[Tensor, Tensor]:
        """Summed log-probs of chosen and of rejected responses: two sequences per item, in one batch."""
        rows = [prefix + response for prefix, *responses in items for response in responses]
        logps = whole_logps(model, torch.tensor(rows, device=self.device))
        start = len(items[0][0]) - 1
        sums = logps[:, start:].sum(1).reshape(-1, 2)
        return sums[:, 0], sums[:, 1]

    @torch.no_grad()
    def scoring(self) -> Found:
        own = self.pairs(self.generator, self.items())
        return self.rewards(*own, *self.pairs(self.reference, self.plain_items()))

    def rollouts(self) -> Found:
        prompt = self.case.signal_ids(self.vocabulary)
        ids = torch.tensor([prompt] * self.case.group, device=self.device)
        with torch.no_grad():
            whole = self.policy.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=SUMMARY,
                min_new_tokens=SUMMARY,
                pad_token_id=0,
            )
        assert whole.shape[1] == len(prompt) + SUMMARY, "a summary ended early"
        return {}

    def logps(self, model: torch.nn.Module, train: bool) -> Tensor:
        return torch.cat([whole_logps(model, ids)[:, -SUMMARY:] for ids in self.batches()])

    def batches(self) -> tuple[Tensor, ...]:
        """The group's sequences, in batches that go through the model at once."""
        return self.batch()[0].split(self.case.at_once or self.case.group)

    def update(self, reference: Tensor | None = None) -> Found:
        """The same loss and gradient, with the batches one after another."""
        parts, first = [], 0
        for ids in self.batches():
            logps = whole_logps(self.policy, ids)[:, -SUMMARY:]
            anchor = None if reference is None else reference[first : first + len(ids)]
            self.loss(logps, anchor, first).backward()
            parts.append(logps.detach().float().cpu())
            first += len(ids)
        return {"logps": torch.cat(parts), "gradient": self.gradient()}

    def generator_step(self) -> Found:
        with torch.no_grad():
            references = self.pairs(self.reference, self.plain_items(PAIRS))
        logps = dpo(*self.pairs(self.policy, self.items(PAIRS)), *references)
        return logps | {"gradient": self.gradient()}
