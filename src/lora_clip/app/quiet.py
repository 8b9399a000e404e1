"""Silence for messages that a user cannot act on; what a user can act on is an error of ours, or a line of the plan."""

from __future__ import annotations

import logging
import warnings

IRRELEVANT = (
    ".*does not have many workers.*",
    ".*predict returned None.*",
    ".*Couldn't infer the batch indices.*",
    ".*GPU available but not used.*",
    ".*is_pinned.*",
    ".*treespec, LeafSpec.*",
    ".*This DataLoader will create .* worker processes.*",
    ".*'pin_memory' argument is set as true but no accelerator.*",
)


def quiet_lightning() -> None:
    """Keep Lightning's own announcements and hints off the screen, in this process."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in IRRELEVANT:
        warnings.filterwarnings("ignore", message)
