"""Recurrent PPO: episodes that begin inside a rollout, in one call of the layer.

A cart balances a pole (gymnasium's CartPole), and an LSTM sees where both are, not how fast they move.
Rollouts are --steps long and --envs wide; a pole falls at any step of them, and there the state must begin
anew. Such sequences are often run step by step, for torch.nn.LSTM takes no resets. `resets=` makes one call
of them; the two are compared in their losses, their gradients and their time.

    python -m examples.recurrent_ppo
"""

import importlib.util
import time
from statistics import median

import gymnasium
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn.functional import mse_loss
from tqdm import tqdm

import rnnfast
from examples import common

SEEN = [0, 2]  # of CartPole's observation: the place of the cart and the angle of the pole, but no velocities
DISCOUNT, TRACE, CLIPPED, ENTROPY = 0.99, 0.95, 0.2, 0.01
REWARD = 0.05  # what a step counts: values are then of the size of 1


def in_one_call(lstm, x, state, starts):
    """x [T, B, I], state (h, c) [1, B, H], starts [T, B]: an episode begins here -> y [T, B, H], state."""
    return lstm(x, state, resets=starts)


def by_steps(lstm, x, state, starts):
    """The same, a call for each step."""
    y = []
    for x_t, start in zip(x, starts, strict=True):
        state = tuple(part.masked_fill(start[None, :, None], 0) for part in state)
        y_t, state = lstm(x_t[None], state)
        y.append(y_t)
    return torch.cat(y), state


def by_sb3_contrib(lstm, x, state, starts):
    """The same by sb3-contrib, which takes the rows of one sequence after those of another."""
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    T, B, _ = x.shape
    rows, starts = x.transpose(0, 1).flatten(0, 1), starts.T.flatten().float()
    y, state = RecurrentActorCriticPolicy._process_sequence(rows, state, starts, lstm)
    return y.unflatten(0, (B, T)).transpose(0, 1), state


class Agent(nn.Module):
    """An LSTM; of its output, scores of two actions [T, B, 2] and the value of what is to come [T, B]."""

    def __init__(self, hidden, run=in_one_call):
        super().__init__()
        self.lstm = rnnfast.LSTM(len(SEEN), hidden)
        self.actor, self.critic = nn.Linear(hidden, 2), nn.Linear(hidden, 1)
        self.run = run
        nn.init.zeros_(self.actor.weight)  # both actions are as likely at first

    def first_state(self, envs):
        return (torch.zeros(1, envs, self.lstm.hidden_size),) * 2

    def forward(self, x, state, starts):
        y, state = self.run(self.lstm, x, state, starts)
        return self.actor(y), self.critic(y).squeeze(2), state


class Player:
    """Plays on where it stopped, in several environments at once."""

    def __init__(self, envs, agent, seed):
        again = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
        self.envs = gymnasium.make_vec("CartPole-v1", envs, "sync", vector_kwargs=again)
        self.agent, self.state = agent, agent.first_state(envs)
        self.x = self._seen(self.envs.reset(seed=seed)[0])
        self.starts = torch.ones(envs, dtype=torch.bool)
        self.length, self.lengths = torch.zeros(envs), []  # of episodes that go on, and of those that ended

    @staticmethod
    def _seen(observation):
        return torch.from_numpy(observation[:, SEEN])

    @torch.no_grad()
    def rollout(self, steps):
        """What to learn from: the state that it begins from, and a dict of [T, B, ..]."""
        first, rows = self.state, []
        for _ in range(steps):
            scores, value, self.state = self.agent(self.x[None], self.state, self.starts[None])
            choice = Categorical(logits=scores[0])
            action = choice.sample()
            row = {"x": self.x, "starts": self.starts, "action": action, "value": value[0]}
            observation, _, fell, late, _ = self.envs.step(action.numpy())
            self.x = self._seen(observation)
            self.starts = torch.from_numpy(fell | late)  # late: after 500 steps
            rows.append(row | {"chance": choice.log_prob(action), "ends": self.starts})
            self.length += 1
            self.lengths += self.length[self.starts].tolist()
            self.length[self.starts] = 0
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        after = self.agent(self.x[None], self.state, self.starts[None])[1][0]
        batch["advantage"] = advantages(batch["value"], after, batch["ends"])
        return first, batch


def advantages(value, after, ends):
    """By how much things went better than the critic thought [T, B], over all the steps to come (GAE)."""
    found, ahead = torch.empty_like(value), torch.zeros_like(after)
    for t in reversed(range(len(value))):
        goes_on = (~ends[t]).float()
        ahead = REWARD + DISCOUNT * goes_on * (after + TRACE * ahead) - value[t]
        found[t], after = ahead, value[t]
    return found


def loss_of(agent, first, batch):
    """PPO's loss: the clipped gain of the actor, the error of the critic, and a little for entropy."""
    scores, value, _ = agent(batch["x"], first, batch["starts"])
    choice, advantage = Categorical(logits=scores), batch["advantage"]
    ratio = (choice.log_prob(batch["action"]) - batch["chance"]).exp()
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = torch.minimum(ratio * scaled, ratio.clamp(1 - CLIPPED, 1 + CLIPPED) * scaled)
    error = mse_loss(value, batch["value"] + advantage)
    return 0.5 * error - gain.mean() - ENTROPY * choice.entropy().mean()


