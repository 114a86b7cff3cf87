"""Search of factors: proposals, evolution, gradient, and one compiled fitness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longrope_jax import llama, rotary, sharding
from longrope_jax.evaluation.perplexity import score_tokens
from longrope_jax.search import evolution, fitness, gradient
from longrope_jax.search.evolution import Evolution, History
from longrope_jax.search.individuals import Individual, Target, is_monotone, published
from longrope_jax.search.longrope import LongRoPESpace
from longrope_jax.search.longrope2 import LongRoPE2Space, critical_pair

CONFIG = llama.LlamaConfig(
    vocab_size=11, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24
)
TARGET = Target(base=50.0, head_dim=8, length=16, factor=2)
LARGE = Target(base=625.0, head_dim=64, length=256, factor=4)
SMALL = Evolution(population=6, mutants=2, crossovers=2, parents=4, generations=3)
TARGETS = st.builds(
    Target,
    base=st.floats(50, 1e6),
    head_dim=st.sampled_from((8, 32, 64)),
    length=st.sampled_from((64, 256, 4096)),
    factor=st.sampled_from((1.5, 2, 4, 16)),
)


@pytest.fixture(scope="module")
def objective(random_params):
    rng = np.random.default_rng(0)
    params = random_params(CONFIG)
    return fitness.Objective(
        config=CONFIG,
        # Sharp attention, so that the frequencies matter.
        params=jax.tree.map(lambda x: 2 * x, params),
        target=TARGET,
        tokens=rng.integers(0, 11, (8, TARGET.seq_len + 1)).astype(np.int32),
        weights=rng.uniform(0, 1, (8, TARGET.seq_len)).astype(np.float32),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        group=4,
        at_once=2,
    )


def toy_fitness(individuals):
    """Distance to a vector that no published method has."""
    best = 1 + 3 * np.linspace(0, 1, LARGE.pairs) ** 2
    return np.array([np.abs(np.array(i.factors) - best).sum() for i in individuals])


def test_published_factors_are_the_papers():
    llama2 = Target(base=1e4, head_dim=128, length=4096, factor=16)
    found = published(llama2)
    j = np.arange(64)
    np.testing.assert_allclose(found["PI"].factors, 16.0)
    np.testing.assert_allclose(found["NTK"].factors, 16.0 ** (j / 63))
    # YaRN's frequencies at six pairs, computed from its repository's code.
    pairs = np.array([0, 20, 21, 32, 45, 63])
    freq = [1, 5.623413e-2, 4.694086e-2, 5.673077e-3, 1.517716e-4, 7.217387e-6]
    lambdas = np.array(found["YaRN"].factors)[pairs]
    np.testing.assert_allclose(lambdas, 1e4 ** (-pairs / 64) / freq, rtol=1e-6)


def test_a_published_method_as_factors_rotates_as_the_method_does():
    for individual, spec in zip(
        published(LARGE).values(),
        (rotary.PositionInterpolation(4, base=625), rotary.NTKAware(4, base=625)),
        strict=False,
    ):
        mine, theirs = LARGE.rotary(individual), rotary.make(spec, head_dim=64, seq_len=1024)
        positions = jnp.arange(1024)
        angle = [rotary.phases(r, positions).key.cos / r.amplitude for r in (mine, theirs)]
        np.testing.assert_allclose(*angle, atol=1e-6)


def test_critical_pairs_are_those_of_the_paper():
    assert critical_pair(Target(1e4, 96, 2048, 64)) == 31  # Phi3-mini, LongRoPE2
    assert critical_pair(Target(5e5, 128, 8192, 16)) == 35  # LLaMA3-8B
    assert critical_pair(LARGE, periods=10) < critical_pair(LARGE)


@given(TARGETS, st.integers(0, 2**32 - 1))
@example(Target(base=50.0, head_dim=32, length=64, factor=1.5), 356)
@settings(max_examples=40, deadline=None)
def test_longrope_children_are_new_monotone_and_in_range(target, seed):
    rng = np.random.default_rng(seed)
    space = LongRoPESpace(target, start_counts=(0, 4, 16))
    seen = space.initial(8, rng)
    assert len(set(seen)) == 8
    for _ in range(4):
        a, b = rng.choice(8, 2, replace=False)
        for parents, make in (((seen[a],), space.mutate), ((seen[a], seen[b]), space.cross)):
            child = make(*parents, rng, seen)  # one after the other: each must differ from the last
            assert child not in seen and is_monotone(child.factors)
            assert min(child.factors) >= 1 - 1e-12
            assert max(child.factors) <= 1.25 * target.factor + 1e-12
            assert child.start_count in (0, 4, 16)
            seen.append(child)


def test_a_mutant_changes_its_pairs_on_the_grid_and_keeps_the_others():
    space = LongRoPESpace(LARGE)
    parent = published(LARGE)["NTK"]
    child = space.mutate(parent, np.random.default_rng(0), ())
    changed = np.array(child.factors) != parent.factors
    assert 0 < changed.sum() < LARGE.pairs
    steps = np.array(child.factors)[changed] / 0.01
    np.testing.assert_allclose(steps, steps.round(), atol=1e-6)


def test_a_cross_mixes_the_genes_of_both_parents():
    space = LongRoPESpace(LARGE, start_counts=(0, 8))
    better = published(LARGE)["NTK"]
    # So little larger that any mixture is monotone.
    other = Individual(tuple(1.001 * x for x in better.factors), start_count=8)
    rng = np.random.default_rng(1)
    children = [space.cross(better, other, rng, {better, other}) for _ in range(10)]
    for child in children:
        pairs = zip(child.factors, better.factors, other.factors, strict=True)
        assert all(x in genes for x, *genes in pairs)
    assert {child.start_count for child in children} == {0, 8}
    shares = [np.mean(np.not_equal(child.factors, better.factors)) for child in children]
    assert 0.05 < np.mean(shares) < 0.3  # each pair with chance 0.3 / 2


def test_a_cross_that_gives_nothing_new_is_a_mutant_of_the_better_parent():
    space = LongRoPESpace(LARGE)
    better, other = published(LARGE)["NTK"], published(LARGE)["NTK"]
    child = space.cross(better, other, np.random.default_rng(0), {better})
    assert child != better and is_monotone(child.factors)


@given(TARGETS, st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_longrope2_follows_a_larger_base_below_the_critical_pair(target, seed):
    rng = np.random.default_rng(seed)
    space = LongRoPE2Space(target)
    seen = space.initial(6, rng)
    for parent in list(seen):
        seen.append(space.mutate(parent, rng, seen))
    assert len(set(seen)) == 12
    for child in seen:
        i, factors = child.critical, np.array(child.factors)
        assert is_monotone(child.factors)
        assert target.factor - 1e-12 <= factors[i:].min()
        assert factors[i:].max() <= 2 * target.factor + 1e-12
        if i:  # RoPE whose base makes theta_i what lambda_i asks for
            inv_freq = target.inv_freq / factors
            base = inv_freq[i] ** (-target.head_dim / (2 * i))
            np.testing.assert_allclose(
                inv_freq[:i], base ** (-2 * np.arange(i) / target.head_dim), rtol=1e-9
            )


def test_initial_critical_pairs_lie_between_ten_periods_and_one():
    found = LongRoPE2Space(LARGE).initial(40, np.random.default_rng(0))
    first, last = critical_pair(LARGE, periods=10), critical_pair(LARGE)
    assert {i.critical for i in found} == set(range(first, last + 1))


@pytest.mark.parametrize("space", [LongRoPESpace(LARGE), LongRoPE2Space(LARGE)])
def test_evolution_keeps_the_best_improves_and_depends_on_its_seed(space, tmp_path):
    def run(seed):
        path = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}.npz"
        return evolution.search(space, SMALL, toy_fitness, path, seed=seed)

    history = run(0)
    assert history == run(0) and history != run(1)
    assert len(set(history.individuals)) == SMALL.evaluations == 18
    best = np.minimum.accumulate(history.fitness)
    assert best[-1] < best[SMALL.population - 1]
    assert toy_fitness([history.best])[0] == best[-1]


def test_every_generation_draws_other_numbers():
    drawn = []

    class Recorder(LongRoPESpace):
        def mutate(self, parent, rng, seen):
            drawn.append(rng.random())
            return super().mutate(parent, rng, seen)

    space, history = Recorder(LARGE), History()
    for _ in range(3):
        children = evolution.propose(space, SMALL, history, seed=0)
        history = history.extended(children, toy_fitness(children))
    assert len(set(drawn)) == len(drawn) > 4


def test_parents_are_the_best_of_all_generations():
    parents = set()

    class Recorder(LongRoPESpace):
        def mutate(self, parent, rng, seen):
            parents.add(parent)
            return super().mutate(parent, rng, seen)

    space = Recorder(LARGE)
    individuals = space.initial(10, np.random.default_rng(0))
    parents.clear()
    history = History().extended(individuals, np.array([9, 0, 8, 1, 7, np.nan, 6, 2, 5, 3]))
    few = Evolution(population=10, mutants=40, crossovers=0, parents=4)
    evolution.propose(space, few, history, seed=0)
    assert parents == {individuals[i] for i in (1, 3, 7, 9)}


class KilledError(Exception):
    pass


def killed_after(function, calls):
    """`function`, which dies at the call after `calls`."""
    done = []

    def dying(*arguments):
        if len(done) == calls:
            raise KilledError
        done.append(1)
        return function(*arguments)

    return dying


def test_a_killed_evolution_ends_as_an_unbroken_one(tmp_path):
    space = LongRoPESpace(LARGE, start_counts=(0, 4))
    whole = evolution.search(space, SMALL, toy_fitness, tmp_path / "whole.npz", seed=3)
    path = tmp_path / "broken.npz"
    for calls in (0, 1, 2):
        with pytest.raises(KilledError):
            evolution.search(space, SMALL, killed_after(toy_fitness, calls), path, seed=3)
    calls_left = killed_after(toy_fitness, 1)
    assert evolution.search(space, SMALL, calls_left, path, seed=3) == whole
    assert evolution.load(path) == whole
    assert evolution.search(space, SMALL, killed_after(toy_fitness, 0), path, seed=3) == whole


def test_a_file_of_another_search_is_refused(tmp_path, objective):
    path = tmp_path / "history.npz"
    evolution.search(LongRoPESpace(LARGE), SMALL, toy_fitness, path, seed=0)
    with pytest.raises(
        ValueError, match=r"history.npz holds 18 individuals of a search with other settings"
    ):
        evolution.search(LongRoPESpace(TARGET), SMALL, toy_fitness, path, seed=0)
    more = dataclasses.replace(SMALL, population=7)
    with pytest.raises(ValueError, match="other settings: remove the file"):
        evolution.search(LongRoPESpace(LARGE), more, toy_fitness, path, seed=0)


def test_a_population_is_scored_by_one_program_whatever_its_size(objective, compilations):
    fitness.population_nll.clear_cache()
    individuals = LongRoPESpace(TARGET, (0, 4)).initial(9, np.random.default_rng(0))
    found = objective.fitness(individuals)
    for count in (1, 4, 5):
        np.testing.assert_allclose(objective.fitness(individuals[:count]), found[:count], rtol=1e-6)
    assert compilations.count("jit(population_nll)") == 1
    alone = []
    for individual in individuals:
        scores = score_tokens(CONFIG, objective.params, TARGET.rotary(individual), objective.tokens)
        alone.append(np.average(scores.nll, weights=objective.weights))
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert np.ptp(found) > 1e-3


def test_fitness_is_the_same_on_eight_devices(objective):
    individuals = list(published(TARGET).values())
    mesh = sharding.make_mesh(data=-1)
    spread = dataclasses.replace(objective, mesh=mesh)
    assert spread._batch[0].sharding.num_devices == 8
    params = jax.device_put(objective.params, jax.NamedSharding(mesh, jax.P()))
    spread = dataclasses.replace(spread, params=params)
    np.testing.assert_allclose(
        spread.fitness(individuals), objective.fitness(individuals), rtol=1e-5
    )


def numpy_nll(params, inv_freq, amplitude, tokens, weights):
    """Loss of the one-layer model in float64, written from the formulas."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    layer = jax.tree.map(lambda x: x[0], p["layers"])

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.norm_eps) * scale

    def rotate(x):  # [B, T, N, H], pairs (h, h + H/2)
        a, b = np.split(x, 2, axis=-1)
        angle = (np.arange(x.shape[1])[:, None] * inv_freq)[:, None]
        cos, sin = amplitude * np.cos(angle), amplitude * np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = p["embed"][tokens[:, :-1]]
    h = norm(x, layer["attention_norm"]["scale"])
    q, k, v = (np.einsum("btd,dnh->btnh", h, layer["attention"][w]) for w in ("wq", "wk", "wv"))
    q, k = rotate(q), rotate(k)
    scores = np.einsum("btnh,bsh->bnts", q, k[:, :, 0]) / np.sqrt(CONFIG.head_dim)
    T = tokens.shape[1] - 1
    scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
    attention = np.exp(scores - scores.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    out = np.einsum("bnts,bsh->btnh", attention, v[:, :, 0])
    x = x + np.einsum("btnh,nhd->btd", out, layer["attention"]["wo"])
    h = norm(x, layer["mlp_norm"]["scale"])
    gate = h @ layer["mlp"]["gate"]
    x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["mlp"]["up"])) @ layer["mlp"]["down"]
    logits = norm(x, p["final_norm"]["scale"]) @ p["unembed"]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return np.average(nll, weights=weights)


