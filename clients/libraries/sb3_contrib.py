"""sb3-contrib: recurrent PPO, whose actor and critic have an LSTM each."""

import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates

WHAT = '`RecurrentPPO("MlpLstmPolicy", "CartPole-v1")` as in its documentation: two LSTMs of 256 units; '
WHAT += "training is a rollout of 128 steps and 10 epochs"


def build():
    player = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", seed=0, device="cpu")
    return player.policy, player


def forward(policy, player):
    """What the policy makes of 16 observations in a row, two episodes."""
    seen, starts = torch.linspace(-1, 1, 64).view(16, 4), torch.zeros(16)
    starts[7] = 1
    state = torch.zeros(1, 1, 256), torch.zeros(1, 1, 256)
    values, chances, entropy = policy.evaluate_actions(seen, torch.zeros(16), RNNStates(state, state), starts)
    return {"values": values, "chances": chances, "entropy": entropy}


def train(policy, player):
    player.learn(player.n_steps)
    return {"loss": torch.tensor(player.logger.name_to_value["train/loss"])}
