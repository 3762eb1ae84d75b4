"""Makes `tokenizer.json`, the tiny model's tokenizer: `python -m miso_gguf.models.tiny.make.tokenizer`.

The same kind as the big models' (Llama 3's byte-level BPE and pre-tokenizer), with 1024 entries: every word that the
model can say, with a capital and without, and what else the text below teaches. The result is committed and the same on
every run; this module and the `tokenizers` library are needed only to change it.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ....core.files import write_whole
from .words import WORDS

VOCABULARY = 1024
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SPECIALS = [BOS, EOS, *(f"<|reserved_special_token_{i}|>" for i in range(14))]
"""The last 16 entries, named as Llama 3's."""

_SPOKEN_WEIGHT = 50
"""So often that every word comes out as one entry."""

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Source: `tokenizer.json` of Llama 3."""

_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million first second "
    "third fourth fifth half quarter"
)
_CALENDAR = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July August "
    "September October November December spring summer autumn winter morning noon afternoon evening night midnight "
    "today tomorrow yesterday week weekend month year hour minute"
)
_COLOURS = (
    "red orange yellow green blue purple violet pink brown black white grey silver golden scarlet turquoise dark light"
)
_SENTENCES = """
Hello there! How are you today? I'm very well, thank you, and how are you?
Good morning, everyone. Good evening, and welcome. Good night, sleep well. Goodbye, see you tomorrow!
Hi, it's me again. Nice to meet you. Pleased to meet you too. What's your name? My name is Alice. His name is Bob.
Please come in and sit down. Thanks a lot. You're welcome. Excuse me, could you help me, please? Of course I can.
I'm sorry, I don't know. Yes, that's right. No, that isn't right. Perhaps we should ask someone. Never mind, it's fine.
The sun rises in the east, and it sets in the west. The moon and the stars shine at night. The sky is clear and blue.
It was raining all day on Monday, but it will be sunny on Tuesday. The wind is cold. There is snow on the mountains.
One, two, three, four, five: once I caught a fish alive. Six, seven, eight, nine, ten: then I let it go again.
What time is it? It's half past seven. The train leaves at a quarter to nine, and the bus leaves at twelve thirty.
My number is five five five, zero one nine nine. Turn left, then turn right, then go straight ahead for two hundred
metres. The station is next to the river, behind the old church, between the library and the post office.
She has a small red car and a big black dog. He has a green hat, a yellow coat, and a pair of brown shoes.
They have been living in this house for twenty years. We have never been there before. Have you ever seen the sea?
The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. How quickly daft jumping zebras
vex! A journey of a thousand miles begins with a single step. All that glitters is not gold. Every cloud has a silver
lining. Actions speak louder than words. Better late than never. Practice makes perfect. Time and tide wait for no one.
Would you like some tea or coffee? With milk and sugar? I'd like a glass of water, please. The bread is fresh, and so
are the apples, the pears, the oranges, and the cherries. Let's have breakfast in the garden; dinner is at eight.
Reading a good book in front of the fire is the best thing in the world. Listen to the music! Can you hear the birds
singing in the trees? I can't hear you. Could you speak a little louder? Could you say that again, more slowly?
This is a test. This is only a test of the speech model. It turns written words into spoken sound, frame by frame.
Testing, testing: one, two, three. The voice should be clear, the rhythm should be even, and the pauses should be quiet.
Once upon a time, there was a king who lived in a castle on a hill, far away from the city, with his three daughters.
"Who's there?" she asked. "It's only us," they said. "We've come to visit you, and we'll stay until Sunday."
If you think about it, there's nothing that we couldn't have done, if only we'd had more time; but they wouldn't wait.
Where were you when the lights went out? Why didn't you call? Which one would you rather have: this one, or that one?
It costs 5 dollars and 99 cents. In 1984 there were 365 days... no, 366! Call 555-0199 before 10:30. Page 42, line 7.
The temperature is 21 degrees; the chance of rain is 80%. We need 3 eggs, 250 grams of flour, and 1/2 litre of milk.
[0] Hello! [1] Hi, who is speaking? [0] It's your neighbour from across the street (number 12). [1] Oh, hello again!
Dr. Smith and Mrs. Jones arrived at 9 a.m. & left at 5 p.m. - quite a long day. Send mail to: alice@example.com.
Everything is going to be all right. I believe that people are good. Don't worry, be happy. Keep calm and carry on.
Ready? Steady? Go! Stop! Wait... Start again. Up and down, in and out, over and under, here and there, now and then.
"""


def _training_text() -> list[str]:
    words = " ".join((_NUMBERS, _CALENDAR, _COLOURS)).split()
    spoken = " ".join(f"{word} {word.capitalize()}" for word in WORDS)
    return [
        *(f" {spoken}" for _ in range(_SPOKEN_WEIGHT)),
        *(f"{word.capitalize()}, {word} and {word}: the {word}" for word in words),
        *_SENTENCES.strip().splitlines(),
    ]


def make_tokenizer() -> str:
    """The text of `tokenizer.json`."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIALS),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        special_tokens=[(text, tokenizer.token_to_id(text)) for text in (BOS, EOS)],
    )
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError(f"the text gives {tokenizer.get_vocab_size()} entries, not {VOCABULARY}: add to it")
    data = json.loads(tokenizer.to_str())
    # One line a merge, so that a change can be read; both spellings are legal.
    data["model"]["merges"] = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]
    ]
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    write_whole(Path(__file__).parent.with_name("tokenizer.json"), make_tokenizer().encode())
