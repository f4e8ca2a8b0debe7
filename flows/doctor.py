"""The doctor: is this installation, and this ward, fit to be relied on? Looks only, changes nothing."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from continual.backbone_files import PACKAGED, WeightsRefused, weights_sha256
from continual.files import content_sha256
from monitor.telemetry import PERMISSION, switches_left_on
from registry.records import Records, RecordsError, open_records, wal_is_safe
from registry.settings import Settings, weights_path

#: Versions that were tried together: at least the first, below the second.
TRIED: dict[str, tuple[str, str]] = {
    "alibi-detect": ("0.13", "0.14"),
    "avalanche-lib": ("0.6", "0.7"),
    "evidently": ("0.7.20", "0.8"),
    "fastapi": ("0.139", "0.155"),
    "mlflow": ("3.17", "3.19"),
    "pillow": ("12", ""),
    "prefect": ("3.8", "4"),
    "pydicom": ("3.0.1", ""),
    "scikit-learn": ("1.6", "1.8"),
    "sqlalchemy": ("2.0", "2.1"),
    "sqlmodel": ("0.0.30", ""),
    "streamlit": ("1.54", ""),
    "timm": ("1.0.15", ""),
    "torch": ("2.14", "2.15"),
}
FREE_GIGABYTES = 1.0
WAIT_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; ``cure`` says what to do when it is not ok."""

    name: str
    ok: bool
    text: str
    cure: str = ""


def examine(settings: Settings | None) -> list[Finding]:
    """Examine the installation and, with settings, the ward that they describe."""
    findings = [_python(), *_packages(), _telemetry(), _licences(settings), _sqlite(), _chromium()]
    if settings is None:
        cure = "run `wardround init --dir DIR`, or name the folder with --dir"
        return [
            *findings,
            Finding(name="settings", ok=True, text="no wardround.toml here: only the installation", cure=cure),
        ]
    return [*findings, _disk(settings.directory), *_weights(settings), *_database(settings), _tracking(settings)]


def _python() -> Finding:
    found = sys.version_info[:2]
    return Finding(
        name="Python",
        ok=(3, 11) <= found < (3, 13),
        text=".".join(map(str, sys.version_info[:3])),
        cure="install Python 3.11 or 3.12; `uv run` finds or fetches one",
    )


def _packages() -> Iterator[Finding]:
    for name, (least, below) in TRIED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name=name, ok=False, text="not installed", cure="run `uv sync`")
            continue
        fits = _numbers(found) >= _numbers(least) and (not below or _numbers(found) < _numbers(below))
        wanted = f"{least} or later" + (f", below {below}" if below else "")
        yield Finding(name=name, ok=fits, text=found, cure=f"{wanted} is what was tried; run `uv sync`")


def _numbers(text: str) -> tuple[int, ...]:
    """Read 2.14.1+cpu as (2, 14, 1), for comparing."""
    parts = (part for part in text.split("+", maxsplit=1)[0].split("."))
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


def _telemetry() -> Finding:
    left_on = switches_left_on()
    return Finding(
        name="telemetry",
        ok=not left_on,
        text="every switch is off" if not left_on else f"not switched off: {', '.join(sorted(left_on))}",
        cure=f"unset {PERMISSION}, which allows it",
    )


def _licences(settings: Settings | None) -> Finding:
    used = settings is None or settings.drift.alibi_detect
    text = "alibi-detect (Business Source License 1.1: production use needs a licence from its maker)"
    return Finding(
        name="licences",
        ok=True,
        text=f"{text}; `alibi_detect = false` under [drift] removes it" if used else f"{text} is switched off",
    )


def _sqlite() -> Finding:
    safe = wal_is_safe(sqlite3.sqlite_version_info)
    text = (
        "has the WAL fix" if safe else "may corrupt a write-ahead log, so the slower rollback journal is used instead"
    )
    return Finding(name="SQLite", ok=True, text=f"{sqlite3.sqlite_version} {text}")


def _chromium() -> Finding:
    path = shutil.which("chromium")
    return Finding(name="chromium", ok=True, text=path or "not installed; only the browser tests need it")


def _disk(directory: Path) -> Finding:
    free = shutil.disk_usage(directory).free / 1e9
    return Finding(
        name="disk",
        ok=free >= FREE_GIGABYTES,
        text=f"{free:.1f} GB free in {directory}",
        cure=f"free at least {FREE_GIGABYTES:g} GB; features take about 50 kB an image",
    )


def _weights(settings: Settings) -> Iterator[Finding]:
    """Look at the very bytes: what is there is hashed, and compared with what is expected."""
    for model, chosen in settings.models.items():
        backbone, name = chosen.backbone, f"backbone of {model}"
        text = f"{backbone.name} from {backbone.source}, {backbone.image_size} pixels"
        try:
            if backbone.source in PACKAGED:
                PACKAGED[backbone.source].find()
            sha256 = weights_sha256(
                backbone.name,
                source=backbone.source,
                path=weights_path(settings, backbone),
                loading=replace(backbone.loading, download=False),  # a doctor fetches nothing
            )
        except WeightsRefused as error:
            cure = f"{error}; see [models.{model}.backbone] in wardround.toml"
            yield Finding(name=name, ok=False, text=text, cure=cure)
            continue
        pinned = backbone.sha256 or backbone.source in PACKAGED
        known = "as expected" if pinned else "not pinned: any file is taken, sha256 in the settings pins it"
        shown = sha256 if not pinned else f"{sha256[:12]}…"
        yield Finding(name=name, ok=True, text=f"{text}, sha256 {shown} ({known})")


