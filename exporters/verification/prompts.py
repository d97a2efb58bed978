"""The fixed prompts of every verification: prose written for this purpose, then seeded random tokens.

Text shows a model where it is used; random tokens reach embeddings and outliers that text leaves out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from compressor.core.errors import VerificationError
from exporters.verification.record import PromptCounts

MIN_POSITIONS = 2048
PROMPT_TOKENS = 256
_SEED = 20_240_807

PromptKind = Literal["text", "random"]

TEXTS = (
    (  # A walk
        "The path along the river had been closed since the flood, so we climbed over the fence and kept "
        "to the higher bank, where the grass was already dry. My sister carried the map although she "
        "never looked at it; she said that a river is its own map and that only roads need drawing. By "
        "noon we had reached the weir. Two herons stood on the far side, each on one leg, each "
        "pretending not to have noticed the other. We ate bread and hard cheese and threw the crusts to "
        "the ducks. When the rain came it came from the wrong direction, up the valley instead of down "
        "it, and within a minute there was nothing to do but laugh and run for the mill, whose roof had "
        "lost half of its tiles but kept the half that mattered."
    ),
    (  # How a thing works
        "A heat pump moves heat instead of making it. A fluid that boils well below freezing passes "
        "through a coil outside the house, takes up warmth from the cold air and turns into a gas. A "
        "compressor squeezes that gas, which raises its temperature further, and a second coil indoors "
        "gives the heat to water or air. As it cools, the fluid becomes a liquid again, passes a narrow "
        "valve, expands, and starts over. For every kilowatt hour of electricity the compressor uses, "
        "three or four kilowatt hours of heat arrive indoors. The ratio falls as the difference between "
        "the two temperatures grows: 7 degrees outside and 35 in the floor is easy, minus 15 outside and "
        "60 in an old radiator is not. Insulation therefore helps twice."
    ),
    (  # Code
        "def moving_average(values, width):\n"
        '    """Mean of each run of `width` neighbours; the result is shorter by width - 1."""\n'
        "    if width < 1 or width > len(values):\n"
        '        raise ValueError(f"width must be between 1 and {len(values)}, not {width}")\n'
        "    total = sum(values[:width])\n"
        "    means = [total / width]\n"
        "    for old, new in zip(values, values[width:]):\n"
        "        total += new - old\n"
        "        means.append(total / width)\n"
        "    return means\n\n\n"
        'if __name__ == "__main__":\n'
        "    temperatures = [12.5, 13.0, 11.75, 14.25, 15.0, 14.5, 13.25]\n"
        "    for day, mean in enumerate(moving_average(temperatures, 3), start=2):\n"
        '        print(f"day {day}: {mean:.2f} degrees")\n'
    ),
    (  # Questions and answers
        "Question: A baker sells loaves for 4 euros and rolls for 50 cents. On Saturday she sold 130 "
        "things and took 240 euros. How many loaves did she sell?\n"
        "Answer: Let the number of loaves be n. Then she sold 130 - n rolls. The money is 4n + 0.5(130 - "
        "n) = 240. Multiplying out gives 4n + 65 - 0.5n = 240, so 3.5n = 175 and n = 50. She sold 50 "
        "loaves and 80 rolls. To check: 50 loaves bring 200 euros and 80 rolls bring 40, together "
        "240.\n\n"
        "Question: Which of the two brought more money per minute, if a loaf takes 3 minutes of her time "
        "and a roll takes 15 seconds?\n"
        "Answer: A loaf brings 4 / 3, about 1.33 euros per minute. A roll brings 0.5 / 0.25 = 2 euros "
        "per minute. The rolls did."
    ),
    (  # An encyclopaedia's tone
        "Lichens are not plants. Each is a partnership between a fungus, which builds the body, and "
        "algae or bacteria living inside it, which make sugar from light. Neither partner looks the same "
        "alone. Lichens grow on bare rock, bark, glass, even on the backs of slow beetles, and they dry "
        "out completely without dying: an hour after rain they are at work again. Growth is slow, often "
        "less than a millimetre a year, and regular enough that the diameter of the largest circle on a "
        "moraine tells roughly when the ice left it. Because they have no roots and take what they need "
        "from air and rain, they also take up what they do not need, and many kinds disappeared from "
        "cities in the nineteenth century. Some have since come back."
    ),
    (  # A letter, a list, other languages
        "Dear Mr Okafor,\n\n"
        "Thank you for your letter of 3 March. The parcel left our warehouse on the 28th and, according "
        "to the carrier, has been in Rotterdam since Tuesday. I have asked for it to be sent on today. "
        "Please keep the following ready when it arrives:\n\n"
        "1. the order number (NL-40817-B),\n"
        "2. a document with your photograph,\n"
        "3. the customs form, signed twice.\n\n"
        "If the seal is broken, do not accept it. Call us instead; we will send another.\n\n"
        "Yours sincerely,\n"
        "Helene Brandt\n\n"
        "Der Zug nach Basel fährt heute von Gleis sieben ab, nicht von Gleis vier. Le marché ferme à "
        "midi, mais la boulangerie reste ouverte. El gato duerme sobre la mesa mientras llueve. Il treno "
        "è in ritardo di venti minuti. 駅まで歩いて十分です。"
    ),
    (  # Dialogue
        '"You counted them again," said the captain.\n'
        '"Twice, sir. Forty-one barrels. There were forty-two at Lisbon."\n'
        '"Then one has been drunk."\n'
        '"Not drunk, sir. The barrel itself is gone. Nobody drinks the wood."\n'
        "The captain put down his pen. Through the stern window the sea was the colour of slate, and the "
        "wake ran straight behind them as if ruled on it. In nineteen years he had lost men, masts, an "
        "anchor, and once a whole boat with everyone in it, and he had written each into the log in the "
        "same small hand. A barrel ought not to have troubled him.\n"
        '"Who had the night watch?" he asked.\n'
        '"I did, sir," said the mate, and looked at his shoes.'
    ),
    (  # Structured text
        '{"station": "north-ridge", "height_m": 1843, "readings": [{"time": "06:00", "wind_m_s": 11.2, '
        '"gust_m_s": 17.9, "snow_cm": 64}, {"time": "07:00", "wind_m_s": 12.8, "gust_m_s": 20.4, '
        '"snow_cm": 66}, {"time": "08:00", "wind_m_s": 9.1, "gust_m_s": 15.0, "snow_cm": 67}], '
        '"warning": null}\n\n'
        "| month | rain in mm | days with frost |\n"
        "|---|---|---|\n"
        "| January | 71 | 19 |\n"
        "| February | 58 | 16 |\n"
        "| March | 62 | 11 |\n"
        "| April | 49 | 4 |\n\n"
        "Theorem. Among any six people there are three who all know each other or three of whom no two "
        "do. Proof. Choose one person. Of the other five, at least three are known to her, or at least "
        "three are not; by symmetry suppose the former. If two of those three know each other, they and "
        "she are three who do. If no two of them do, they are the three we want."
    ),
)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids of one sequence."""

    kind: PromptKind
    token_ids: tuple[int, ...]


