"""`Carry.private`: updated in place by players, and kept at the server under central inference."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from private_state import ROWS, SLOTS, episodic_agent, random_row

from pronk.runtime.actor import Player, act_in_place
from pronk.runtime.inference import Batching, CentralPlayer, InferenceServer

KEY = jax.random.key(0)
WIDTH, ACTORS = 2, 5


def test_a_large_private_state_is_updated_in_place():
    """64 MB for all slots: what `act` receives is donated, and the result has the same memory."""
    agent = episodic_agent(ROWS)
    behaviour = agent.behaviour(None)
    player = Player(agent, KEY, np.arange(SLOTS, dtype=np.int32), SLOTS)
    assert player.carry.private["memory"].nbytes == SLOTS * 4 << 20
    for step in range(3):
        memory = player.carry.private["memory"]
        pointer = memory.unsafe_buffer_pointer()
        player.act(behaviour, random_row(step))
        assert memory.is_deleted()
        assert player.carry.private["memory"].unsafe_buffer_pointer() == pointer
    core, private = player.carry
    row, count = random_row(0), player.count
    acting = act_in_place.lower(agent.act, behaviour, core, private, row, KEY, count).compile()
    copies = [line for line in acting.as_text().splitlines() if " copy(" in line]
    assert not [line for line in copies if f"{SLOTS},{ROWS}" in line]
    written = np.asarray(player.carry.private["memory"][:, :4])
    assert (np.abs(written).max(axis=-1) > 0).tolist() == [[True] * 3 + [False]] * SLOTS


def central(server: InferenceServer, agent: Any, number: int) -> CentralPlayer:
    ids = np.arange(number * WIDTH, (number + 1) * WIDTH, dtype=np.int32)
    return CentralPlayer(server, agent, KEY, ids, ACTORS * WIDTH)


def serve(agent: Any, minimum: int) -> Any:
    behaviour = agent.behaviour(None)
    server = InferenceServer(agent, KEY, lambda: behaviour, Batching(minimum, minimum, 60.0))
    return contextlib.closing(server)


def memories(server: InferenceServer) -> np.ndarray:
    return np.array(server._private["memory"])


def test_each_slot_at_the_server_has_its_own_private_state():
    """As if each actor's player kept it: five requests are padded to six, and the padding changes
    no slot."""
    agent = episodic_agent(4)
    behaviour = agent.behaviour(None)
    with serve(agent, ACTORS) as server, ThreadPoolExecutor(ACTORS) as pool:
        players = [central(server, agent, i) for i in range(ACTORS)]
        alone = [Player(agent, KEY, np.arange(WIDTH), WIDTH) for _ in range(ACTORS)]
        for step in range(6):  # beyond the memory's length
            rows = [random_row(10 * step + i, WIDTH) for i in range(ACTORS)]
            answers = pool.map(lambda p, r: p.act(behaviour, r), players, rows)
            for player, row, answer in zip(alone, rows, answers, strict=True):
                expected = player.act(behaviour, row)
                np.testing.assert_array_equal(answer.action, expected.action)
                np.testing.assert_allclose(
                    answer.extras["oldest"], expected.extras["oldest"], atol=1e-6
                )
        assert server.batches == 6
        assert server._private["position"].tolist() == [6] * ACTORS * WIDTH
        expected = np.concatenate([player.carry.private["memory"] for player in alone])
        np.testing.assert_allclose(memories(server), expected, atol=1e-6)
        assert all(player.carry.private == () for player in players)


def test_an_answer_changes_only_the_slots_that_asked():
    agent = episodic_agent(4)
    behaviour = agent.behaviour(None)
    with serve(agent, 1) as server:
        players = [central(server, agent, i) for i in range(3)]
        for player in players:
            player.act(behaviour, random_row(1, WIDTH))
        before = memories(server)
        pointer = server._private["memory"].unsafe_buffer_pointer()
        players[1].act(behaviour, random_row(2, WIDTH))
        after = memories(server)
        assert server._private["memory"].unsafe_buffer_pointer() == pointer
        assert server._private["position"].tolist() == [1, 1, 2, 2, 1, 1]
        np.testing.assert_array_equal(after[[0, 1, 4, 5]], before[[0, 1, 4, 5]])
        assert (after[2:4] != before[2:4]).any()


def test_a_restarted_actor_gets_its_slots_with_a_new_private_state():
    agent = episodic_agent(4)
    behaviour = agent.behaviour(None)
    with serve(agent, 1) as server:
        players = [central(server, agent, i) for i in range(3)]
        for player in players:
            player.act(behaviour, random_row(1, WIDTH))
        before = memories(server)
        again = central(server, agent, 1)
        assert again._slots.tolist() == players[1]._slots.tolist() == [2, 3]
        assert server._private["position"].tolist() == [1, 1, 0, 0, 1, 1]
        assert not memories(server)[2:4].any()
        np.testing.assert_array_equal(memories(server)[[0, 1, 4, 5]], before[[0, 1, 4, 5]])
        again.act(behaviour, random_row(1, WIDTH))
        np.testing.assert_array_equal(memories(server), before)