def gradients(agent, first, batch):
    """The loss and its gradients, in order of the parameters."""
    loss = loss_of(agent, first, batch)
    return [loss.detach(), *torch.autograd.grad(loss, list(agent.parameters()))]


def compare(agent, first, batch, rounds):
    """The ways to run a rollout: milliseconds of a loss with its gradients, and by how much these differ."""
    ways = {"rnnfast, one call": (rnnfast.LSTM, in_one_call), "torch.nn, by steps": (nn.LSTM, by_steps)}
    if importlib.util.find_spec("sb3_contrib"):
        ways["torch.nn, by sb3-contrib"] = (nn.LSTM, by_sb3_contrib)
    agents = {}
    for name, (layer, run) in ways.items():
        agents[name] = Agent(agent.lstm.hidden_size, run)
        agents[name].lstm = layer(len(SEEN), agent.lstm.hidden_size)
        agents[name].load_state_dict(agent.state_dict())

    ours, *others = [gradients(one, first, batch) for one in agents.values()]
    for other in others:
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
    seconds = {name: [] for name in agents}
    for _ in tqdm(range(rounds), desc="timing, in turns", unit="round"):
        for name, one in agents.items():
            start = time.perf_counter()
            gradients(one, first, batch)
            seconds[name].append(time.perf_counter() - start)
    return {
        "milliseconds": {name: 1e3 * median(each) for name, each in seconds.items()},
        "loss": ours[0].item(),
        "largest_difference": max(
            (a - b).abs().max().item() for other in others for a, b in zip(ours, other, strict=True)
        ),
        "episodes_that_begin_inside": batch["starts"][1:].sum().item(),
    }


def learn(agent, player, args):
    """Trains. Returns, for each rollout, the mean loss and the mean length of the last 20 episodes so far."""
    optimizer = torch.optim.Adam(agent.parameters(), args.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.1, args.updates)
    losses, lengths = [], []
    with tqdm(range(args.updates), desc="recurrent PPO", unit="rollout") as bar:
        for _ in bar:
            first, batch = player.rollout(args.steps)
            batches = [(first, batch)] * args.epochs
            losses.append(common.train_epoch(agent, batches, loss_of, optimizer, args.clip))
            schedule.step()
            lengths.append(sum(player.lengths[-20:]) / max(1, len(player.lengths[-20:])))
            bar.set_postfix(steps=f"{lengths[-1]:.0f}")
    return losses, lengths


def main(argv=None):
    parser = common.command_line(__doc__.splitlines()[0], epochs=8, lr=2e-3, clip=0.5, hidden=128)
    parser.add_argument("--updates", type=int, default=200, help="rollouts to learn from")
    parser.add_argument("--steps", type=int, default=128, help="steps of a rollout")
    parser.add_argument("--envs", type=int, default=4, help="environments that are played at once")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of timing")
    args = common.start(parser, argv)

    agent = Agent(args.hidden)
    player = Player(args.envs, agent, args.seed)
    early = player.rollout(args.steps)  # while poles still fall
    results = {"comparison": compare(agent, *early, args.rounds)}
    results["losses"], results["lengths"] = learn(agent, player, args)

    figure, (curve, inside, bars) = common.panels("CartPole without velocities: recurrent PPO", 3)
    played = [(k + 1) * args.steps * args.envs for k in range(args.updates)]
    curve.plot(played, results["lengths"], "C3")
    for b in range(args.envs):
        angle, starts = early[1]["x"][:, b, 1], early[1]["starts"][:, b].nonzero().flatten()
        inside.plot(range(1, args.steps + 1), angle + b, "0.4", lw=1)
        inside.plot(starts + 1, angle[starts] + b, "C3.", label="the state begins anew" if b == 0 else None)
    found = results["comparison"]
    times = found["milliseconds"]
    bars.bar_label(bars.barh(list(times), times.values(), color="C0"), fmt="%.1f", fontsize=8)
    common.label(curve, "Learning", "steps played", "length of an episode [steps]", legend=False)
    common.label(inside, "One call: the first rollout", "time step t", "angles, pole above pole [rad]")
    common.label(bars, "A loss and its gradients", "time [ms]", "", legend=False)

    begin = found["episodes_that_begin_inside"]
    print(f"{args.steps} steps of {args.envs} environments, {begin} episodes begin inside")
    for name, ms in times.items():
        print(f"{name:<26}{ms:>8.2f} ms{ms / times['rnnfast, one call']:>8.1f} times one call")
    print(f"losses and gradients differ by at most {found['largest_difference']:.0e}")
    print(f"length of an episode: {results['lengths'][-1]:.0f} steps, of 500")
    return common.save(args, "recurrent_ppo", figure, results)


if __name__ == "__main__":
    main()
