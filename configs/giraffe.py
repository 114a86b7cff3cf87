"""Presets of experiments/giraffe.py: overnight on two cores, cpu, tiny, and a pod's.

In a method {base} is that of the pretraining, {adjusted} the adjusted one, {scale} the row's, and
{short} the pretraining length; in positions {longest} is the longest length that is read.
"""

from ml_collections import ConfigDict

from configs.common import SMALL, chosen, phase

_STAGES = ((1.0, 2),)
_ROW = {
    "method": "rope:base={base}",
    "first": "",  # method of the stages before the last; "": the same
    "pretrained": "rope:base={base}",
    "scale": 1.0,
    "read_at": (),  # other scales at which it is read, times its own
    "stages": _STAGES,  # (share of the steps at which it ends, tokens of a window over `short`)
    "positions": "",
    "windows": (),  # that layers see by turns, times `short`; 0: everything
}
_LINEAR = {"method": "pi:factor={scale},base={base}", "read_at": (0.5, 0.75, 1.5, 2.0)}
_BY_TURNS = "by_layer:pattern=(0,1),methods=((rope:base={base}),(nope))"
_ROWS = {
    "scale 1": _LINEAR,
    "linear 4": _LINEAR | {"scale": 4.0},
    "linear 8": _LINEAR | {"scale": 8.0},
    "linear 16": _LINEAR | {"scale": 16.0},
    "power": {"method": "giraffe_power:power=0.5,base={base}"},
    "truncated": {"method": "giraffe_truncated:original_length={short},base={base}"},
    "randomised": {"positions": "ruoss:max_length={longest}"},
    "xPos": {"method": "xpos:base={base}"},
    "ABF": {"method": "rope:base={adjusted}"},
    "progressive": _LINEAR
    | {"scale": 16.0, "read_at": (), "stages": ((0.5, 2), (1.0, 8))}
    | {"first": "pi:factor=4,base={base}"},
    "DroPE": {"method": "nope", "first": "rope:base={base}", "stages": ((0.875, 2), (1.0, 2))},
    "RNoPE-SWA": {"method": _BY_TURNS, "pretrained": _BY_TURNS, "windows": (1, 0)},
}
_ROWS = {name: _ROW | row for name, row in _ROWS.items()}

_CAN = ("keys when short: scale 1 - 0.8 > 0",)
_REACHES = (*_CAN, "keys beyond: linear 16 - 0.1 > 0")
_OTHERS = ("power", "truncated", "randomised", "xPos")

# Written before any run. H1 to H4: what Giraffe says.
_HYPOTHESES = {
    "H1": {
        "claim": "linear scaling finds more keys beyond the trained length than Giraffe's others",
        "gates": _REACHES,
        "checks": tuple(f"keys beyond: linear 16 - {row} > 0" for row in _OTHERS),
    },
    "H2": {
        "claim": "truncated and randomised are within 0.02 nats of scale 1, and find fewer keys "
        "than linear 4",
        "gates": _REACHES,
        "checks": (
            "loss, over scale 1: |truncated - 0| <= 0.02",
            "loss, over scale 1: |randomised - 0| <= 0.02",
            "keys beyond: truncated - linear 4 < 0",
            "keys beyond: randomised - linear 4 < 0",
        ),
    },
    "H3": {
        "claim": "scale N gives less than N times: a tenth of the keys is lost there",
        "gates": _CAN,
        "checks": tuple(
            f"keys at its scale, less those when short: linear {n} - 0 < -0.1" for n in (8, 16)
        ),
    },
    "H4": {
        "claim": "trained at 16 and read at 12 it finds more keys than read at 16",
        "gates": _REACHES,
        "checks": ("keys beyond: linear 16 at 12 - linear 16 > 0",),
    },
    "H5": {
        "claim": "ABF, which Giraffe lacks, finds more keys than linear 8",
        "gates": _REACHES,
        "checks": ("keys beyond: ABF - linear 8 > 0",),
    },
    "H6": {
        "claim": "in two steps of length linear 16 finds more keys than in one",
        "gates": _REACHES,
        "checks": ("keys beyond: progressive - linear 16 > 0",),
    },
    "H7": {
        "claim": "without rotation in the last eighth it finds more keys than with it throughout",
        "gates": _CAN,
        "checks": ("keys beyond: DroPE - scale 1 > 0",),
    },
    "H8": {
        "claim": "RNoPE-SWA finds more keys than plain RoPE",
        "gates": _CAN,
        "checks": ("keys beyond: RNoPE-SWA - scale 1 > 0",),
    },
}


