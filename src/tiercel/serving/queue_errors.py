"""What a near-realtime queue says to whom it does not score. Times are in nanoseconds unless their names say otherwise."""

from __future__ import annotations

from tiercel.errors import CapacityError, DeadlineError


def too_short(n_rows: int, needed_ns: int, left_ns: int) -> DeadlineError:
    """Not even an idle server could do it."""
    return DeadlineError(
        f"Expected at least {needed_ns / 1e6:.3f} ms for {n_rows} rows in the near-realtime tier, got "
        f"{left_ns / 1e6:.3f} ms. Ask for a longer deadline or fewer rows",
        budget_us=max(0, left_ns // 1000),
        needed_us=needed_ns // 1000,
    )


def no_room(why: str, wait_us: int) -> CapacityError:
    """It, or somebody who waits, would be late; there will be room after `wait_us`."""
    return CapacityError(
        f"The near-realtime tier has no room: {why}. Try again in {wait_us / 1000:.3f} ms", predicted_wait_us=wait_us
    )


def became_late(n_rows: int, needed_ns: int, left_ns: int) -> DeadlineError:
    """It was let in, and can no longer be done in time."""
    return DeadlineError(
        f"Expected {needed_ns / 1e6:.3f} ms for {n_rows} rows after waiting, got {left_ns / 1e6:.3f} ms: "
        f"the server became slower after the request was accepted. Try again",
        budget_us=max(0, left_ns // 1000),
        needed_us=needed_ns // 1000,
    )


def shut(why: str, budget_us: int) -> CapacityError:
    """No more requests are taken."""
    return CapacityError(
        f"The near-realtime tier takes no more requests here: {why}. Try another server", predicted_wait_us=budget_us
    )
