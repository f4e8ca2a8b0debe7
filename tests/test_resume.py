"""Killed at any moment, a training that is resumed ends in the very same adapter as one that nobody disturbed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from continual.checkpoints import SUFFIX, load_checkpoint
from continual.plans import AdaptationRun, RunState
from flows.ward import open_ward
from registry.settings import FILE_NAME

pytestmark = [
    pytest.mark.fault,
    # avalanche 0.6 imports a package that says at import that nobody maintains it; nothing of it is used
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
    pytest.mark.timeout(1800),
]

KILLS = {"replay": 12, "naive": 5, "ewc": 5, "si": 5, "agem": 5}
MODEL = "bright-left"
# imports Avalanche once, then trains in a process of its own whenever told to: importing takes longer than training
SERVER = """
    import os, sys
    from datetime import UTC, datetime
    from pathlib import Path
    import continual.learner, flows.ingesting, peft, pyarrow.ipc
    from continual.backbones import load_backbone
    from flows.adapting import Request, adapt_all
    from flows.ward import open_ward

    load_backbone("tiny", source="random", image_size=28)
    print("ready", flush=True)
    for line in sys.stdin:
        directory, plan_id, *strategies = line.split()
        if (child := os.fork()) == 0:
            request = Request(plan_id=plan_id.strip("-"), strategies=tuple(strategies), resume=True)
            told = []
            adapt_all(open_ward(Path(directory)), request, at=datetime(2026, 3, 3, tzinfo=UTC), tell=told.append)
            os._exit(7 if any("Nothing was cut short" in text for text in told) else 0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# interrupts are heard even where a shell started the tests in the background, which ignores them
COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from flows.command_line import main
main()
"""


class Trainer:
    """A process that trains in processes of its own, which may be killed."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def train(
        self, home: Path, plan_id: str = "-", *strategies: str, kill_after: float | Callable[[], bool] | None = None
    ) -> int:
        """Train, or resume what is unfinished; give the exit code, -9 if it was killed in time."""
        assert self.server.stdin is not None
        self.server.stdin.write(" ".join([str(home), plan_id, *strategies]) + "\n")
        self.server.stdin.flush()
        child = int(self.read())
        if kill_after is not None:
            if callable(kill_after):
                while not kill_after():
                    time.sleep(0.002)
            else:
                time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it had ended already
                os.kill(child, signal.SIGKILL)
        return int(self.read())

    def close(self) -> None:
        with self.server:  # closes its pipes and waits
            pass
        assert self.server.returncode == 0


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    trainer = Trainer()
    yield trainer
    trainer.close()


