"""Small synthetic worlds."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest

from features.synthetic.logs import SCHEMA, SyntheticConfig, make_day
from features.synthetic.outcomes import SCENES, Impressions
from features.synthetic.world import user_latents, video_latents

FIRST_DAY = date(2026, 3, 1)
SMALL = SyntheticConfig(
    seed=11,
    first_day=FIRST_DAY,
    rows_per_day=3000,
    num_users=200,
    num_videos=300,
    num_authors=40,
    new_users_per_day=20,
    new_videos_per_day=15,
    history_length=8,
    files_per_day=3,
    row_group_rows=400,
)
HISTORY = [name for name in SCHEMA.names if name.startswith("history_")]
# Label and space of each truth column; "valid" and "ratio" are made of play_ms.
TASKS = {
    "true_ctr": ("click", None),
    "true_vtr": ("valid", None),
    "true_vcr": ("ratio", "played"),
    "true_shr": ("share", "played"),
    "true_cmr": ("comment", "played"),
    "true_cart": ("cart", "click"),
    "true_wish": ("wish", "click"),
    "true_buy": ("buy", "click"),
    "true_follow": ("follow", "played"),
    "true_favourite": ("favourite", "played"),
    "true_rating": ("rating", "rated"),
}


def day_of(index: int) -> date:
    return FIRST_DAY + timedelta(days=index)


@pytest.fixture(scope="module")
def day_two() -> pa.Table:
    return make_day(SMALL, day_of(2))


@pytest.fixture(scope="module")
def shown() -> Impressions:
    """2,000 pairs of a user and a video in the feed, in the first slot of a phone."""
    ids = np.arange(2000)
    zeros = np.zeros_like(ids)
    return Impressions(
        users=user_latents(SMALL, ids % 200),
        videos=video_latents(SMALL, ids % 299),
        day_index=0,
        hour=zeros + 12,
        scene=zeros + SCENES.index("feed_click"),
        device=zeros,
        slot=zeros,
    )
