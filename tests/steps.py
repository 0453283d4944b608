"""Steps by hand: the code of `fit` around `run(state, batches, commit)`."""

from types import SimpleNamespace

from xpnet.training.access import Access, Commit


def taken(run, state, batches):
    """Take the steps, and return the last state."""
    holder = SimpleNamespace(_state=state)
    run(state, batches, Commit(Access(), holder))
    last = holder._state
    return last if type(last) is type(state) else type(state)._make(last)
