"""What a wording or an instance must pass to stand in a contrastive set."""

from coin_jax.curation.filters.contamination import Contamination, Hit
from coin_jax.curation.filters.near_duplicates import DuplicateFinder
from coin_jax.curation.filters.wordings import (
    Candidate,
    Encode,
    Fault,
    wording_fault,
    wording_faults,
)

__all__ = [
    "INSTANCE_FILTERS",
    "WORDING_FILTERS",
    "Candidate",
    "Contamination",
    "DuplicateFinder",
    "Encode",
    "Fault",
    "Hit",
    "wording_fault",
    "wording_faults",
]

WORDING_FILTERS = {
    "placeholders": "placeholders lost, added or malformed",
    "options": "the place or the list of options changed",
    "answer leak": "names the answer, which the original does not",
    "label words": "answers or other frozen words lost or added",
    "length": "much longer or shorter than the original",
    "language": "in another language",
    "near-copy": "hardly different from the original",
    "similarity": "means something else",
    "near-duplicate": "hardly different from another wording of the task",
    "evaluation prompt": "stands in an evaluation suite",
}
"""Filters of wordings, in the order in which they are asked: the first fault counts."""

INSTANCE_FILTERS = {
    "near-duplicate": "repeats an earlier instance of the task",
    "evaluation instance": "stands in an evaluation suite",
}
"""Filters of instances."""
