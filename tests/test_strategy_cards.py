"""The table of strategies for readers; that it names what exists is proved in test_strategies.py."""

import subprocess
import sys

from continual.strategy_cards import CARDS, as_help, as_markdown


def test_every_card_says_everything_in_one_line() -> None:
    for name, card in CARDS.items():
        for text in (card.title, card.idea, card.stores, card.compute, card.when):
            assert text, name
            assert "\n" not in text
            assert "|" not in text


def test_studies_are_kept_by_those_who_use_a_memory_and_by_nobody_else() -> None:
    assert [name for name, card in CARDS.items() if card.patient_data != card.uses_memory] == []


def test_the_renderings_name_every_strategy_once() -> None:
    lines = as_markdown().splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == list(CARDS)
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split()[0] for line in as_help().splitlines()] == list(CARDS)


def test_reading_the_table_loads_no_framework() -> None:
    code = "import sys, continual.strategy_cards; print(sorted({'torch', 'avalanche', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
