"""The named shapes that are timed, each with the reason why it is there."""

from __future__ import annotations

from rnnfast.bench.case import Case

# 64 lengths from 400 down to 100 with mean 260: 0.65 of the padded rectangle is real.
LENGTHS = tuple(round(400 - 300 * (row / 63) ** 1.143) for row in range(64))
INFERENCE = ("inference",)

ONE_ROW = "one sequence: the weights are read again every step"
SOME_ROWS = "a small batch: between reading weights and computing"
MANY_ROWS = "a training batch: the products dominate"
STREAM = "one step of a stream, state passed in: the cost of a call"
FROZEN = "weights packed beforehand, as onnxruntime has them"
CELL = "a cell called by the user's own loop"
# where torch is told that less than float32 will do
ASKED = {"tf32": "at least as exact as TF32's", "bf16": "of bfloat16, as OpenVINO's unless told otherwise"}

# (B, I = H) of the rows that every cell has and the geometric means are taken over: T = 100, float32.
REQUIRED = {
    (1, 64): "one small sequence: overhead dominates",
    (1, 128): ONE_ROW,
    (1, 256): ONE_ROW + ", 0.25 to 1 MB",
    (1, 512): ONE_ROW + ", 1 to 4 MB",
    (1, 1024): ONE_ROW + ", 4 to 16 MB",
    (16, 256): SOME_ROWS,
    (64, 128): MANY_ROWS + ", short sums",
    (64, 256): MANY_ROWS,
    (64, 512): MANY_ROWS + ", large weights",
    (128, 1024): "a large model: nothing but products",
}
QUICK = {"lstm-b1-h64", "gru-b1-h64", "rnn-b1-h256", "lstm-b16-h256", "lstmcell-b1-h128"}

CASES = [
    *(
        Case(name, reason, cell, *size, required=True, quick=name in QUICK)
        for cell in ("LSTM", "GRU", "RNN")
        for size, reason in REQUIRED.items()
        for name in ["{}-b{}-h{}".format(cell.lower(), *size)]
    ),
    #
    Case("lstm-b16-i40-h128", "few features a step (speech, sensors): I < H", "LSTM", 16, 128, inputs=40),
    Case("gru-b16-i512-h128", "wide embeddings: I > H, the projection dominates", "GRU", 16, 128, inputs=512),
    Case("lstm-b1-h50", "odd H: no multiple of any register", "LSTM", 1, 50),
    Case("gru-b16-h100", "odd H: no multiple of any register", "GRU", 16, 100),
    Case("lstm-b32-h300", "odd H of the examples", "LSTM", 32, 300),
    Case("lstm-b16-h300-l3", "three layers, as in the demo", "LSTM", 16, 300, layers=3),
    Case("gru-b1-h128-l3", "three layers, one sequence", "GRU", 1, 128, layers=3),
    Case("lstm-b1-h128-d2", "both directions, one sequence", "LSTM", 1, 128, directions=2),
    Case("gru-b16-h256-d2", "both directions, a small batch", "GRU", 16, 256, directions=2),
    Case("lstm-t1-b64-h256", "one step of many rows: nothing to amortise packing", "LSTM", 64, 256, steps=1),
    Case("lstm-t10-b1-h128", "a short sequence: packing hardly pays", "LSTM", 1, 128, steps=10, quick=True),
    Case("lstm-t1000-b1-h64", "a long sequence, few units: time to meet at every step", "LSTM", 1, 64, 1000),
    Case("lstm-t1000-b1-h128", "a long sequence", "LSTM", 1, 128, steps=1000),
    Case("gru-t1000-b16-h64", "a long sequence, a small batch", "GRU", 16, 64, steps=1000),
    Case("lstm-t10000-b1-h64", "a very long sequence", "LSTM", 1, 64, steps=10000),
    Case("lstm-b1-h128-fresh", "nothing kept from the last call helps", "LSTM", 1, 128, fresh_weights=True),
    Case("lstm-packed", "lengths that differ, 0.65 full", "LSTM", 64, 128, 400, lengths=LENGTHS),
    Case("gru-packed", "lengths that differ, 0.65 full", "GRU", 64, 128, 400, lengths=LENGTHS),
    *(
        Case(f"lstm-stream-h{hidden}", STREAM, "LSTM", 1, hidden, 1, modes=INFERENCE, quick=hidden == 128)
        for hidden in (32, 64, 128, 256, 512)
    ),
    *(Case(f"gru-stream-h{hidden}", STREAM, "GRU", 1, hidden, 1, modes=INFERENCE) for hidden in (32, 256)),
    Case("rnn-stream-h128", STREAM, "RNN", 1, 128, 1, modes=INFERENCE),
    *(
        Case(
            f"{name}-frozen",
            FROZEN,
            cell,
            batch,
            hidden,
            steps,
            modes=INFERENCE,
            frozen=True,
            quick=hidden == 64,
        )  # fmt: skip
        for name, cell, batch, hidden, steps in (
            ("lstm-stream-h64", "LSTM", 1, 64, 1),
            ("lstm-stream-h128", "LSTM", 1, 128, 1),
            ("lstm-stream-h256", "LSTM", 1, 256, 1),
            ("lstm-stream-h512", "LSTM", 1, 512, 1),
            ("gru-stream-h256", "GRU", 1, 256, 1),
            ("lstm-t1-b64-h256", "LSTM", 64, 256, 1),
            ("lstm-t10-b1-h128", "LSTM", 1, 128, 10),
        )
    ),
    *(
        Case(
            f"lstm-b{batch}-h{hidden}-by-{precision}",
            f"{reason}; products {ASKED[precision]}",
            "LSTM",
            batch,
            hidden,
            precision=precision,
        )
        for precision in ASKED
        for (batch, hidden), reason in REQUIRED.items()
        if batch >= 16
    ),
    *(
        Case(
            f"{cell.lower()}-b{batch}-h{hidden}-by-bf16",
            f"{reason}; products {ASKED['bf16']}",
            cell,
            batch,
            hidden,
            modes=INFERENCE,
            precision="bf16",
        )
        for cell, batch, hidden, reason in (
            ("LSTM", 1, 512, ONE_ROW),
            ("GRU", 64, 256, MANY_ROWS),
            ("RNN", 64, 256, MANY_ROWS),
        )
    ),
    *(
        Case(name, CELL, cell, 1, hidden, 1, quick=name in QUICK)
        for cell in ("LSTMCell", "GRUCell", "RNNCell")
        for hidden in (64, 128)
        for name in [f"{cell.lower()}-b1-h{hidden}"]
    ),
    Case("lstmcell-b64-h256", CELL + ", a batch", "LSTMCell", 64, 256, 1),
    Case("deep-b1-h300", "the teaching RNN at the examples' size", "DeepTransitionRNN", 1, 300, quick=True),
    Case("deep-b64-h300", "the teaching RNN, a training batch", "DeepTransitionRNN", 64, 300),
    Case("deep-b1-h128", "the teaching RNN, weights in L2", "DeepTransitionRNN", 1, 128),
    Case("deep-b64-h128", "the teaching RNN, small and batched", "DeepTransitionRNN", 64, 128),
    Case("lstm-b1-h512-bf16", "bfloat16: half the bytes to read", "LSTM", 1, 512, dtype="bfloat16"),
    Case("lstm-b64-h256-bf16", "bfloat16: products of many rows", "LSTM", 64, 256, dtype="bfloat16"),
    Case("gru-b16-h256-bf16", "bfloat16 where torch has no fused kernel", "GRU", 16, 256, dtype="bfloat16"),
]
