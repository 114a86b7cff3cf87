"""Models and their training, as every study does it."""

import dataclasses
import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import longrope_jax
from experiments.lab import progress
from experiments.lab.cells import Cell, run_folder
from experiments.lab.corpus import Text
from experiments.lab.machine import Machine, batch_parts, writes
from longrope_jax import folders, hosts, llama, rotary, runs
from longrope_jax.data import mixtures, packing
from longrope_jax.data.instructions import Instruct, InstructionMaker
from longrope_jax.data.mixtures import Mixture
from longrope_jax.data.packing import TaskMixture
from longrope_jax.data.tokenizers import ByteTokenizer, Tokenizer
from longrope_jax.errors import unknown_name
from longrope_jax.model import Model, open_model
from longrope_jax.rotary import positions
from longrope_jax.tasks import FirstSentence, Passkey
from longrope_jax.training import checkpoints, loop, metrics, step
from longrope_jax.training import lora as lora_lib
from longrope_jax.training.flops import train_flops_per_token
from longrope_jax.training.optimizer import OptimizerConfig

RANDOM = "random"
_RANDOM_CONFIG = llama.LlamaConfig(
    vocab_size=260, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run computes, its start and its text aside.

    Attributes:
        method: rotary method of the run.
        length: tokens of a window, T.
        steps: optimizer updates.
        batch: windows per update.
        learning_rate: peak.
        warmup_steps, initial_ratio, final_ratio, decay, weight_decay, eps: see `OptimizerConfig`.
        trainable: "full", or one of `lora.TRAINABLE` with `rank` and `alpha`.
        rank, alpha: of the adapters.
        sparse_group: tokens per group of LongLoRA's S2-Attn; 0 is full attention.
        shortest: least tokens of a passage that is packed into a window; 0: passages fill windows.
        mixture: how windows are mixed with questions; None is plain text.
        first_sentence, passkey: wording of those questions.
        seed: of the order of the data and of fresh adapters.
        blend: the corpora that windows come from, and their lengths by stage, up to `length`; a
            source without a cache is the run's own text. None is that text at one length.
        first_method: method of the stages before the last; None is `method`.
        instruct: questions in place of windows of text; None is text.
        positions: a transform of the positions, see `rotary.positions.parse`; "" is none. Each step
            draws its own.
    """

    method: rotary.Method
    length: int
    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int = 0
    initial_ratio: float = 0.0
    final_ratio: float = 0.1
    decay: float = 0.0
    weight_decay: float = 0.1
    eps: float = 1e-8
    trainable: str = "full"
    rank: int = 8
    alpha: float = 16.0
    sparse_group: int = 0
    shortest: int = 0
    mixture: TaskMixture | None = None
    first_sentence: FirstSentence = dataclasses.field(default_factory=FirstSentence)
    passkey: Passkey = dataclasses.field(default_factory=Passkey)
    seed: int = 0
    blend: Mixture | None = None
    first_method: rotary.Method | None = None
    instruct: Instruct | None = None
    positions: str = ""

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW with this recipe's schedule."""
        return OptimizerConfig(
            learning_rate=self.learning_rate,
            total_steps=self.steps,
            warmup_steps=self.warmup_steps,
            initial_ratio=self.initial_ratio,
            final_ratio=self.final_ratio,
            decay=self.decay,
            weight_decay=self.weight_decay,
            eps=self.eps,
        )

    @property
    def lora(self) -> lora_lib.LoRA | None:
        """The adapters, or None where everything trains."""
        return lora_lib.trainable(self.trainable, rank=self.rank, alpha=self.alpha)

    @property
    def tokens(self) -> int:
        """Tokens that the run trains on."""
        return self.steps * self.batch * self.length

    @property
    def reach(self) -> int:
        """One more than the greatest position of the run.

        Raises:
            ValueError: `positions` cannot be read.
        """
        return max(self.length, positions.longest(self.positions))


def model(
    source: str, machine: Machine, *, dtype: str = "float32", param_dtype: str = "float32"
) -> Model:
    """A checkpoint on the machine's devices: what `longrope_jax.load` takes, or "random".

    Raises:
        ValueError: no source, or one that cannot be read.
    """
    if source == RANDOM:
        return _random()
    loaded = longrope_jax.load(source, mesh=machine.mesh(), dtype=dtype, param_dtype=param_dtype)
    config = dataclasses.replace(loaded.config, remat=machine.remat)
    return dataclasses.replace(loaded, config=config)


def opened(source: str) -> Model:
    """The checkpoint without its parameters: headers alone are read.

    Raises:
        ValueError: no source, or one that cannot be read.
    """
    if not source:
        raise ValueError("this preset needs your checkpoint: --config.model=PATH")
    return _random() if source == RANDOM else open_model(source)


def fresh(
    config: llama.LlamaConfig,
    tokenizer: Tokenizer,
    method: rotary.Method,
    machine: Machine,
    *,
    seed: int,
) -> Model:
    """A model with parameters drawn at random, on the machine's devices."""
    config = dataclasses.replace(config, remat=machine.remat)
    optimizer = OptimizerConfig(1.0, 1, warmup_steps=0)
    state = step.init_state(config, optimizer, machine.mesh(), seed=seed)
    return Model(config, state.params, method, tokenizer)


def copied(model: Model) -> Model:
    """The model with its own copy of the parameters, since training uses up what it is given."""
    return dataclasses.replace(model, params=jax.tree.map(jnp.copy, model.params))


def read_method(text: str, **values: Any) -> rotary.Method:
    """A method from its text, with placeholders such as {base} and {factor} filled in.

    Args:
        text: as `rotary.parse` reads it.
        **values: of the placeholders; an option that the text leaves open takes the value of its
            name, such as `base`.

    Raises:
        ValueError: unknown placeholder, method or option.
    """
    values = {name: value for name, value in values.items() if value is not None}
    shown = {name: repr(v) if isinstance(v, float) else v for name, v in values.items()}
    fill = {name: values[name] for name in ("base",) if name in values}
    try:
        return rotary.parse(text.format(**shown), fill)
    except KeyError as error:
        raise ValueError(unknown_name("placeholder", str(error).strip("'"), values)) from error


def check(recipe: Recipe, config: llama.LlamaConfig, machine: Machine, *, scored: int = 0) -> None:
    """Refuses before any work what the training, or scoring at `scored` tokens, would refuse.

    Raises:
        ValueError: the first thing that cannot be honoured.
    """
    if recipe.steps < 1:
        raise ValueError(
            f"a run has {recipe.steps} steps: set its steps, or give a trained model instead"
        )
    _ = recipe.optimizer, recipe.lora, _loop_config(recipe, machine)
    parts = batch_parts(machine.mesh())
    if recipe.batch % (machine.accumulation * parts):
        raise ValueError(
            f"a batch of {recipe.batch} windows does not divide over {parts} devices and "
            f"{machine.accumulation} microbatches: change batch or --config.machine"
        )
    group = recipe.sparse_group
    if group and (group % 2 or recipe.length % group):
        raise ValueError(f"sparse_group must be even and divide {recipe.length}, got {group}")
    step.trained_config(dataclasses.replace(config, sparse_group=group, remat=machine.remat))
    longest = max(recipe.reach, scored)
    rotary.make(recipe.method, head_dim=config.head_dim, seq_len=longest)


def train(
    model: Model,
    recipe: Recipe,
    text: Text,
    folder: Path,
    machine: Machine,
) -> dict[str, np.ndarray]:
    """Trains to the recipe's end, from the newest checkpoint in `folder` if there is one.

    Killed at any moment and called again it ends with the same parameters (see `loop.fit`); the
    result is read by `trained`. Without adapters the buffers of `model.params` are used up: give
    a model of your own, or `copied`.

    Args:
        model: to start from.
        recipe: what to do.
        text: to train on.
        folder: of the run: checkpoints, metrics, run.json.
        machine: what to do it with.

    Returns:
        What was logged, one array per metric [lines], `trainable`, how many numbers train, and
        `held_out`, the names of the documents that it was not trained on.
    """
    if hosts.several():
        hosts.agree({"text": text.digest()})
    config, optimizer, lora, mesh = _setting(model, recipe, machine)
    train_step = _train_step(config, optimizer, mesh, lora)
    if lora:
        train_step = functools.partial(train_step, frozen=lora_lib.split(lora, model.params)[1])
    if writes():
        special = model.special_tokens
        if special.bos is None:  # of a model that was not trained before
            bos = text.tokenizer.special(text.bos)
            special = dataclasses.replace(special, bos=bos, adds_bos=True)
        known = runs.RunRecord(
            model.config, recipe.method, text.tokenizer, recipe.length, special_tokens=special
        )
        runs.save(folder, known)
    plan = blended(recipe, text)
    if plan is None:
        data = packing.iterator(
            window_maker(recipe, text), batch=recipe.batch, seed=recipe.seed, mesh=mesh
        )
    else:
        data = plan.iterator(mesh)
    flops = train_flops_per_token(config, recipe.sparse_group or recipe.length)
    state = step.init_state(
        config, optimizer, mesh, params=model.params, lora=lora, seed=recipe.seed
    )
    trainable = lora_lib.count(state.params)

    with jax.set_mesh(mesh):
        loop.fit(
            state,
            train_step,
            data,
            rotary=_methods(recipe, plan, config.head_dim),
            loop=_loop_config(recipe, machine),
            mesh=mesh,
            directory=folder,
            on_step=lambda done, tokens: progress.step(done, recipe.steps, tokens, flops),
            plan=plan,
        )
    logged = metrics.read(folder)
    names = [name for name in logged[0] if all(name in line for line in logged)]
    arrays = {name: np.asarray([line[name] for line in logged]) for name in names}
    held_out = np.asarray([document.name for document in text.held_out])
    return arrays | {"trainable": np.int64(trainable), "held_out": held_out}


def keep_as(folder: Path, cell: Cell) -> None:
    """Makes the training before a cell the cell's own, unchanged; on several hosts one copies."""
    if writes():
        before, after = run_folder(folder, cell.after[0]), run_folder(folder, cell)
        folders.copy(before, after)


def time_steps(model: Model, recipe: Recipe, text: Text, machine: Machine) -> float:
    """Seconds that a token of training takes: the median over a few steps after the first ones."""
    steps = 4 * machine.steps_per_dispatch
    recipe = dataclasses.replace(recipe, steps=steps, warmup_steps=0, decay=0.0)
    machine = dataclasses.replace(machine, log_every=machine.steps_per_dispatch)
    with tempfile.TemporaryDirectory() as folder:
        return 1 / speed(train(model, recipe, text, Path(folder), machine))


def speed(logged: Mapping[str, np.ndarray]) -> float:
    """Tokens per second of a finished training: the median of what `train` logged.

    The first line is left out where there are more, since it counts compilation.
    """
    lines = np.asarray(logged["tokens_per_second"])
    return float(np.median(lines[1:] if len(lines) > 1 else lines))


def has_parameters(folder: Path, steps: int = 0) -> bool:
    """Whether a run's folder holds its parameters after `steps` steps or more."""
    latest = checkpoints.latest_step(folder / "checkpoints")
    return latest is not None and latest >= steps


def trained(
    folder: Path,
    machine: Machine,
    *,
    base: Model | None = None,
    recipe: Recipe | None = None,
) -> Model:
    """The model that a run came to, under the run's own method.

    Args:
        folder: of the run.
        machine: where the parameters go.
        base: of a run that trained adapters, the model that it started from.
        recipe: of a run that trained adapters; they come merged into the base.

    Raises:
        ValueError: the run's checkpoints are gone.
    """
    known, kept = runs.load(folder), folder / "checkpoints"
    if known is None or not has_parameters(folder):
        raise ValueError(
            f"{folder.name} was trained, but its checkpoints are not in {folder}: to train it "
            f"again, delete cells/{folder.name}.npz and that folder"
        )
    config = step.trained_config(dataclasses.replace(known.config, remat=machine.remat))
    mesh = machine.mesh()
    if recipe is not None and recipe.lora:
        abstract = step.abstract_state(config, recipe.optimizer, mesh, recipe.lora).params
        params = checkpoints.restore_params(kept, abstract)
        params = lora_lib.merge(recipe.lora, params, lora_lib.split(recipe.lora, base.params)[1])
    else:
        params = checkpoints.restore_params(kept, step.abstract_params(config, mesh))
    return Model(
        config,
        params,
        known.method,
        known.tokenizer,
        trained_length=known.trained_length,
        special_tokens=known.special_tokens,
    )


def windows(recipe: Recipe, text: Text) -> packing.WindowMaker:
    """The windows of text that a recipe trains on."""
    return packing.training_windows(
        text.training,
        text.tokenizer,
        length=recipe.length,
        shortest=recipe.shortest or None,
        task_mixture=recipe.mixture,
        first_sentence=recipe.first_sentence,
        passkey=recipe.passkey,
        bos=text.bos,
    )


def window_maker(recipe: Recipe, text: Text) -> packing.Windows:
    """What makes a recipe's windows of text or of questions.

    Raises:
        ValueError: questions about no document in memory, or without room in the windows.
    """
    plain = windows(recipe, text)
    return InstructionMaker(plain, recipe.instruct, text.pairs) if recipe.instruct else plain


def blended(recipe: Recipe, text: Text) -> mixtures.Plan | None:
    """What a recipe trains on from token caches, or None where its text is in memory.

    Raises:
        ValueError: a source without a cache where the text has none, or what `mixtures.plan`
            refuses.
    """
    blend = recipe.blend
    if blend is None and text.cache is not None:
        own = mixtures.Source(str(text.cache.folder))
        blend = mixtures.Mixture((("text", own),), (mixtures.Stage(1, recipe.length),))
    if blend is None:
        return None
    if blend.block != recipe.length:
        raise ValueError(f"the longest stage has {blend.block} tokens, length={recipe.length}")
    if text.cache is not None:
        own = str(text.cache.folder)
        sources = ((k, dataclasses.replace(s, cache=s.cache or own)) for k, s in blend.sources)
        blend = dataclasses.replace(blend, sources=tuple(sources))
    return mixtures.plan(
        blend,
        text.tokenizer,
        steps=recipe.steps,
        tokens_per_step=recipe.batch * recipe.length,
        seed=recipe.seed,
        bos=text.bos,
        without=text.without,
        asks=windows(recipe, text) if recipe.mixture else None,
    )


def _methods(recipe: Recipe, plan: mixtures.Plan | None, head_dim: int) -> dict[int, rotary.Rotary]:
    """The arrays of each method, by the step that it takes over at."""
    last = plan.edges[-1] if plan else 0
    methods = {0: recipe.first_method or recipe.method, last: recipe.method}
    return {
        step: rotary.make(method, head_dim=head_dim, seq_len=recipe.reach)
        for step, method in methods.items()
    }


def _setting(model: Model, recipe: Recipe, machine: Machine):
    config = dataclasses.replace(
        model.config, sparse_group=recipe.sparse_group, remat=machine.remat
    )
    return config, recipe.optimizer, recipe.lora, machine.mesh()


# Rows of a study differ in the method, which is data: they share one compiled step.
_train_step = functools.lru_cache(maxsize=8)(step.make_train_step)


def _loop_config(recipe: Recipe, machine: Machine) -> loop.LoopConfig:
    return loop.LoopConfig(
        steps=recipe.steps,
        accumulation=machine.accumulation,
        log_every=machine.log_every,
        checkpoint_every=machine.checkpoint_every,
        checkpoints_kept=machine.checkpoints_kept,
        steps_per_dispatch=machine.steps_per_dispatch,
        positions=recipe.positions,
        position_seed=recipe.seed if recipe.positions else 0,
    )


def _random() -> Model:
    """A random model of bytes, drawn by numpy: nothing is compiled for it."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: llama.init_params(_RANDOM_CONFIG, jax.random.key(0)))

    def draw(path, x):
        if path[-1].key == "scale":
            return jnp.ones(x.shape, x.dtype)
        return jnp.asarray(rng.normal(0.0, _RANDOM_CONFIG.d_model**-0.5, x.shape), x.dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return Model(_RANDOM_CONFIG, params, rotary.RoPE(), ByteTokenizer())
