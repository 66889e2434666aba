"""Sequence to sequence of another length: numbers in digits to numbers in words.

The encoder, a GRU, reads one to six digits, packed; its last state is all that the decoder, a second GRU,
starts from. In training the decoder is given the true word before each word (teacher forcing); in use it is
given its own (greedy decoding) until it says the end. It is tested on numbers that it never saw, and is right
only if every word is: 40271 is forty thousand two hundred seventy one.

    python -m examples.seq2seq
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader
from tqdm import tqdm

import rnnfast
from examples import common

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
)
UNITS += "sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
WORDS = ["<pad>", "<start>", "<end>", *UNITS, *TENS, "hundred", "thousand"]
PAD, START, END = range(3)
NUMBER_OF = {word: k for k, word in enumerate(WORDS)}
DIGITS = 6


def in_words(n):
    """40271 → forty thousand two hundred seventy one, as a list."""
    if n < 20:
        return [UNITS[n]]
    for size, name in ((1000, ["thousand"]), (100, ["hundred"])):
        if n >= size:
            return in_words(n // size) + name + (in_words(n % size) if n % size else [])
    return [TENS[n // 10 - 2]] + ([UNITS[n % 10]] if n % 10 else [])


def collate(numbers):
    """Digits [B, S] padded with 0, their lengths [B], and words [B, U]: start, words, end, padding."""
    digits = [torch.tensor([int(digit) for digit in str(n)]) for n in numbers]
    words = [torch.tensor([START, *(NUMBER_OF[word] for word in in_words(n)), END]) for n in numbers]
    lengths = torch.tensor([len(d) for d in digits])
    return (
        pad_sequence(digits, batch_first=True),
        lengths,
        pad_sequence(words, batch_first=True, padding_value=PAD),
    )


class Translator(nn.Module):
    """Encoder and decoder, two GRUs that share nothing but a state [1, B, H]."""

    def __init__(self, hidden):
        super().__init__()
        self.digits = nn.Embedding(10, hidden)
        self.words = nn.Embedding(len(WORDS), hidden)
        self.encoder = rnnfast.GRU(hidden, hidden, batch_first=True)
        self.decoder = rnnfast.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, len(WORDS))

    def encode(self, digits, lengths):
        packed = pack_padded_sequence(self.digits(digits), lengths, batch_first=True, enforce_sorted=False)
        return self.encoder(packed)[1]

    def decode(self, words, state):
        """Scores of the next word [B, U, words] after each of words [B, U], and the state."""
        y, state = self.decoder(self.words(words), state)
        return self.head(y), state

    @torch.no_grad()
    def greedy(self, digits, lengths, longest=20):
        """Its own words [B, U], each the likeliest after the ones before; padding after the end."""
        state, said = self.encode(digits, lengths), []
        word = torch.full((len(digits), 1), START)
        ended = torch.zeros_like(word, dtype=torch.bool)
        while len(said) < longest and not ended.all():
            scores, state = self.decode(word, state)
            word = scores.argmax(2).masked_fill(ended, PAD)
            ended |= word == END
            said.append(word)
        return torch.cat(said, 1)


def loss_of(net, digits, lengths, words):
    """Teacher forcing: the words but the last go in, the words but the first should come out."""
    scores, _ = net.decode(words[:, :-1], net.encode(digits, lengths))
    return cross_entropy(scores.transpose(1, 2), words[:, 1:], ignore_index=PAD)


def text(words):
    """Numbered words up to the end, as a line."""
    words = words.tolist()
    return " ".join(WORDS[k] for k in words[: words.index(END)] if k > END) if END in words else "…"


def main(argv=None):
    parser = common.command_line(__doc__.splitlines()[0], epochs=12, batch=64, lr=3e-3, clip=1.0, hidden=128)
    parser.add_argument("--count", type=int, default=12000, help="numbers to learn")
    parser.add_argument("--test", type=int, default=1000, help="numbers to test")
    args = common.start(parser, argv)

    size = torch.randint(1, DIGITS + 1, (4 * (args.count + args.test),))  # as many short numbers as long ones
    drawn = (10.0**size * torch.rand(len(size), dtype=torch.float64)).long()
    numbers = drawn.unique()[torch.randperm(len(drawn.unique()))].tolist()
    test, learnt = numbers[: args.test], numbers[args.test : args.test + args.count]
    net = Translator(args.hidden)
    batches = DataLoader(learnt, args.batch, shuffle=True, collate_fn=collate)
    losses = common.fit(net, batches, loss_of, args, "GRU to GRU")

    said, truth = [], [" ".join(in_words(n)) for n in test]
    for digits, lengths, _ in tqdm(
        DataLoader(test, 100, collate_fn=collate), desc="greedy decoding", unit="batch"
    ):
        said += [text(words) for words in net.greedy(digits, lengths)]
    right = torch.tensor([a == b for a, b in zip(said, truth, strict=True)], dtype=torch.float64)
    length = torch.tensor([len(str(n)) for n in test])
    results = {
        "losses": losses,
        "exact_match": right.mean().item(),
        "exact_match_by_digits": {k: right[length == k].mean().item() for k in sorted(set(length.tolist()))},
        "examples": [
            {"number": n, "said": s, "true": t} for n, s, t in zip(test[:8], said, truth, strict=False)
        ],
    }

    figure, (curve, bars) = common.panels("Numbers to words, encoder and decoder", 2)
    curve.semilogy(range(1, len(losses) + 1), losses, "C3")
    by_digits = results["exact_match_by_digits"]
    bars.bar_label(
        bars.bar(list(by_digits), [100 * v for v in by_digits.values()], color="C0"), fmt="%.1f", fontsize=8
    )
    common.label(curve, "Training loss", "epoch", "cross entropy [nats a word]", legend=False)
    common.label(bars, f"{len(test)} unseen numbers", "digits in", "every word right [%]", legend=False)

    for example in results["examples"]:
        print(
            f"{example['number']:>7}  {example['said']}"
            + ("" if example["said"] == example["true"] else "   (wrong)")
        )
    print(f"every word right: {results['exact_match']:.1%} of {len(test)} unseen numbers")
    return common.save(args, "seq2seq", figure, results)


if __name__ == "__main__":
    main()