def _without(*names: str) -> dict:
    return {name: _HYPOTHESES[name] for name in _HYPOTHESES if name not in names}


_COMMON = SMALL | {
    "held_out": 40,  # documents that hold the longest window, chosen by the hash of their names
    "rows": _ROWS,
    "trained": 2,  # a window of the continuation over `short`
    "longest": 16,  # the longest one that is read over `short`, a power of 2
    "pretraining": phase(4800, 32, 3e-3, 50),
    "training": phase(2400, 16, 1.5e-3, 20),
    "evaluation": {"windows_per_document": 1, "samples": 200},
    "hypotheses": _HYPOTHESES,
}

_CPU = ("scale 1", "linear 4", "linear 16", "truncated", "ABF", "DroPE")

PRESETS = {
    "overnight": {},  # 2 x 10 + 12 x 5 million tokens a seed
    "cpu": {  # 3.3 + 6 x 0.4 million tokens
        "pretraining": phase(1600, 32, 3e-3, 50),
        "training": phase(200, 16, 1.5e-3, 20),
        "evaluation": {"windows_per_document": 1, "samples": 100},
        "seeds": 1,
        "rows": {name: _ROWS[name] for name in _CPU},
        "hypotheses": {
            "H1": _HYPOTHESES["H1"] | {"checks": ("keys beyond: linear 16 - truncated > 0",)},
            "H2": _HYPOTHESES["H2"]
            | {"claim": "truncated is within 0.02 nats of scale 1, with fewer keys"}
            | {"checks": _HYPOTHESES["H2"]["checks"][::2]},
            "H3": _HYPOTHESES["H3"] | {"checks": _HYPOTHESES["H3"]["checks"][1:]},
            "H4": _HYPOTHESES["H4"],
            "H5": _HYPOTHESES["H5"]
            | {"claim": "ABF, which Giraffe lacks, finds more keys than linear 4"}
            | {"checks": ("keys beyond: ABF - linear 4 > 0",)},
            "H7": _HYPOTHESES["H7"],
        },
    },
    "tiny": {
        "corpus": "plays",
        "tokenizer": "bytes",
        "bos": "<bos>",
        "held_out": 2,
        "short": 32,
        "longest": 4,
        "width": 16,
        "model": SMALL["model"] | {"n_heads": 1, "head_dim": 16},
        "seeds": 1,
        "rows": {n: _ROWS[n] for n in ("scale 1", "randomised", "progressive", "RNoPE-SWA")},
        "pretraining": phase(4, 8, 1e-3, 1),
        "training": phase(4, 32, 1e-3, 1),
        "evaluation": {"windows_per_document": 1, "samples": 2},
        "hypotheses": {"H8": _HYPOTHESES["H8"]},
        "machine": {"log_every": 1, "checkpoint_every": 2},
    },
    # 7B at 4M tokens a step, 100B tokens at 2k and 10B a row at 4k, all read to 32k; windows by
    # layer are a model of their own, whose pretraining is left to `overnight`.
    "pod_7b": {
        "corpus": "",  # a folder of `longrope tokenize`: --config.corpus=DIR
        "tokenizer": "",
        "width": 4096,
        "short": 2048,
        "model": {"preset": "llama2_7b"},
        "dtype": "bfloat16",
        "base_per_token": 10_000 / 2048,
        "seeds": 1,
        "rows": {name: row for name, row in _ROWS.items() if name != "RNoPE-SWA"},
        "hypotheses": _without("H8"),
        "pretraining": phase(24_000, 2048, 3e-4, 2000, eps=1e-5, decay=0.0, final_ratio=0.1),
        "training": phase(2400, 1024, 2e-5, 100, eps=1e-5, decay=0.0, final_ratio=0.1),
        "asked": SMALL["asked"] | {"every": 1024},
        "machine": {"data": 1, "fsdp": -1, "remat": "full", "checkpoint_every": 500},
    },
}


def get_config(preset: str = "cpu") -> ConfigDict:
    return chosen("giraffe", _COMMON, PRESETS, preset)
