"""A prepared dataset as text: what the filters removed, and the profile of its train part."""

from datetime import UTC, datetime

from ..data.prepared import ALL, FILE, MIN_EVENTS, Manifest


def filter_lines(manifest: Manifest) -> list[str]:
    """What the k-core filter and the truncation to the last events removed; older manifests lack the former."""
    options, before = manifest.options, manifest.before_core
    lines = []
    if before:
        changes = ", ".join(
            _change(*counts)
            for counts in (
                (before.users, manifest.num_users, "users"),
                (before.items, manifest.num_items, "items"),
                (before.interactions, manifest.num_interactions_before_cut, "interactions"),
            )
        )
        rule = f"users with fewer than {max(options.k_core, MIN_EVENTS)} events"
        rule += f" and items with fewer than {options.k_core}" if options.k_core > 1 else ""
        lines.append(f"{options.k_core}-core: {changes} (removes {rule}, repeatedly; --k-core changes this)")
    cut = _change(manifest.num_interactions_before_cut, manifest.num_interactions, "interactions")
    lines.append(f"last {options.max_events} events per user: {cut}")
    return lines


def split_lines(manifest: Manifest) -> list[str]:
    """Which split the dataset has, and with --ties random what became of the ties."""
    if manifest.options.ties == FILE:
        return [split_line(manifest)]
    drawn = "ties: the order of a user's events at one time was drawn at random (--ties random)"
    none = "ties: no user has two events at one time, so --ties random changed nothing but the name"
    return [split_line(manifest), drawn if manifest.has_random_ties else none]


def split_line(manifest: Manifest) -> str:
    """Which split the dataset has and, of a split by time, its cuts and who is ranked; nothing about the test part."""
    cuts = manifest.time_split
    if cuts is None:
        split = "split: leave-one-out (the last event of each user is test, the second last validation)"
        return split if manifest.options.k_core_on == ALL else f"{split}; the k-core and all counts are without test"
    return (
        f"split: time, hold-out {manifest.options.holdout}: validation from {_moment(cuts.valid_from)}, test (sealed) "
        f"from {_moment(cuts.test_from)}; {cuts.num_ranked:,} of {manifest.num_users:,} users are ranked in "
        "validation; all counts are of the events before the test part"
    )


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def profile_lines(manifest: Manifest) -> list[str]:
    """The profile, under a heading that names the events it describes."""
    heading = "train part only, without the last two events of each user (validation and test):"
    if manifest.time_split:
        heading = "train part only, without the events from the start of validation on:"
    return [heading, *(f"  {name:<20} {value}" for name, value in manifest.stated_profile.items())]


def _change(before: int, after: int, noun: str) -> str:
    return f"{noun} {after:,} (all kept)" if before == after else f"{noun} {before:,} -> {after:,}"
