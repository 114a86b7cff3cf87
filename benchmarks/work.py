"""What is measured: sizes, workloads and who does them."""

import dataclasses

from longrope_jax import llama, rotary

SPEC = rotary.RoPE(base=100_000)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A model and how much of each work it does; lengths in tokens."""

    model: llama.LlamaConfig
    prefill: int = 4096
    train: int = 2048
    long: int = 32_768
    prompt: int = 512
    new: int = 1024
    ablation: str = "cpu"  # preset of configs/base_frequency_ablation.py
    ablation_steps: int = 20  # per sample
    items: int = 100  # of HellaSwag; 0 draws a few short ones
    lengths: tuple[int, ...] = tuple(2**i for i in range(10, 18))  # of benchmarks.length


_TINY = llama.LlamaConfig(
    vocab_size=64,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    tie_embeddings=True,
)
SIZES = {
    "smollm2_135m": Sizes(llama.preset("smollm2_135m")),
    "tiny": Sizes(_TINY, 32, 16, 64, 16, 8, "tiny", 2, 0, (16, 32, 64, 128)),
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """A function of `ours` or `peer` with its options.

    The function takes sizes and the folder of checkpoints, and returns `once`: each call of it does
    the work and gives (seconds, values, tokens); values have to agree between contenders.
    """

    module: str
    function: str
    options: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Work:
    """A row of contenders; the first named "peer" is what the others are divided by."""

    title: str
    contenders: dict[str, Contender]
    warm: int = 1  # untimed calls, the first of which may compile
    samples: int = 0  # at most so many timed calls; 0: as many as asked for
    processes: int = 0  # likewise


def _pair(function: str, **options) -> dict[str, Contender]:
    return {name: Contender(name, function, options) for name in ("ours", "peer")}


_LONG = {"length": "long", "remat": "attention"}
WORKS = {
    "prefill": Work(
        "prefill, {s.prefill} tokens",
        {
            "ours": Contender("ours", "prefill"),
            "ours, one pass without cache": Contender("ours", "forward"),
            "peer": Contender("peer", "prefill"),
        },
    ),
    "train": Work(
        "forward + backward, {s.train} tokens",
        {
            "ours": Contender("ours", "gradient"),
            "ours, remat=full": Contender("ours", "gradient", {"remat": "full"}),
            "peer": Contender("peer", "gradient"),
            "peer, checkpointing": Contender("peer", "gradient", {"checkpointing": True}),
        },
    ),
    "decode": Work("decode {s.new} tokens after {s.prompt}, batch 1", _pair("decode")),
    "requests": Work("choices of HellaSwag's first {s.items} items", _pair("choices")),
    "pretraining": Work(
        "ablation, preset {s.ablation}: step of pretraining",
        _pair("ablation", phase="pretraining"),
    ),
    "continuation": Work(
        "ablation, preset {s.ablation}: step of continuation",
        _pair("ablation", phase="continuation"),
    ),
    "long": Work(
        "forward + backward, {s.long} tokens",
        {"ours, remat=attention": Contender("ours", "gradient", _LONG)},
        warm=0,
        samples=1,
        processes=1,
    ),
}
