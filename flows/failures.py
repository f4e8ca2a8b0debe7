"""The failures whose message is for the user: each names what is wrong and the cure."""

from continual.feature_store import FeaturesMissing
from continual.images import UnreadableImage
from flows.demo_data import DemoDataMissing
from flows.ward import StepRefused
from registry.model_versions import VersionsUnavailable

#: Our own refusals are ValueErrors; the rest names what could not be reached, found or read.
KNOWN: tuple[type[Exception], ...] = (
    DemoDataMissing,
    StepRefused,
    UnreadableImage,
    VersionsUnavailable,
    FileNotFoundError,
    PermissionError,
    FeaturesMissing,
    ValueError,
)
