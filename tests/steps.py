"""Steps by hand: what `fit` does around `run(state, batches, commit)`."""

from xpnet.access import Access, Commit


def taken(run, state, batches):
    """Take the steps, and return the last state."""
    states = []
    run(state, batches, Commit(Access(), states.append))
    last = states[-1]
    return last if type(last) is type(state) else type(state)._make(last)
