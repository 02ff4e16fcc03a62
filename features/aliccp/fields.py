"""Feature lists of Ali-CCP, and the column of an impression for each of their fields."""

import re
from collections.abc import Mapping
from operator import itemgetter

IDS: Mapping[str, str] = {
    "101": "user_id",
    "121": "user_profile",
    "122": "user_group",
    "124": "user_gender",
    "125": "user_age",
    "126": "user_consumption_1",
    "127": "user_consumption_2",
    "128": "user_working",
    "129": "user_geography",
    "205": "item_id",
    "206": "category_id",
    "207": "shop_id",
    "216": "brand_id",
    "301": "context",
}
"""Fields that a row has once or not at all."""
LISTS: Mapping[str, str] = {
    "109_14": "past_category_id",
    "110_14": "past_shop_id",
    "127_14": "past_brand_id",
    "150_14": "past_intention_id",
    "210": "intention_id",
    "508": "category_in_past",
    "509": "shop_in_past",
    "702": "brand_in_past",
    "853": "intention_in_past",
}
"""Fields of any number of ids: the user's actions of 14 days, the item's intentions, and combinations of the two."""
LIST_LENGTH = 100

Features = dict[str, list[int]]
"""Ids of a feature list by field."""

_FEATURE = re.compile(r"([^\x02]+)\x02([0-9]{1,18})\x03(-?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)")


def parse_features(text: str, number: str) -> Features:
    """Read a feature list: features separated by 0x01, each `field 0x02 id 0x03 value`.

    A value is the weight of an id in a list, and 1 elsewhere. Our reading: tables here pool ids unweighted, so a
    value only ranks its id. A long list keeps the LIST_LENGTH largest values, the largest last: an encoder keeps that
    end.

    Args:
        text: The feature list.
        number: Number of features that the list declares; a truncated list has fewer.

    Raises:
        ValueError: The text is not such a list.
    """
    found: dict[str, list[tuple[float, int]]] = {}
    parts = text.split("\x01") if text else []
    if str(len(parts)) != number:
        raise ValueError(f"{len(parts)} features, expected {number!r} as its feature_num says")
    for part in parts:
        feature = _FEATURE.fullmatch(part)
        if feature is None:
            raise ValueError(f"feature {part!r}, expected field 0x02 id 0x03 value")
        field, identity, value = feature.groups()
        found.setdefault(field, []).append((float(value), int(identity)))
    for features in found.values():
        if len(features) > 1:
            features.sort(key=itemgetter(0))  # stable: equals stay in the order of the list
    return {field: [identity for _, identity in features[-LIST_LENGTH:]] for field, features in found.items()}