def verification_prompts(tokenizer: Any, *, vocab_size: int, max_length: int) -> list[Prompt]:
    """The fixed prompts for one vocabulary, at least `MIN_POSITIONS` positions together.

    Without a tokenizer all tokens are random. No prompt is longer than `max_length`; a tokenizer that makes
    ids beyond `vocab_size`, the rows of the embedding, is a VerificationError.
    """
    length = min(PROMPT_TOKENS, max_length)
    prompts = []
    for text in TEXTS if tokenizer is not None else ():
        token_ids = tokenizer(text, add_special_tokens=False).input_ids
        if max(token_ids) >= vocab_size:
            raise VerificationError(
                "the tokenizer produces token ids beyond the vocabulary",
                where="tokenizer",
                expected=f"below {vocab_size}",
                found=max(token_ids),
            )
        prompts.append(Prompt(kind="text", token_ids=tuple(token_ids[:length])))
    generator = np.random.default_rng(_SEED)
    num_positions = sum(len(prompt.token_ids) for prompt in prompts)
    while num_positions < MIN_POSITIONS:
        token_ids = generator.integers(vocab_size, size=length).tolist()
        prompts.append(Prompt(kind="random", token_ids=tuple(token_ids)))
        num_positions += length
    return prompts


def describe_prompts(prompts: list[Prompt]) -> PromptCounts:
    """What of prompts is recorded."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(np.asarray([len(prompt.token_ids), *prompt.token_ids], dtype="<u4").tobytes())
    counts = {
        f"num_{kind}_positions": sum(len(prompt.token_ids) for prompt in prompts if prompt.kind == kind)
        for kind in ("text", "random")
    }
    return PromptCounts(num_prompts=len(prompts), **counts, sha256=digest.hexdigest())