@pytest.fixture(scope="module")
def planned(small_treated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ward with a plan, whose recipe was changed to many short epochs: all its strategies are to be trained anew."""
    home = Path(shutil.copytree(small_treated_home, tmp_path_factory.mktemp("planned") / "ward"))
    settings = home / FILE_NAME
    settings.write_text(settings.read_text(encoding="utf-8").replace("epochs = 12", "epochs = 150"), encoding="utf-8")
    return home


def plan_of(home: Path) -> str:
    plan = open_ward(home).records.plans(MODEL)[-1]
    return plan.plan_id


def runs_of(home: Path) -> dict[str, AdaptationRun]:
    """Give the newest runs under the recipe in force, by strategy; what a stop-watch said is no part of them."""
    ward = open_ward(home)
    recipe = ward.settings.adaptation.recipe
    return {r.strategy: replace(r, seconds=0.0) for r in ward.records.runs(MODEL) if r.recipe == recipe}


def checkpoints_of(home: Path) -> list[Path]:
    """List whole checkpoints; a write that was killed may have left half of one beside them."""
    return sorted((home / "checkpoints").glob(f"*{SUFFIX}"))


def is_untouched(home: Path, planned: Path) -> bool:
    """Tell whether the champion is what it was, to the byte of its adapter."""
    (before, after) = (open_ward(folder).records.champion_history(MODEL) for folder in (planned, home))
    name = f"adapters/{before[-1].adapter_sha256}.safetensors"
    return before == after and (home / name).read_bytes() == (planned / name).read_bytes()


@pytest.mark.parametrize(("strategy", "wanted"), KILLS.items())
def test_killed_at_random_moments_and_resumed_it_is_the_same_adapter(
    trainer: Trainer, planned: Path, tmp_path: Path, strategy: str, wanted: int
) -> None:
    calm, plan_id = Path(shutil.copytree(planned, tmp_path / "calm")), plan_of(planned)
    began = time.perf_counter()
    assert trainer.train(calm, plan_id, strategy) == 0
    took = time.perf_counter() - began
    undisturbed = runs_of(calm)[strategy]
    assert undisturbed.state is RunState.FINISHED
    chance, kills, later = random.Random(strategy), 0, 0
    while kills < wanted:
        home = Path(shutil.copytree(planned, tmp_path / f"killed-{kills}"))
        words, code = (plan_id, strategy), -9
        for _ in range(4):
            code = trainer.train(home, *words, kill_after=chance.uniform(0.05, 1.0) * took)
            kills += code == -9
            later += any((found := load_checkpoint(path)) and found.standing for path in checkpoints_of(home))
            words = () if checkpoints_of(home) else (plan_id, strategy)  # killed before it wrote that it began
        if checkpoints_of(home) or not runs_of(home):  # also when it was killed with nothing left to do but tidy up
            assert trainer.train(home, *words) == 0
        assert runs_of(home)[strategy] == undisturbed
        assert is_untouched(home, planned)
        assert not list((home / "checkpoints").iterdir()), "nothing is left behind, not even by a write that was killed"
        shutil.rmtree(home)
    assert later >= wanted // 3, "hardly ever was there an epoch to go on from: the test proves nothing"


def test_what_was_announced_is_finished_though_it_never_began(trainer: Trainer, planned: Path, tmp_path: Path) -> None:
    """Killed in its first strategy, `adapt --resume` finishes the others too."""
    home, strategies = Path(shutil.copytree(planned, tmp_path / "ward")), ("naive", "ewc")
    assert trainer.train(home, plan_of(home), *strategies, kill_after=lambda: len(checkpoints_of(home)) == 2) == -9
    assert len(checkpoints_of(home)) == 2
    assert trainer.train(home) == 0
    assert {name: run.state for name, run in runs_of(home).items()} == dict.fromkeys(strategies, RunState.FINISHED)
    assert trainer.train(home) == 7


def command(home: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", COMMAND, "adapt", *words, "--dir", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def wait_for_epochs(home: Path, more_than: int) -> int:
    """Wait until a checkpoint tells of more epochs than given; a file half written is never seen."""
    give_up = time.monotonic() + 240
    while time.monotonic() < give_up:
        for path in checkpoints_of(home):
            found = load_checkpoint(path)
            if found and found.standing and found.standing.epoch > more_than:
                return found.standing.epoch
        time.sleep(0.005)
    raise AssertionError("no epoch was ever finished")


def test_the_command_survives_ctrl_c_and_kill_9(trainer: Trainer, planned: Path, tmp_path: Path) -> None:
    calm, home = (Path(shutil.copytree(planned, tmp_path / name)) for name in ("calm", "home"))
    assert trainer.train(calm, plan_of(planned), "replay") == 0
    stopped = command(home, plan_of(planned), "--strategy", "replay")
    epochs = wait_for_epochs(home, 0)
    stopped.send_signal(signal.SIGINT)
    assert "Interrupted" in stopped.communicate(timeout=60)[1]
    assert stopped.returncode == 130
    run = runs_of(home)["replay"]
    assert run.state is RunState.STOPPED
    assert run.reason.startswith("a person stopped it after epoch ")
    assert is_untouched(home, planned)
    killed = command(home, "--resume")
    wait_for_epochs(home, epochs)
    killed.kill()
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    told, aside = command(home, "--resume", "--json").communicate(timeout=240)
    assert json.loads(told)[0]["state"] == "FINISHED"
    assert "goes on: replay" in aside
    # a memory says when its studies came into it, and a command's clock is not ours
    ended, undisturbed = (replace(runs_of(folder)["replay"], memory_sha256="") for folder in (home, calm))
    assert ended == undisturbed
    assert is_untouched(home, planned)
