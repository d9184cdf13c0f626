import dataclasses

import jax

from zsjax.config import Config
from zsjax.parallel.mesh import make_mesh
from zsjax.rl.steering import Steering
from zsjax.search import Mixed
from zsjax.search.engine import Engine
from zsjax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Fixed(Engine):
    """An engine that nothing can be set on, as the simulator is one."""

    def search(self, queries, contexts, *, k):
        return [[] for _ in queries]


def settings_of(engine):
    steering = Steering(Config(), make_mesh({"data": -1}), engine=engine)
    state = steering.start(TrainState(step=0, params={}, opt_state=(), key=jax.random.key_data(jax.random.key(0))))
    return steering.at(Config().train.steps - 1, state)


def test_only_an_engine_that_mixes_two_is_given_a_share():
    assert settings_of(Fixed()).real_share is None
    mixed = Mixed(Fixed(), Fixed())
    assert settings_of(mixed).real_share == mixed.share > 0
