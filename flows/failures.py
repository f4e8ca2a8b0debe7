"""The failures whose message is for the user: each names what is wrong and the cure."""

from registry.approvals import SignatureRefused

from continual.images import UnreadableImage
from flows.demo_data import DemoDataMissing
from flows.sources import SourceError
from registry.settings import SettingsError

__all__ = ["KNOWN"]

KNOWN: tuple[type[Exception], ...] = (
    SettingsError,
    SourceError,
    DemoDataMissing,
    SignatureRefused,
    UnreadableImage,
    FileNotFoundError,
    PermissionError,
    LookupError,
    ValueError,
)
