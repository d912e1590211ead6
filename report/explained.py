"""What the terms of a report mean; each text is shown where its term first stands."""

from typing import Literal

STATES = {
    "open": "Open: trials can still be run. The test targets are sealed, that is, encrypted with a key that "
    "neither the agent nor the training processes have.",
    "frozen": "Frozen: the selection is fixed and no trial can be added. The test targets are still sealed, that "
    "is, encrypted.",
    "attempted": "Attempted: the one evaluation on the test targets (the look) has started and counts as used.",
    "revealed": "Revealed: the selection was fixed first, then a separate process decrypted the sealed test "
    "targets and evaluated the selected model on them once. This evaluation is the session's look.",
    "void": "Void: the session's one evaluation on the test targets (its look) was used, but it gave no "
    "result.",
}
REPLAY = "A replay looks its trials up in a table of measurements. It has no test targets."
LOOK = (
    "That is, in this home directory models have been evaluated {times} on these test targets, in all sessions, under "
    "all names of the data and with near-duplicates of it. The more looks, the more a choice between sessions may be "
    "fitted to the test set."
)
METRICS = (
    "NDCG@10 and Recall@10: each user's held-out item is ranked among all items that the user has not had. "
    "Recall@10 is the share of users whose item is among the first 10, and NDCG@10 also counts how far up it "
    "stands (1 at rank 1, 0.5 at rank 3, 0 below rank 10)."
)
VERDICTS = (
    "± is the standard error over users, and z the difference divided by its standard error. A trial is kept, "
    "and becomes the incumbent of the next ones, if it beats the incumbent by more than noise, or is as good and "
    "simpler."
)
EFFECTS = (
    "A knob is one setting of the model or of its training. Every step is a change of one knob from one value to "
    "another. It is measured where a trial changed nothing else; otherwise it is estimated jointly from all "
    "trials, and each changed knob gets a share of the difference. The charts add the steps up, from the open "
    "circle to every tried value: ▲ is at least one standard error above it, ▼ below, and ■ within. Values are "
    "evenly spaced."
)
BASELINES = (
    "The baselines need no training: popularity ranks the items by their number of purchases or other events, "
    "item transitions by how often they followed the user's last item, and item co-occurrence by how often they "
    "were in one history with the user's last five items. All count the train part only; equal scores are "
    "ordered by popularity."
)


def state_note(state: Literal["open", "frozen", "attempted", "revealed", "void"], *, replay: bool) -> str:
    """What the state of a session means."""
    return REPLAY if replay else STATES[state]


def look_note(look: int) -> str:
    """What the number of a look means."""
    return LOOK.format(times="once" if look == 1 else f"{look} times")
