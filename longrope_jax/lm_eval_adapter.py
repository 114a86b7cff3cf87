"""lm-evaluation-harness runs its tasks on a checkpoint under any rotary method.

    python -m longrope_jax.lm_eval_adapter --model longrope_jax \\
        --model_args pretrained=CKPT,rotary=yarn:factor=4 --tasks hellaswag

takes the arguments of the command `lm_eval`, which has no way to find models of other packages; in
Python, importing this module is enough for `lm_eval.simple_evaluate(model="longrope_jax", ...)`.
It needs lm-evaluation-harness 0.4.13 (`pip install 'longrope_jax[lm_eval]'`), and no torch.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from longrope_jax import model as model_lib
from longrope_jax import sharding
from longrope_jax.data import chat
from longrope_jax.data.tokenizers import encode_marked
from longrope_jax.errors import unknown_name, warn
from longrope_jax.evaluation import requests as requests_lib
from longrope_jax.evaluation.requests import Request

LM: Any = object
with contextlib.suppress(ImportError):
    from lm_eval.api.model import LM  # pyright: ignore

# What a task may say of generation; sampling options have no effect on greedy text.
_GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")
_SAMPLING = ("top_k", "min_p", "typical_p")


class LongropeLM(LM):
    """The model `longrope_jax` of lm-evaluation-harness.

    Attributes:
        model: the checkpoint under its rotary method.
    """

    def __init__(
        self,
        pretrained: str,
        rotary: str | None = None,
        *,
        dtype: str = "float32",
        param_dtype: str = "float32",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        batch_size: int | str = 8,
        batch_tokens: int = 2048,
        data: int = 1,
        fsdp: int = 1,
        sequence: int = 1,
        tensor: int = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Loads the checkpoint.

        Args:
            pretrained: a checkpoint, as `longrope_jax.load` takes it.
            rotary: text of a rotary method, with `;` instead of `,` between its options since a
                comma ends an argument: `rotary=yarn:factor=4;original_length=2048`. None is the
                checkpoint's own method.
            dtype: dtype of activations and matrix products.
            param_dtype: dtype of the parameters.
            max_length: the most tokens of a request, beyond which it is cut on the left; None is
                what the checkpoint declares under the method, or 2,048.
            max_gen_toks: the most new tokens where a task does not say.
            add_bos_token: whether the beginning token comes first; None is as the checkpoint says.
            batch_size: rows that are generated at a time; "auto" is 8.
            batch_tokens: tokens scored at a time.
            data: devices of this axis of the mesh, as fsdp, sequence and tensor.
            fsdp: see `data`.
            sequence: see `data`.
            tensor: see `data`.
            max_batch_size: not used, lm-evaluation-harness always gives it.
            device: not used, and refused unless it is the default of the command `lm_eval`;
                JAX_PLATFORMS chooses the platform.

        Raises:
            ValueError: lm-evaluation-harness is not installed, or an argument is wrong.
        """
        if LM is object:
            raise ValueError("lm_eval is not installed: pip install 'longrope_jax[lm_eval]'")
        super().__init__()
        if device not in (None, "cuda:0"):
            raise ValueError(f"device={device!r}: set the variable JAX_PLATFORMS instead")
        del max_batch_size
        sizes = {"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
        mesh = sharding.make_mesh(**sizes) if set(sizes.values()) != {1} else None
        found = model_lib.load(pretrained, mesh=mesh, dtype=dtype, param_dtype=param_dtype)
        self.model = found.with_rotary(rotary.replace(";", ",")) if rotary else found
        self._name, self._bos = pretrained, self.model.beginning(add_bos_token)
        self._max_length = int(max_length or self.model.declared_length() or 2048)
        self._max_gen_toks, self._batch_tokens = int(max_gen_toks), int(batch_tokens)
        self._batch_size = 8 if str(batch_size).startswith("auto") else int(batch_size)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in caches of lm-evaluation-harness."""
        return self._name

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation, and whether it is the greedy one."""
        del disable_tqdm
        texts = [(self._unbegun(one.args[0]), one.args[1]) for one in requests]
        encoded = requests_lib.encode(self._ids, texts, first=self._bos, alone=self._alone())
        return self._scored([self._cut(one) for one in encoded])

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each text, in windows of the greatest length."""
        del disable_tqdm
        windows, owners = [], []
        for i, one in enumerate(requests):
            ids = self._begun(one.args[0])
            windows += _windows(ids, self._alone(), self._max_length)
            owners += [i] * (len(windows) - len(owners))
        sums = np.zeros(len(requests))
        np.add.at(sums, owners, [found for found, _ in self._scored(windows)])
        return sums.tolist()

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Greedy text, or drawn text if a task asks for it, up to the first stop string."""
        del disable_tqdm
        found: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, one in enumerate(requests):
            groups.setdefault(repr(sorted(one.args[1].items())), []).append(i)
        for members in groups.values():
            options = requests[members[0]].args[1]
            prompts = {i: self._begun(requests[i].args[0]) for i in members}
            # Rows of like length together, since the longest decides the memory.
            order = sorted(members, key=lambda i, prompts=prompts: -len(prompts[i]))
            for at in range(0, len(order), self._batch_size):
                rows = order[at : at + self._batch_size]
                texts = self._generated([prompts[i] for i in rows], options)
                for i, text in zip(rows, texts, strict=True):
                    found[i] = text
        return found

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        """Writes a conversation with the checkpoint's own template, in jinja2's sandbox.

        Raises:
            ValueError: The checkpoint has no template, or it refuses the conversation.
        """
        text = chat.render(
            self.model.tokenizer,
            self.model.special_tokens,
            chat_history,
            add_generation_prompt=add_generation_prompt,
        )
        if add_generation_prompt:
            return text
        # The last message goes on: what the template writes after it is left out.
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The checkpoint's template, or None where none is asked for."""
        return self.model.special_tokens.chat_template if chat_template else None

    def _generated(self, prompts: list[np.ndarray], options: dict[str, Any]) -> list[str]:
        stops, length, temperature, top_p = _generation(options, self._max_gen_toks)
        room = self._max_length - length
        if room < 1:
            raise ValueError(
                f"max_gen_toks={length} leaves no room for a prompt in max_length="
                f"{self._max_length}: lower it with --gen_kwargs, or raise max_length"
            )
        self._note_cut(sum(len(row) > room for row in prompts))
        prompts = [row[-room:] for row in prompts]
        kept: list[list[int]] = [[] for _ in prompts]

        def ended(pieces: list[np.ndarray]) -> list[bool]:
            for row, piece in zip(kept, pieces, strict=True):
                row += piece.tolist()
            texts = map(self.model.decode, kept)
            return [any(stop in text for stop in stops) for text in texts]

        rows = self.model.generate(
            prompts, max_new_tokens=length, temperature=temperature, top_p=top_p, stream=ended
        )
        return [_before(self.model.decode(row), stops) for row in rows]

    def _scored(self, requests: list[Request]) -> list[tuple[float, bool]]:
        model = self.model
        with sharding.mesh_of(model.params):
            found = requests_lib.score(
                model.config,
                model.params,
                model.method,
                requests,
                batch_tokens=self._batch_tokens,
            )
        pairs = zip(found.log_likelihood.tolist(), found.greedy.tolist(), strict=True)
        return list(pairs)

    def _cut(self, request: Request) -> Request:
        """A request of at most max_length + 1 ids, the last of which is never fed."""
        context, continuation = request
        room = self._max_length + 1 - len(continuation)
        if room < 1:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, max_length is {self._max_length}: "
                "raise max_length"
            )
        self._note_cut(int(len(context) > room))
        return Request(context[-room:], continuation)

    def _note_cut(self, count: int) -> None:
        if count:
            warn(f"{count} prompts are cut on the left to fit max_length={self._max_length}")

    def _begun(self, text: str) -> np.ndarray:
        lead = [] if self._bos is None else [self._bos]
        return np.asarray([*lead, *self._ids(self._unbegun(text))], np.int32)

    def _unbegun(self, text: str) -> str:
        """A text without the beginning token that a chat template wrote, which is put first."""
        return text if self._bos is None else text.removeprefix(self._piece(self._bos))

    def _ids(self, text: str) -> np.ndarray:
        """Ids of a text in which the names of special tokens stand for these, as in a template."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise ValueError(f"{self._name} has no tokenizer: lm_eval's tasks are text")
        return encode_marked(tokenizer, text)[0]

    def _piece(self, at: int) -> str:
        tokenizer = self.model.tokenizer
        named = {} if tokenizer is None else {tokenizer.special(n): n for n in tokenizer.specials}
        return named.get(at, "")

    def _alone(self) -> int | None:
        """The id that an empty context or the first window begins with."""
        special = self.model.special_tokens
        return special.eos if special.bos is None else special.bos


def _windows(ids: np.ndarray, first: int | None, length: int) -> Iterator[Request]:
    """Windows that score each id once, the last of them with as much context as the others."""
    if first is None:
        raise ValueError("the checkpoint has no token that begins or ends a text: no first token")
    whole = np.asarray([first, *ids], np.int32)
    for done in range(0, len(ids), length):
        end = min(done + length, len(ids))
        start = max(0, end - length)
        yield Request(whole[start : done + 1], whole[done + 1 : end + 1])


def _generation(options: dict[str, Any], longest: int) -> tuple[list[str], int, float, float]:
    """Stop strings, the most new tokens, temperature and top_p of a task's options.

    Raises:
        ValueError: An option would change the text and is not supported.
    """
    options = dict(options)
    for alias in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
        if alias in options:
            options.setdefault("max_gen_toks", options.pop(alias))
    until = options.get("until") or []
    stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    temperature = float(options.get("temperature") or 0.0)
    if not options.get("do_sample", temperature > 0):
        temperature = 0.0
    known = _GENERATION + (_SAMPLING if temperature == 0 else ())
    for name in options:
        if name not in known:
            raise ValueError(unknown_name("generation option", name, known))
    top_p = float(options.get("top_p", 1.0)) if temperature else 1.0
    return stops, int(options.get("max_gen_toks") or longest), temperature, top_p


def _before(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text


def register() -> None:
    """Makes the name `longrope_jax` known to lm-evaluation-harness; importing this module does.

    Raises:
        ValueError: lm-evaluation-harness is not installed.
    """
    if LM is object:
        raise ValueError("lm_eval is not installed: pip install 'longrope_jax[lm_eval]'")
    from lm_eval.api.registry import model_registry  # pyright: ignore[reportMissingImports]

    if "longrope_jax" not in model_registry:
        model_registry.register("longrope_jax", target=LongropeLM)


def main() -> None:
    """Runs the command of lm-evaluation-harness with this model registered."""
    try:
        register()
    except ValueError as error:
        sys.exit(f"error: {error}")
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()


if __name__ == "__main__":
    main()
elif LM is not object:
    register()
