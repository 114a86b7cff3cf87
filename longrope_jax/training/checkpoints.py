"""Orbax stores checkpoints of the train state and data iterator; no other file imports orbax."""

import contextlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from longrope_jax.folders import is_url, located
from longrope_jax.training import digests


class RunCheckpoints:
    """The checkpoints of one run, of which a save that was interrupted is never listed.

    Args:
        directory: the folder of the steps.
        keep: how many of the newest steps are kept; 0 keeps all.
        clean: whether to remove what a killed process left there: halves of steps, and whole steps
            beyond `keep`. For the only writer.
    """

    def __init__(self, directory: str | Path, *, keep: int = 1, clean: bool = False):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep or None, create=True, cleanup_tmp_directories=clean
        )
        self._manager = ocp.CheckpointManager(_absolute(directory), options=options)
        if clean and keep:
            for step in sorted(self._manager.all_steps())[:-keep]:
                self._manager.delete(step)

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, data_state: dict | None = None) -> None:
        """Starts writing a checkpoint in the background; arrays are copied before this returns.

        Raises:
            OSError: This checkpoint, or the one before it, cannot be written: a full disk, say.
        """
        data = digests.sealed(data_state or {}, state)
        args = {"state": ocp.args.StandardSave(state), "data": ocp.args.JsonSave(data)}
        with self._written():
            self._manager.save(step, args=ocp.args.Composite(**args))

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict]:
        """Returns (state, data state) of a step.

        Args:
            abstract_state: ShapeDtypeStructs with the shardings to restore to, on any mesh.
            step: the step of the checkpoint; None is the newest.

        Raises:
            ValueError: There is no checkpoint, it has other shapes, or a file is damaged.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise ValueError(
                f"no checkpoint in {self._manager.directory}: it has no folder of a step"
            )
        args = {"state": ocp.args.StandardRestore(abstract_state), "data": ocp.args.JsonRestore()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
            data = digests.check(restored["data"], restored["state"])
        except Exception as error:  # orbax raises bare Exception for a damaged file
            raise _unreadable(step, self._manager.directory, error) from error
        return restored["state"], data

    def close(self) -> None:
        """Waits until writes in the background have finished.

        Raises:
            OSError: The last checkpoint cannot be written.
        """
        with self._written():
            self._manager.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Raises OSError of one line for what orbax raises where a file cannot be written."""
        try:
            yield
        except Exception as error:  # TensorStore raises ValueError, orbax bare ones
            steps, where = self._manager.all_steps(read=True), self._manager.directory
            kept = f"that of step {max(steps)} is whole" if steps else "none was written before"
            words = f"no checkpoint can be written in {where} ({_reason(error)}); {kept}"
            raise OSError(words) from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def is_folder_of_steps(directory: str | Path) -> bool:
    """Returns whether a folder holds the checkpoints of a run, without opening a file."""
    folder = located(directory)
    return folder.is_dir() and any(p.name.isdecimal() and p.is_dir() for p in folder.iterdir())


def latest_step(directory: str | Path) -> int | None:
    """Returns the step of the newest complete checkpoint in a folder, or None without one."""
    if not located(directory).is_dir():
        return None
    with RunCheckpoints(directory) as checkpoints:
        return checkpoints.latest()


def steps(directory: str | Path) -> list[int]:
    """Returns the steps of all complete checkpoints in a folder, in order."""
    if not located(directory).is_dir():
        return []
    with RunCheckpoints(directory) as checkpoints:
        return checkpoints.steps()


def save_params(directory: str | Path, step: int, params: Any) -> None:
    """Saves parameters as the only checkpoint of `directory`, unless that step is already saved."""
    with RunCheckpoints(directory) as checkpoints:
        if checkpoints.latest() != step:
            checkpoints.save(step, {"params": params})


def restore_params(directory: str | Path, abstract_params: Any, step: int | None = None) -> Any:
    """Restores only the parameters of a run's checkpoint.

    This serves to continue training under another rotary method, for example.

    Args:
        directory: the folder of the run's checkpoints.
        abstract_params: ShapeDtypeStructs with the shardings to restore to.
        step: the step of the checkpoint; None is the newest.

    Raises:
        ValueError: There is no such checkpoint, it has other shapes, or a file is damaged.
    """
    directory = _absolute(directory)
    step = _found(directory, step)
    try:
        saved = params_shapes(directory, step)
        tree = {"params": jax.tree.map(_in_dtype_of, abstract_params, saved)}
        restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
        with ocp.PyTreeCheckpointer() as checkpointer:
            args = ocp.args.PyTreeRestore(tree, restore_args=restore_args, partial_restore=True)
            restored = checkpointer.restore(directory / str(step) / "state", args=args)
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            digests.check(checkpointer.restore(directory / str(step) / "data"), restored)
    except Exception as error:  # orbax raises bare Exception for a damaged file
        raise _unreadable(step, directory, error) from error
    return jax.tree.map(lambda x, like: x.astype(like.dtype), restored["params"], abstract_params)


def _in_dtype_of(like: jax.ShapeDtypeStruct, saved: jax.ShapeDtypeStruct) -> Any:
    """Returns the shape and the sharding asked for, in the data type of the file."""
    return jax.ShapeDtypeStruct(like.shape, saved.dtype, sharding=like.sharding)


def params_shapes(directory: str | Path, step: int | None = None) -> Any:
    """Returns ShapeDtypeStructs of the parameters in a checkpoint, the newest; reads no array.

    Raises:
        ValueError: There is no such checkpoint, or it is damaged.
    """
    directory = _absolute(directory)
    step = _found(directory, step)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.metadata(directory / str(step) / "state").item_metadata
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found["params"])
    except Exception as error:  # orbax raises bare Exception for a damaged file
        raise _unreadable(step, directory, error) from error


def _found(directory, step: int | None) -> int:
    """The step that is asked for, or the newest."""
    kept = steps(directory)
    if not kept:
        raise ValueError(f"no checkpoint in {directory}: it has no folder of a step")
    if step is not None and step not in kept:
        raise ValueError(f"no checkpoint of step {step} in {directory}: it has {kept}")
    return kept[-1] if step is None else step


def _absolute(directory: str | Path) -> Path:
    return located(directory) if is_url(directory) else located(directory).absolute()


def _unreadable(step: int, directory, error: Exception) -> ValueError:
    return ValueError(
        f"checkpoint {step} in {directory} is of another shape than this model or damaged: "
        f"{_reason(error)}"
    )


def _reason(error: Exception) -> str:
    """Returns what went wrong, without the paths in which TensorStore hides it."""
    system = re.search(r"([^:]+) \[os_error_code", str(error))
    if system:
        return system[1].strip()
    return textwrap.shorten(str(error).strip().partition("\n")[0], 200)