@pytest.mark.parametrize("name", ["PI", "NTK", "YaRN"])
def test_the_slope_is_that_of_a_float64_computation(objective, name):
    individual = published(TARGET)[name]
    inv_freq = TARGET.inv_freq / individual.factors
    amplitude = TARGET.spec(individual).amplitude
    arguments = objective.params, objective.tokens, objective.weights

    def nll(frequencies):
        return numpy_nll(arguments[0], frequencies, amplitude, *arguments[1:])

    step = 1e-6
    moves = step * np.eye(TARGET.pairs)
    differences = [(nll(inv_freq + m) - nll(inv_freq - m)) / (2 * step) for m in moves]
    loss, slope = objective.slope(individual)
    np.testing.assert_allclose(loss, nll(inv_freq), rtol=1e-5)
    np.testing.assert_allclose(slope, differences, atol=1e-4 * np.abs(differences).max())
    assert np.abs(differences).max() > 0.1


def test_steps_are_adam_s_on_log_factors(objective):
    start = published(TARGET)["NTK"]
    descent = gradient.begin(start)
    position, mu, nu = np.log(start.factors), 0.0, 0.0
    for t in range(1, 4):
        loss, slope = objective.slope(Individual(tuple(np.exp(position).tolist())))
        # theta / lambda falls by itself for a unit of log lambda.
        slope = -slope * TARGET.inv_freq * np.exp(-position)
        mu, nu = 0.9 * mu + 0.1 * slope, 0.999 * nu + 0.001 * slope**2
        position = position - 0.01 * (mu / (1 - 0.9**t)) / (np.sqrt(nu / (1 - 0.999**t)) + 1e-8)
        descent = gradient.step(descent, objective, learning_rate=0.01)
        assert descent.losses[-1] == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(descent.position, position, atol=1e-5)


