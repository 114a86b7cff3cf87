"""What a model is asked, one file per task: training mixtures and evaluation use the same objects.

    samples = Passkey().samples(documents, tokenizer, length=4096, count=50, seed=0, bos="<s>")

A task is a frozen dataclass with its texts. `samples` draws from held-out documents, and each
sample has exactly the length that was asked for: a beginning token, context, question and answer.
A control asks the same questions of a context that does not hold their answers.
"""

from longrope_jax.tasks.first_sentence import FirstSentence
from longrope_jax.tasks.passkey import Passkey
from longrope_jax.tasks.samples import CONTROLS, Samples, Task, encode

__all__ = ["CONTROLS", "FirstSentence", "Passkey", "Samples", "Task", "encode"]