def _last_backbone(records: Records, model: str, settings: Settings) -> Finding | None:
    """Show the card that the last run stood on."""
    cards = [run.backbone for run in records.runs(model) if run.backbone is not None]
    if not cards:
        return None
    card, now = cards[-1], settings.model(model).backbone
    text = (
        f"{card.name} from {card.source}, sha256 {card.sha256[:12]}…, {card.parameters / 1e6:.1f} million parameters, "
        f"{card.width} numbers an image, {card.library}, licence: {card.licence}"
    )
    changed = f"the settings now name {now.name} from {now.source}: adapters do not carry over"
    same = (card.name, card.source, card.image_size) == (now.name, now.source, now.image_size)
    return Finding(
        name=f"last run of {model}",
        ok=True,
        text=text if same else f"{text}; {changed}",
    )


def _database(settings: Settings) -> Iterator[Finding]:
    path = _sqlite_file(settings.database_url)
    if path is not None:
        finding = _file_integrity("database", path, "restore the last backup")
        yield finding
        if not finding.ok or not path.exists():
            return
    try:
        records = open_records(settings.database_url)
    except RecordsError as error:
        yield Finding(name="schema", ok=False, text=str(error), cure="see the message")
        return
    yield Finding(name="schema", ok=True, text="is the one that this version writes")
    chain = records.verify_events()
    text = f"{chain.n} events hold" if chain.ok else f"broken at event {chain.bad_row}: {chain.reason}"
    yield Finding(
        name="chain of events", ok=chain.ok, text=text, cure="keep this file as evidence, restore the last backup"
    )
    for model in settings.models:
        yield _conservation(records, model)
        yield _champion(records, settings, model)
        if (stood_on := _last_backbone(records, model, settings)) is not None:
            yield stood_on


def _sqlite_file(url: str) -> Path | None:
    return Path(url.removeprefix("sqlite:///").partition("?")[0]) if url.startswith("sqlite:///") else None


def _file_integrity(name: str, path: Path, cure: str) -> Finding:
    """Let SQLite check a file without creating or changing it; not a query of ours, so not in the records."""
    if not path.exists():
        return Finding(name=name, ok=True, text=f"{path} is not there yet; the first command creates it")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=WAIT_SECONDS)
        try:
            answers = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
            orphans = len(connection.execute("PRAGMA foreign_key_check").fetchall())
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Finding(name=name, ok=False, text=f"{path}: {error}", cure=cure)
    text = "holds" if answers == ["ok"] else answers[0].splitlines()[-1]
    if orphans:
        text = f"{orphans} rows point at rows that are gone"
    return Finding(name=name, ok=answers == ["ok"] and not orphans, text=f"{path} {text}", cure=cure)


def _conservation(records: Records, model: str) -> Finding:
    """A summary refuses to be made when its parts do not add up to what was received."""
    name = f"ingest of {model}"
    try:
        batches = records.batches(model)
    except ValueError as error:
        return Finding(
            name=name, ok=False, text=str(error), cure="keep this database as evidence, restore the last backup"
        )
    received, refused = (sum(getattr(batch, part) for batch in batches) for part in ("received", "quarantined"))
    text = f"{received} rows of {len(batches)} exports, each accepted, known, in conflict or in quarantine ({refused})"
    return Finding(name=name, ok=True, text=text)


def _champion(records: Records, settings: Settings, model: str) -> Finding:
    champion, name = records.champion(model), f"champion of {model}"
    if champion is None:
        return Finding(name=name, ok=True, text="none yet")
    path = settings.directory / "adapters" / f"{champion.adapter_sha256}.safetensors"
    whole = path.is_file() and content_sha256(path) == champion.adapter_sha256
    text = f"version {champion.version}, adapter {champion.adapter_sha256[:12]}"
    cure = f"restore {path.name} from the backup; until then roll back: `wardround rollback --model {model}`"
    return Finding(name=name, ok=whole, text=text if whole else f"{text}: file missing or changed", cure=cure)


def _tracking(settings: Settings) -> Finding:
    uri, name = settings.tracking_uri, "MLflow store"
    path = _sqlite_file(uri)
    if path is not None:
        return _file_integrity(
            name, path, "restore the last backup; then the champion's alias is set again from our records"
        )
    if urlsplit(uri).scheme not in {"http", "https"}:
        return Finding(name=name, ok=True, text=f"{uri} was not checked from here")
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=WAIT_SECONDS) as answer:
            return Finding(
                name=name, ok=answer.status == 200, text=f"{uri} answers {answer.status}", cure="look at its log"
            )
    except (URLError, OSError) as error:
        return Finding(
            name=name, ok=False, text=f"{uri}: {error}", cure="start the MLflow server, or correct `tracking`"
        )
