"""What each learning strategy stores, what it costs and when to use it, by name. Pure: nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyCard:
    """One strategy for a reader who must choose.

    ``stores`` is what outlives a stage, and ``patient_data`` whether tokens of single studies are among it.
    ``compute`` is the time of a stream relative to naive training, a head on embeddings / LoRA in one block, as
    ``benchmarks.streams`` measured it (four sources in turn, a memory of 5 %).
    """

    title: str
    idea: str
    stores: str
    patient_data: bool
    uses_memory: bool
    compute: str
    when: str


CARDS: dict[str, StrategyCard] = {
    "naive": StrategyCard(
        title="Naive",
        idea="train on the new studies alone",
        stores="nothing",
        patient_data=False,
        uses_memory=False,
        compute="1×",
        when="as the floor to compare with; or where the past need not be kept",
    ),
    "replay": StrategyCard(
        title="Replay",
        idea="mix a remembered study into the batch for each new one",
        stores="tokens and labels of the memory's studies",
        patient_data=True,
        uses_memory=True,
        compute="1.1× / 1.4×",
        when="a memory may be kept and nothing else is wanted; with few studies a class it may not be enough",
    ),
    "ewc": StrategyCard(
        title="Elastic weight consolidation (EWC)",
        idea="hold weights near their old values, the more the steeper the old loss is in them",
        stores="two numbers for each trained weight and stage",
        patient_data=False,
        uses_memory=False,
        compute="1.5× / 1.3×",
        when="nothing of a patient may be kept and the change is small; it helped little where measured: tune it",
    ),
    "lwf": StrategyCard(
        title="Learning without forgetting (LwF)",
        idea="keep the answers to the new studies near those given before",
        stores="nothing; during a stage the earlier answers to its studies",
        patient_data=False,
        uses_memory=False,
        compute="1.3× / 1.1×",
        when="nothing of a patient may be kept and the findings stay; useless where a new class arrives alone",
    ),
    "si": StrategyCard(
        title="Synaptic intelligence (SI)",
        idea="hold weights near their old values by what moving them has won",
        stores="one number for each trained weight",
        patient_data=False,
        uses_memory=False,
        compute="1.5× / 1.1×",
        when="as EWC, in streams trained in one go: a stage that was only recalled is not protected",
    ),
    "agem": StrategyCard(
        title="Averaged gradient episodic memory (A-GEM)",
        idea="turn every step so that it does not raise the loss on a sample of the memory",
        stores="tokens and labels of the memory's studies",
        patient_data=True,
        uses_memory=True,
        compute="1.6× / 1.9×",
        when="the new must be learned fast and the old only must not get worse",
    ),
    "der": StrategyCard(
        title="Dark experience replay (DER)",
        idea="rehearse remembered studies with the answers that were once given to them",
        stores="tokens, labels and old logits of the memory's studies",
        patient_data=True,
        uses_memory=True,
        compute="1.3× / 1.6×",
        when="old labels are doubtful, or the champion's very scores should stay as they are",
    ),
    "derpp": StrategyCard(
        title="Dark experience replay with labels (DER++)",
        idea="rehearse remembered studies with their old answers and their labels",
        stores="tokens, labels and old logits of the memory's studies",
        patient_data=True,
        uses_memory=True,
        compute="1.5× / 1.5×",
        when="a memory may be kept and scores should stay near the champion's as well as right",
    ),
    "gdumb": StrategyCard(
        title="Greedy memory, dumb learner (GDumb)",
        idea="start from an untrained adapter and train on the memory alone",
        stores="tokens and labels of the memory's studies",
        patient_data=True,
        uses_memory=True,
        compute="1.1×",
        when="to check whether a strategy beats its own memory; or where the champion must not be built upon",
    ),
    "cumulative": StrategyCard(
        title="Cumulative",
        idea="train on all stages so far together",
        stores="tokens and labels of every study",
        patient_data=True,
        uses_memory=True,
        compute="2.6×, and more with every stage",
        when="as the ceiling to compare with; or where everything may be kept",
    ),
    "generative": StrategyCard(
        title="Generative replay",
        idea="rehearse embeddings drawn from a law fitted to each earlier stage",
        stores="for each stage a mean, a slope for each label, a covariance, and how often each set of labels occurs",
        patient_data=False,
        uses_memory=False,
        compute="1.7× / –",
        when="nothing of a patient may be kept and the adapter is a head; best there when classes are new",
    ),
    "replay_ewc": StrategyCard(
        title="Replay and EWC",
        idea="both together",
        stores="tokens and labels of the memory's studies, and two numbers for each trained weight and stage",
        patient_data=True,
        uses_memory=True,
        compute="1.6× / 1.7×",
        when="a new class arrives and the memory must be very small; elsewhere it held too much",
    ),
    "replay_lwf": StrategyCard(
        title="Replay and LwF",
        idea="both together",
        stores="tokens and labels of the memory's studies; during a stage the earlier answers",
        patient_data=True,
        uses_memory=True,
        compute="1.3× / 2.2×",
        when="the recommended default: it forgot least with every adapter, also where findings or classes are new",
    ),
}


def check_strategy(strategy: str) -> None:
    """Refuse a name that is not in the table.

    Raises:
        ValueError: with the names there are.
    """
    if strategy not in CARDS:
        raise ValueError(f"unknown strategy {strategy!r}; there are {', '.join(CARDS)}")


def as_markdown() -> str:
    """Write the table for a README."""
    lines = ["| strategy | idea | stores | of patients | time, head / LoRA | when |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{name}` | {card.idea} | {card.stores} | {'yes' if card.patient_data else 'no'} "
        f"| {card.compute} | {card.when} |"
        for name, card in CARDS.items()
    ]
    return "\n".join(lines)


def as_help() -> str:
    """Write one line a strategy, for a terminal."""
    width = max(map(len, CARDS))
    return "\n".join(f"{name:<{width}}  {card.idea}; use it: {card.when}" for name, card in CARDS.items())
