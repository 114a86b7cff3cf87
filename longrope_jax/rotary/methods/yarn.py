"""YaRN scales by parts and adds an attention temperature."""

import dataclasses
import math

from longrope_jax.errors import warn
from longrope_jax.rotary.frequencies import (
    Frequencies,
    check_base,
    check_factor,
    check_original_length,
    check_positive,
    is_finite,
    rope_inv_freq,
)
from longrope_jax.rotary.methods.ntk_by_parts import blend, keep_by_dimension, keep_by_rotations
from longrope_jax.rotary.registry import check_choice, register

RAMPS = ("dimension", "rotations")
CLAMPS = ("dimension", "pairs")


@register("yarn")
@dataclasses.dataclass(frozen=True)
class YaRN:
    """YaRN: theta_j ((1-g_j)/s + g_j), queries and keys times 0.1 ln s + 1.

    theta_j is in radians per token, s is the factor, L the original_length and d the head_dim. g_j
    is the share of pair j's frequency that stays. There are two ramps:
      dimension: g_j = 1 - clip((j-low)/(high-low), 0, 1), where low and high are the (fractional)
        pairs that turn beta_fast and beta_slow times within L, (d/2) log_base(L/(2 pi beta)),
        rounded outwards if `truncate`. The yarn repo, Hugging Face, LongRoPE's code and llama.cpp
        have this ramp.
      rotations: g_j = clip((r_j-beta_slow)/(beta_fast-beta_slow), 0, 1) with
        r_j = L theta_j/(2 pi). The paper has this ramp; frequencies differ by up to 3.04 times.

    Source: YaRN (2309.00071) Definition 3 and section 3.4 (temperature: logits grow by the square
        of the factor on queries and keys); mscale_all_dim and mscale from DeepSeek-V2's code.
    Cache: rotated keys.
    Peers: the yarn repo, Hugging Face, LongRoPE's yarn.py and llama.cpp have ramp "dimension",
        whose frequencies are up to 3.04 times the paper's (option ramp). gpt-oss does not truncate,
        which moves them by up to 1.55 times (option truncate; Hugging Face reads it from the first
        level of rope_parameters alone).
        minimind clamps at d/2-1 (option clamp). Hugging Face's `attention_factor` replaces the
        temperature; the yarn repo's and vLLM's `attn_factor` multiplies it, and Hugging Face
        ignores that key. llama.cpp has no temperature at ext_factor 0 (attention_factor=1), and for
        a Llama it does not read a file's yarn_beta_fast, yarn_beta_slow and yarn_attn_factor
        (executed, 2026). MaxText leaves the temperature out by default. Hugging Face up to about
        4.55 took max/original for factor (PR#40320). Where the ramp's ends coincide every
        implementation adds 0.001 to the upper one; llama.cpp and this one also do where they cross.

    Attributes:
        factor: the extension s, at least 1; required.
        original_length: the trained length L, in tokens before the extension; required.
        base: RoPE's base; default 10,000.
        beta_fast, beta_slow: turns within L at the ends of the ramp; default 32 and 1 (paper, for
            LLaMA).
        ramp: "dimension" or "rotations", as above; default "dimension", which released checkpoints
            use.
        truncate: whether the ends of ramp "dimension" are rounded; default True (yarn repo, Hugging
            Face); gpt-oss says False.
        clamp: the greatest end of ramp "dimension": "dimension" is d-1 (default; all original
            implementations), "pairs" is d/2-1, the last pair there is.
        extrapolation_factor: a factor on g_j, 0 to 1; default 1; 0 is PI at every pair (yarn repo;
            llama.cpp's ext_factor).
        mscale, mscale_all_dim: the factor on queries and keys is (0.1 mscale ln s + 1) / (0.1
            mscale_all_dim ln s + 1); default 1 and 0, as in the paper. With both equal it is 1;
            DeepSeek's model then scales the softmax by the square of the denominator, which is not
            done here.
        attention_factor: a number in place of that quotient; default None (Hugging Face's key).
        attn_factor: a factor on that quotient; default 1 (the yarn repo's and vLLM's key).
    """

    HF_KEYS = (
        frozenset({"factor", "original_max_position_embeddings"}),
        frozenset(
            {
                "attention_factor",
                "attn_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
                "finetuned",  # in the yarn repo's checkpoints; changes nothing in its code
            }
        ),
    )

    factor: float
    original_length: float
    base: float = 10_000.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    ramp: str = "dimension"
    truncate: bool = True
    clamp: str = "dimension"
    extrapolation_factor: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    attn_factor: float = 1.0

    def __post_init__(self):
        check_factor(self.factor)
        check_original_length(self.original_length)
        check_base(self.base)
        check_positive(beta_fast=self.beta_fast, beta_slow=self.beta_slow)
        check_choice("ramp of yarn", self.ramp, RAMPS)
        # Rounding takes equal ends apart (Kimi-K2 has 1 and 1); over rotations they divide by 0.
        equal = self.beta_slow == self.beta_fast and self.ramp == "dimension"
        if self.beta_slow >= self.beta_fast and not equal:
            raise ValueError(
                f"beta_slow must be below beta_fast, got {self.beta_slow} and {self.beta_fast}"
            )
        check_choice("clamp of yarn", self.clamp, CLAMPS)
        share = self.extrapolation_factor
        if not (is_finite(share) and 0 <= share <= 1):
            raise ValueError(f"extrapolation_factor must lie between 0 and 1, got {share!r}")
        if not isinstance(self.truncate, bool):
            raise ValueError(f"truncate must be True or False, got {self.truncate!r}")
        for name in ("mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if not (is_finite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")
        check_positive(attn_factor=self.attn_factor)
        if self.attention_factor is not None:
            check_positive(attention_factor=self.attention_factor)
            if (self.mscale, self.mscale_all_dim, self.attn_factor) != (1, 0, 1):
                raise ValueError(
                    "attention_factor replaces mscale, mscale_all_dim and attn_factor: give one"
                )

    def frequencies(self, *, head_dim: int, seq_len: int) -> Frequencies:
        """Returns [H/2] frequencies in radians per token, and the amplitude.

        They are the same at every `seq_len`.
        """
        theta = rope_inv_freq(self.base, head_dim)
        turns = self.beta_slow, self.beta_fast
        if self.ramp == "rotations":
            keep = keep_by_rotations(theta, self.original_length, *turns)
        else:
            keep = keep_by_dimension(
                self.base,
                head_dim,
                self.original_length,
                *turns,
                truncate=self.truncate,
                highest=(head_dim if self.clamp == "dimension" else head_dim // 2) - 1,
            )
        keep = keep * self.extrapolation_factor
        return Frequencies(blend(theta, self.factor, keep), amplitude=self.amplitude)

    @property
    def amplitude(self) -> float:
        """The factor on queries and on keys; scores get its square."""
        if self.attention_factor is not None:
            return self.attention_factor
        above, below = (
            0.1 * m * math.log(self.factor) + 1 for m in (self.mscale, self.mscale_all_dim)
        )
        return self.attn_factor * above / below

    def to_hf(self, head_dim: int | None = None) -> dict:
        """Returns the `rope_parameters` of a Hugging Face config.

        An `attn_factor` is written as `attention_factor`, which Hugging Face reads.

        Raises:
            ValueError: an option has a value that Hugging Face's yarn cannot express.
        """
        if self.ramp != "dimension" or self.clamp != "dimension":
            raise ValueError("Hugging Face's yarn has ramp and clamp by dimension only")
        if self.extrapolation_factor != 1:
            raise ValueError("Hugging Face's yarn has no extrapolation_factor: it must be 1")
        parameters = {
            "rope_type": "yarn",
            "rope_theta": self.base,
            "factor": self.factor,
            "original_max_position_embeddings": self.original_length,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "truncate": self.truncate,
        }
        pair = self.mscale, self.mscale_all_dim
        if self.attention_factor is not None or self.attn_factor != 1:
            parameters["attention_factor"] = self.amplitude
        elif all(pair):
            parameters["mscale"], parameters["mscale_all_dim"] = pair
        elif pair != (1, 0):
            raise ValueError(
                "Hugging Face reads mscale only beside a mscale_all_dim above 0: "
                f"write attention_factor={self.amplitude!r} instead"
            )
        return parameters

    @classmethod
    def from_hf(cls, parameters: dict) -> "YaRN":
        """Reads `rope_parameters`; warns where keys contradict or Hugging Face ignores one.

        As in Hugging Face, `attention_factor` wins over mscale, and mscale counts only beside
        mscale_all_dim, both above 0. `attn_factor`, which Hugging Face ignores, multiplies here: a
        checkpoint that ships it (DeepSeek-R1-0528-Qwen3-8B: 0.878, which undoes 0.1 ln 4 + 1) means
        it.
        """
        options = {
            k: parameters[k] for k in ("beta_fast", "beta_slow", "truncate") if k in parameters
        }
        given = {
            k: parameters[k] for k in ("mscale", "mscale_all_dim", "attn_factor") if k in parameters
        }
        if "attention_factor" in parameters:
            options["attention_factor"] = parameters["attention_factor"]
            if given:
                _warn(f"attention_factor={parameters['attention_factor']} won over {given}")
            given = {}
        pair = [given.pop(k, None) for k in ("mscale", "mscale_all_dim")]
        if all(pair):
            options["mscale"], options["mscale_all_dim"] = pair
        elif pair[0] not in (None, 0, 1) or pair[1]:
            _warn(
                f"mscale={pair[0]} and mscale_all_dim={pair[1]}: Hugging Face ignores one without "
                "the other, so the default 0.1 ln(factor) + 1 won"
            )
        spec = cls(
            factor=parameters["factor"],
            original_length=parameters["original_max_position_embeddings"],
            base=parameters["rope_theta"],
            **options,
            **given,
        )
        if given:
            _warn(
                f"attn_factor={spec.attn_factor} multiplies the attention factor, which is now "
                f"{spec.amplitude:.6g}; Hugging Face ignores the key"
            )
        return spec


def _warn(text: str) -> None:
    warn(f"rope_type yarn: {text}")
