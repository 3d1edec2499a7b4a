"""The templates of the quickstart's questions and orders, by kind and split."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasings:
    """Templates of one question, by split.

    Args:
        train: Shown in training.
        val: For selection.
        test: For reported results.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def of(self, split: str) -> tuple[str, ...]:
        """The templates of a split."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


PHRASINGS: dict[str, Phrasings] = {
    "count": Phrasings(
        (
            "how many digits are there?",
            "how many digits do you see?",
            "count the digits.",
            "how many digits are in the picture?",
            "tell me the number of digits.",
            "what is the number of digits in the picture?",
        ),
        ("tell me the number of digits in the picture.",),
        ("how many digits are there in the picture?", "count the digits in the picture."),
    ),
    "count_colour": Phrasings(
        (
            "how many {colour} digits are there?",
            "how many digits are {colour}?",
            "count the {colour} digits.",
            "how many {colour} digits do you see?",
        ),
        ("tell me the number of {colour} digits.",),
        ("how many {colour} digits are there in the picture?", "how many {colour} digits are in the picture?"),
    ),
    "colour": Phrasings(
        (
            "what colour is the {digit}?",
            "which colour does the {digit} have?",
            "tell me the colour of the {digit}.",
            "name the colour of the {digit}.",
            "tell me which colour the {digit} has.",
        ),
        ("what is the colour of the {digit}?",),
        ("which colour is the {digit}?", "what colour does the {digit} have?"),
    ),
    "digit_of_colour": Phrasings(
        (
            "which digit is {colour}?",
            "what is the {colour} digit?",
            "tell me the {colour} digit.",
            "name the digit that is {colour}.",
            "what digit do you see in {colour}?",
        ),
        ("what digit is {colour}?",),
        ("which digit do you see in {colour}?", "name the {colour} digit."),
    ),
    # Asked in training alone.
    "colours_of": Phrasings(
        (
            "name the colours of {names}.",
            "which colours do {names} have?",
            "tell me what colour each is: {names}.",
            "for each digit name the colour: {names}.",
        ),
        ("tell me the colours of {names}.",),
        ("what colours do {names} have?", "name the colour of each: {names}."),
    ),
    "digits_of": Phrasings(
        (
            "name the digits that are {names}.",
            "which digits are {names}?",
            "tell me which digit is which: {names}.",
            "for each colour name the digit: {names}.",
        ),
        ("tell me which digits are {names}.",),
        ("name the digit of each colour: {names}.", "what digits are {names}?"),
    ),
    "sums_of": Phrasings(
        (
            "name the sums of {names}.",
            "add up the digits that are {names}.",
            "what do these add up to: {names}?",
            "tell me the sum of each: {names}.",
        ),
        ("tell me what the sums of {names} are.",),
        ("tell me the sums of {names}.", "add up these digits: {names}."),
    ),
    "plus": Phrasings(
        (
            "what is {names}?",
            "tell me what {names} is.",
            "add {names}.",
            "name the sum of each: {names}.",
        ),
        ("tell me: what is {names}?",),
        ("add up {names}.", "tell me {names}."),
    ),
    "leftmost": Phrasings(
        (
            "which digit is furthest to the left?",
            "what is the leftmost digit?",
            "name the digit on the far left.",
            "tell me the leftmost digit.",
            "what digit stands on the far left?",
        ),
        ("tell me which digit is furthest to the left.",),
        ("what digit is furthest to the left?", "name the leftmost digit."),
    ),
    "largest": Phrasings(
        (
            "which digit is drawn largest?",
            "what is the largest digit in size?",
            "name the digit that is drawn largest.",
            "which digit takes up the most room?",
            "tell me the digit that is drawn largest.",
        ),
        ("tell me which digit is drawn largest.",),
        ("what digit is drawn largest?", "name the digit that takes up the most room."),
    ),
    "sum": Phrasings(
        (
            "what do the {a} and the {b} digit add up to?",
            "add the {a} and the {b} digit.",
            "what is the sum of the {a} and the {b} digit?",
            "what is the {a} digit plus the {b} digit?",
            "tell me the sum of the {a} digit and the {b} digit.",
        ),
        ("tell me the sum of the {a} and the {b} digit.",),
        ("what do the {a} digit and the {b} digit add up to?", "what is the sum of the {a} digit and the {b} digit?"),
    ),
    "greater_which": Phrasings(
        (
            "which is greater, the {a} or the {b} digit?",
            "which digit is greater, the {a} or the {b} one?",
            "tell me which is greater, the {a} digit or the {b} one.",
            "what is greater, the {a} digit or the {b} digit?",
        ),
        ("tell me which digit is greater, the {a} or the {b} one.",),
        ("which is greater, the {a} digit or the {b} one?", "which digit is greater, the {a} digit or the {b} digit?"),
    ),
    "greater_yes_no": Phrasings(
        (
            "is the {a} digit greater than the {b} one?",
            "is the {a} one greater than the {b} digit?",
            "tell me: is the {a} digit greater than the {b} one?",
            "is it true that the {a} digit is greater than the {b} digit?",
        ),
        ("tell me: is the {a} digit greater than the {b} digit?",),
        ("is the {a} digit greater than the {b} digit?", "is it true that the {a} digit is greater than the {b} one?"),
    ),
    "exists": Phrasings(
        (
            "is there a {name}?",
            "do you see a {name}?",
            "does the picture show a {name}?",
            "can you see a {name} in the picture?",
        ),
        ("can you see a {name}?",),
        ("is there a {name} in the picture?", "do you see a {name} in the picture?"),
    ),
    "caption": Phrasings(
        (
            "describe the picture.",
            "what does the picture show?",
            "what do you see?",
            "name everything in the picture from left to right.",
            "tell me what the picture shows.",
        ),
        ("tell me what you see in the picture.",),
        ("describe everything in the picture.", "what do you see in the picture?"),
    ),
    "ground": Phrasings(
        (
            "where is the {ref}?",
            "find the {ref}.",
            "show me where the {ref} is.",
            "point to the {ref}.",
            "tell me where the {ref} is.",
            "locate the {ref} in the picture.",
        ),
        ("find the {ref} in the picture.",),
        ("where is the {ref} in the picture?", "locate the {ref}."),
    ),
    "seg": Phrasings(
        (
            "cut out the {ref}.",
            "segment the {ref}.",
            "give me the mask of the {ref}.",
            "cut the {ref} out of the picture.",
            "please cut out the {ref}.",
        ),
        ("please segment the {ref}.",),
        ("cut the {ref} out.", "give me the mask of the {ref} in the picture."),
    ),
    "draw": Phrasings(
        (
            "draw a {name}.",
            "paint a {name}.",
            "please draw a {name}.",
            "make a picture of a {name}.",
            "give me a drawing of a {name}.",
        ),
        ("please paint a {name}.",),
        ("draw me a {name}.", "make a drawing of a {name}."),
    ),
    "edit": Phrasings(
        (
            "make the {ref} {new}.",
            "change the {ref} to {new}.",
            "turn the {ref} {new}.",
            "paint the {ref} {new}.",
            "change the colour of the {ref} to {new}.",
        ),
        ("please make the {ref} {new}.",),
        ("please turn the {ref} {new}.", "please change the {ref} to {new}."),
    ),
    # A verb is mentioned and must not be followed: {verb} is an imperative, {clause} an indirect question.
    "negated": Phrasings(
        (
            "do not {verb}, just tell me {clause}.",
            "do not {verb}. tell me {clause}.",
            "just tell me {clause}, do not {verb}.",
            "please do not {verb}, only say {clause}.",
            "you could {verb}, but just say {clause}.",
        ),
        ("please do not {verb}, just tell me {clause}.",),
        ("do not {verb}, only tell me {clause}.", "you could {verb}, but only say {clause}."),
    ),
    "refused": Phrasings(
        ("do not {verb}.", "please do not {verb}.", "you must not {verb}.", "do not {verb}, please."),
        ("just do not {verb}.",),
        ("please just do not {verb}.", "you must not {verb}, please."),
    ),
    "two": Phrasings(
        ("{a} and {b}.", "first {a}, then {b}.", "{a} and then {b}.", "please {a} and also {b}."),
        ("please {a} and {b}.",),
        ("please {a} and then {b}.", "first {a} and then {b}."),
    ),
    "transcribe": Phrasings(
        (
            "transcribe.",
            "what is said?",
            "write down what you hear.",
            "transcribe the clip.",
            "write what is said.",
            "write down the words that you hear.",
        ),
        ("transcribe what you hear.",),
        ("transcribe what is said.", "write down what is said."),
    ),
    "translate": Phrasings(
        (
            "translate into german.",
            "what is it in german?",
            "write it in german.",
            "translate the clip into german.",
            "say it in german.",
        ),
        ("translate what you hear into german.",),
        ("translate what is said into german.", "write what is said in german."),
    ),
    "speakers": Phrasings(
        (
            "is it one speaker or two?",
            "how many speakers are there?",
            "do you hear one speaker or two?",
            "count the speakers.",
            "how many speakers do you hear?",
            "count the speakers that you hear.",
            "are there two speakers or one?",
        ),
        ("tell me how many speakers you hear.",),
        ("how many speakers are there in the clip?", "is it one speaker or two that you hear?"),
    ),
    "voices": Phrasings(
        (
            "is the voice low or high?",
            "does a low or a high voice speak?",
            "do you hear a low voice, a high voice or both?",
            "tell me whether the voice is low or high.",
            "which voice do you hear, a low or a high one?",
        ),
        ("tell me which voice you hear, a low or a high one.",),
        ("do you hear a low or a high voice?", "which voice is it, a low or a high one?"),
    ),
    "spoken_question": Phrasings(
        (
            "answer the question.",
            "listen and answer.",
            "answer what is asked.",
            "please answer the spoken question.",
            "listen to the clip and answer.",
        ),
        ("listen and answer the question.",),
        ("answer the spoken question.", "listen to the clip and answer the question."),
    ),
    "node_class": Phrasings(
        (
            "which family does the module belong to?",
            "name the family of the module.",
            "classify the module.",
            "what family is the module from?",
            "to which family does the first module of the graph belong?",
        ),
        ("what is the family of the module?",),
        ("which family is the module from?", "name the family that the module belongs to."),
    ),
    "link": Phrasings(
        (
            "does the first module import the second?",
            "is the second module imported by the first?",
            "is there an import from the first module to the second?",
            "tell me: does the first module import the second?",
        ),
        ("does the first import the second?",),
        (
            "is there an import of the second module by the first?",
            "is it true that the second module is imported by the first?",
        ),
    ),
    "match": Phrasings(
        (
            "match the texts to the modules of the graph.",
            "which text belongs to which module?",
            "order the texts like the modules of the graph.",
            "for each module of the graph, which text belongs to it?",
        ),
        ("match each text to a module of the graph.",),
        ("match the texts to the modules.", "which text belongs to which module of the graph?"),
    ),
}

# Imperatives for "two", "negated" and "refused", by the task they would call.
VERBS: dict[str, tuple[str, ...]] = {
    "ground": ("find the {ref}", "point to the {ref}", "show me where the {ref} is"),
    "seg": ("cut out the {ref}", "segment the {ref}", "cut the {ref} out"),
    "draw": ("draw a {name}", "paint a {name}", "make a picture of a {name}"),
    "edit": ("make the {ref} {new}", "turn the {ref} {new}", "change the {ref} to {new}"),
}
