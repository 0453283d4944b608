"""Models within models: the outer one holds the weights, the inner one goes on predicting with them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidValueError
from ..layers import Chain

__all__ = ["as_layer", "borrow", "give_back", "pass_on", "refuse_training"]

Session = Any  # `training.session.Session`, whose module imports this one

_chains: weakref.WeakKeyDictionary[Session, Chain] = weakref.WeakKeyDictionary()


def as_layer(session: Session, name: str | None) -> Chain:
    """Return the layers of a model as one layer, always the same; a model built with it takes the weights over."""
    chain = _chains.get(session)
    if chain is None or [*map(id, chain.layers)] != [*map(id, session.layers)]:
        chain = _chains[session] = Chain(session.layers, name=name)
        chain.lender = weakref.ref(session)
    return chain


def give_back(session: Session) -> None:
    """Let the layers have the weights of their model, which is deleted, or gives them to another model."""
    network, state = session.__dict__.get("_network"), session.__dict__.get("_state")
    if network is not None and state is not None:
        flats = session.flats()
        for unit in network.units:
            unit.layer.leave(session, flats, unit.key)


def borrow(session: Session) -> None:
    """Copy the weights of layers that another model holds, or take them back if that one is deleted."""
    layers = session.layers
    owner = layers[0].owner if layers else session
    if owner is session or not (session.laid_out or (owner is not None and all(layer.built for layer in layers))):
        return
    if not session.laid_out:
        session.prepare(layers[0].input_shape, join=False)
    if owner is None:
        for layer in layers:
            layer.join(session)
    session.take_weights()


def pass_on(session: Session, values: Mapping[str, Any]) -> bool:
    """Set weights by path in the other model that holds them; return whether there is one."""
    owner = session.layers[0].owner
    if owner is None or owner is session:
        return False
    layers = {str(layer.name): layer for layer in session.layers}
    split = [(path.partition("/"), value) for path, value in values.items()]
    owner.assign({f"{owner.network.key(layers[key])}/{name}": value for (key, _, name), value in split})
    return True


def refuse_training(session: Session) -> None:
    """Raise if another model holds the weights."""
    owner = session.layers[0].owner
    if owner is not None and owner is not session:
        names = [layer.name for layer in session.layers]
        raise InvalidValueError(
            f"the layers of this model are part of another model, which must be trained instead; got {names}"
        )