def test_a_monotone_descent_stays_in_longrope_s_space(objective):
    descent = gradient.begin(published(TARGET)["YaRN"])
    for _ in range(5):
        descent = gradient.step(descent, objective, learning_rate=0.3, monotone=True)
        factors = tuple(np.exp(descent.position).tolist())
        assert is_monotone(factors) and factors[0] >= 1 and factors[-1] <= 2.5 + 1e-12
    free = gradient.step(descent, objective, learning_rate=0.3)
    assert not is_monotone(tuple(np.exp(free.position).tolist()))


def test_learning_lowers_the_loss_and_resumes_to_the_bit(objective, tmp_path):
    start = published(TARGET)["PI"]
    options = {"steps": 8, "learning_rate": 0.002}
    whole = gradient.learn(start, objective, tmp_path / "whole.npz", **options)
    assert whole.losses.min() < whole.losses[0] - 1e-3
    assert whole.best.factors == tuple(whole.factors[whole.losses.argmin()])
    path = tmp_path / "broken.npz"
    with pytest.raises(KilledError):
        gradient.learn(start, objective, path, on_step=killed_after(lambda: None, 3), **options)
    again = gradient.learn(start, objective, path, **options)
    for field in dataclasses.fields(gradient.Descent):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(whole, field.name))
    with pytest.raises(ValueError, match="holds 8 steps of a search with other"):
        gradient.learn(start, objective, path, steps=5, learning_rate=0.02)


