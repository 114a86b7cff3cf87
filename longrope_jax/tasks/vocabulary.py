"""Words and values that tasks draw keys, topics, names and answers from."""

from collections.abc import Iterator

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    "able ample ancient arctic awake blunt bold brave brief bright brisk broad calm careful cheap "
    "clean clear clever coarse cold cosy crisp curious daily damp dapper deep dense distant dry "
    "eager early earnest empty even exact fair faint famous fancy fierce final firm flat fluent "
    "fond frank fresh full gentle giant glad golden grand grave great green hollow honest humble "
    "idle ideal jolly keen kind large lasting late lean level light little lively local lone loud "
    "loyal lucky mellow mild modest narrow neat noble odd old open pale patient plain polite proud "
    "quick quiet rare ready regal rich rough round rustic sharp silent simple slender slow smooth "
    "sober soft solid stable steep still stout sturdy subtle sunny sweet swift tall tame tender "
    "thick tidy tiny true upper usual vast vivid warm wary wide wild wise young zealous"
)
NOUNS = _words(
    "acorn alley anchor anvil apple apron arbour arch arrow attic badge barn basin basket beacon "
    "bell bench berry bonnet bottle boulder bramble branch bridge brook broom bucket button cabin "
    "candle canoe canyon carpet cart castle cedar cellar chalk chapel cherry chest chimney cinder "
    "clock cloud clover coach comet compass copper coral cradle crane crayon creek cricket crown "
    "cushion daisy desk dolphin donkey drum eagle easel elm ember engine falcon feather fence fern "
    "ferry fiddle field flute forest fork fossil fountain garden garlic glacier glove goat grape "
    "hammer harbour harp hatch hawk hazel hedge heron hill hinge honey horn island ivy jacket jar "
    "kettle keel kite ladder lake lamp lantern lemon lily lobster locket loom maple market meadow "
    "melon mill mirror mitten moss moth mountain needle nest oak oar ocean olive orchard otter owl "
    "paddle panel parrot path peach pearl pebble pencil pepper piano pigeon pillow pine pistol "
    "planet plough plum pocket pond poplar potter prairie pumpkin quarry quill rabbit radish raft "
    "raven reed ribbon river robin rocket rope saddle sail salmon sandal scarf school shed shelf "
    "shell shovel signal silver sketch sleigh sparrow spoon spring squirrel stable statue stone "
    "stove stream swan table tailor temple thimble thistle timber torch tower trail trumpet tulip "
    "tunnel turnip turtle valley vase vessel village violin wagon walnut walrus well whistle "
    "willow window wren yarn"
)
NAMES = _words(
    "Agnes Albert Amina Anton Beatrix Boris Carmen Cedric Chiara Conrad Dagmar Dmitri Edith Elias "
    "Emeka Esther Fatima Felix Fiona Gustav Hanna Hector Ingrid Ivan Jasper Jolanda Kenji Klara "
    "Leopold Lucia Magnus Marta Milan Nadia Nikolai Olga Oscar Paloma Pavel Petra Quentin Ramona "
    "Rashid Rosa Samuel Selma Stefan Tamara Tobias Ursula Victor Wanda Xenia Yusuf Zelda"
)


def word_keys(rng: np.random.Generator) -> Iterator[str]:
    """Yields keys such as "calm-otter", each once, in random order."""
    for number in rng.permutation(len(ADJECTIVES) * len(NOUNS)).tolist():
        yield f"{ADJECTIVES[number % len(ADJECTIVES)]}-{NOUNS[number // len(ADJECTIVES)]}"


def uuid(rng: np.random.Generator) -> str:
    """Returns 128 random bits as text of 8, 4, 4, 4 and 12 hexadecimal digits."""
    digits = rng.bytes(16).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def letters(rng: np.random.Generator, count: int, alphabet: str) -> str:
    """Returns `count` random letters of an alphabet."""
    return "".join(rng.choice(list(alphabet), count))


def other_than(draw, taken) -> str:
    """Returns what `draw()` draws, and again until it is none of `taken`."""
    found = draw()
    while found in taken:
        found = draw()
    return found


def child(rng: np.random.Generator) -> int:
    """Returns a seed for draws whose number depends on the length, so that later draws do not."""
    return int(rng.integers(2**63))