def test_phases_stay_exact_along_a_descent(objective):
    descent = gradient.begin(published(TARGET)["YaRN"])
    for _ in range(3):
        descent = gradient.step(descent, objective, learning_rate=0.1)
    individual = Individual(tuple(np.exp(descent.position).tolist()))
    positions = np.array([0, 1, 31, 2**24 - 1])
    rot = TARGET.rotary(individual)
    exact = np.cos(positions[:, None] * (TARGET.inv_freq / individual.factors))
    assert not np.asarray(rot.delta).any()
    cos = rotary.phases(rot, positions).key.cos / rot.amplitude
    np.testing.assert_allclose(cos, exact, atol=2e-6)


def test_what_cannot_be_searched_is_refused(objective):
    with pytest.raises(ValueError, match="above 1 for a search, got 1"):
        Target(1e4, 64, 256, 1)
    with pytest.raises(ValueError, match="head_dim must be at least 4 for a search, got 2"):
        Target(1e4, 2, 256, 2)
    with pytest.raises(ValueError, match="start_counts must include 0"):
        LongRoPESpace(LARGE, (1, 2))
    with pytest.raises(ValueError, match="probability must lie in"):
        LongRoPE2Space(LARGE, 1.5)
    with pytest.raises(ValueError, match="parents must be at least 2, got 1"):
        Evolution(parents=1)
    with pytest.raises(ValueError, match="start_count 0"):
        objective.slope(Individual((2.0,) * 4, start_count=3))
    narrow = LongRoPESpace(Target(1e4, 4, 16, 1.1))
    with pytest.raises(ValueError, match="no new mutant"):
        narrow.initial(5000, np.random.default_rng(0))


def test_a_descent_begins_at_the_published_method_of_its_rank(tmp_path, monkeypatch):
    class Objective:
        target = TARGET

        def fitness(self, individuals):
            return np.asarray([2.0, 3.0, 1.0])  # of PI, NTK and YaRN

    monkeypatch.setattr(gradient, "learn", lambda start, *args, **options: start)
    known, options = published(TARGET), {"steps": 1, "learning_rate": 0.1}
    for rank, name in enumerate(("YaRN", "PI", "NTK")):
        found = gradient.from_published(Objective(), tmp_path, start=rank, **options)
        assert found.factors == known[name].factors
    with pytest.raises(ValueError, match="start must be 0 to 2, got 3"):
        gradient.from_published(Objective(), tmp_path, start=3, **options)
