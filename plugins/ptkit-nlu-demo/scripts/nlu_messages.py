"""Messages to a shop: what is asked decides the intent, and slots hold what is talked about.

Every intent has phrasings for training and others for validation, and *asides*: sentences that talk
about its matter without asking for anything. A message may have an aside of another intent, so that
its words alone don't give the intent away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random
from string import Formatter
from typing import NamedTuple

from nlu_words import Split, kind_of, value


class Intent(NamedTuple):
    """The ways to ask for one thing, and ``asides`` that mention it and ask for nothing."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    asides: tuple[str, ...]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _intent(train: str, validation: str, asides: str) -> Intent:
    return Intent(_lines(train), _lines(validation), _lines(asides))


INTENTS: dict[str, Intent] = {
    "track-order": _intent(
        """
        where is my order {order}?
        can you tell me when the {product} will arrive?
        I ordered a {product} {past} and it has not arrived yet
        has order {order} left your warehouse?
        the tracking page for {order} shows nothing
        when should I expect the delivery to {place}?
        any news about the parcel for {person}?
        it was promised for {next}, is it still on the way?
        how long does it take until {order} gets to {place}?
        I am still waiting for the {product}
        the courier never showed up {past}, where is the parcel now?
        please give me the status of {order}
        """,
        """
        my {product} seems to be lost in the mail
        do you know how far {order} has got?
        {person} has been waiting for the {product} since {past}
        is there a delivery day for the parcel to {place}?
        the {product} should have been here by {past}
        """,
        """
        the delivery itself was quick
        the parcel came {past}, right on time
        tracking worked fine this time
        """,
    ),
    "cancel-order": _intent(
        """
        please cancel order {order}
        I want to cancel the {product} that I ordered {past}
        can I still stop order {order} before it ships?
        I ordered the {product} twice by mistake, take one off
        {person} does not need the {product} any more, don't send it
        I changed my mind about {order}, please call it off
        how do I cancel something that I bought {past}?
        do not ship the {product}, I found it cheaper for {price}
        drop the {product} from my order please
        kindly withdraw my order of {past}
        is it too late to cancel {order}?
        forget about the {product}, I no longer want it sent
        """,
        """
        I'd like to undo my purchase of {past}
        please don't process {order}, I picked the wrong thing
        can the {product} be removed before it goes out to {place}?
        scrap order {order}, {person} already has one
        I must call off the order for {price}
        """,
        """
        I thought about cancelling, but I will keep it
        I already cancelled the other one {past}
        no need to stop the order
        """,
    ),
    "return-item": _intent(
        """
        I would like to send the {product} back
        how can I return the {product} that came {past}?
        the {product} is not for me, can I get my money back?
        {person} did not like the {product}, I want a refund
        where do I send returns from {place}?
        please send me a return label for {order}
        can I hand in the {product} at your shop in {place}?
        I want my {price} back for the {product}
        until when can I return what I bought {past}?
        order {order} goes back to you, what do I have to do?
        the {product} is nice but I don't need it, how do returns work?
        I need a refund for {order}
        """,
        """
        can somebody pick up the {product} in {place}? I am not keeping it
        what is the last day to give the {product} back?
        I'd rather have the {price} than the {product}
        {person} got two of these, one should go back to you
        please refund {order}, it is unused
        """,
        """
        I don't want a refund
        the return of the first one went well
        I am not sending it back
        """,
    ),
    "exchange-item": _intent(
        """
        can I swap the {product} for a bigger one?
        the {product} is too small, I need the next size
        please exchange the {product} for a blue one
        I got the {product} but would rather have the {product}
        {person} needs a different size of the {product}
        can you change the {product} in {order} for another colour?
        I'd like to trade the {product} for a {product}
        the {product} does not fit, can I have it one size up?
        can I exchange it at the shop in {place}?
        please replace the size 40 by a 42 in order {order}
        I want the same {product} in black instead
        is it possible to switch to the {product} and pay the difference of {price}?
        """,
        """
        the {product} is a bit tight, do you have it larger to swap?
        could {person} get the other colour in place of this one?
        I'd prefer the {product} over the {product} that came {past}
        how do I get a size smaller for {order}?
        let me change my {product} for the newer model
        """,
        """
        the size fits well
        I do not want another colour
        the swap {past} was easy
        """,
    ),
    "damaged-item": _intent(
        """
        the {product} arrived broken
        the {product} has a crack on one side
        order {order} came with parts missing
        the {product} stopped working after two days
        my {product} makes a strange noise and gets hot
        the box was open and the {product} is scratched
        the {product} that {person} received {past} is torn
        there is a hole in the {product}
        the {product} won't switch on
        the {product} from {order} is leaking
        what came {past} was smashed to pieces
        the zip of the {product} came off at once
        """,
        """
        something rattles inside the {product}
        {person} opened the parcel in {place} and the {product} was in two pieces
        the {product} died {past}
        half of {order} is bent and stained
        the {product} for {price} fell apart right away
        """,
        """
        nothing is broken
        it works perfectly
        it arrived in one piece
        """,
    ),
    "wrong-charge": _intent(
        """
        I was charged {price} twice
        my card shows {price} but the {product} costs {price}
        why did you take {price} from my account {past}?
        the discount code was not applied to {order}
        you billed me for a {product} that I never ordered
        the invoice for {order} is wrong
        I paid {price} too much for the {product}
        there is a payment of {price} that I can't explain
        the shipping to {place} was meant to be free, but I paid {price}
        {person} was billed for my order
        the sum on my statement of {past} does not match {order}
        I see two bookings for the same {product}
        """,
        """
        {price} left my bank account for nothing
        your bill says {price}, we had agreed on {price}
        please check the amount for {order}, it looks too high
        the voucher from {person} did not lower the total
        it says {price} for postage to {place}, which can't be right
        """,
        """
        I paid {price} and that is fine
        the invoice came {past}
        the payment went through
        """,
    ),
    "change-address": _intent(
        """
        please send {order} to {place} instead
        I am moving to {place} {next}, update my address
        I gave the wrong street for {order}
        can the {product} be delivered to {person} in {place}?
        change the delivery address from {place} to {place}
        the house number on {order} is wrong
        I will be in {place} {next}, can it be sent there?
        ship it to my office in {place}, not to my home
        please deliver {order} to my neighbour {person}
        my new address is in {place}
        the label should say {person}, {place}
        can I still correct where the parcel goes?
        """,
        """
        we don't live in {place} any more, please note that
        {order} must not go to {place}, {person} lives in {place} now
        could the driver bring the {product} to {place}?
        I made a typo in the postcode for {place}
        let {person} in {place} receive the {product} for me
        """,
        """
        my address is still in {place}
        I live in {place}
        the address is correct
        """,
    ),
    "product-question": _intent(
        """
        is the {product} in stock?
        does the {product} come in other colours?
        how heavy is the {product}?
        will you have the {product} again by {next}?
        is the {product} waterproof?
        what is the {product} made of?
        does the {product} fit a tall person?
        how much is the {product} at the moment?
        which is better for children, the {product} or the {product}?
        can the {product} be washed at 60 degrees?
        do you sell the {product} in {place}?
        is there a cheaper one than the {product} for {price}?
        """,
        """
        what are the measurements of the {product}?
        would the {product} suit {person}, who has a bad back?
        when do you get more of the {product}?
        do batteries come with the {product}?
        what is the difference between the {product} and the {product}?
        """,
        """
        the {product} looks great
        I know all about the {product}
        I saw the {product} for {price}
        """,
    ),
    "account-access": _intent(
        """
        I can't log in any more
        how do I reset my password?
        my account has been locked since {past}
        the code by text message never comes
        I want to delete my account
        please change the name on my account to {person}
        {person} left us, how do I close the account?
        I forgot which email I signed up with
        the site says that my password is wrong
        how do I sign up for an account?
        somebody in {place} logged in as me
        the login page is blank since {past}
        """,
        """
        your site won't let me in
        which user name did I register with {past}?
        I'd like a new password please
        {person} and I share a login, how do we split it?
        take my profile off your site
        """,
        """
        I am logged in
        my account works
        I changed my password {past}
        """,
    ),
    "store-visit": _intent(
        """
        when does the shop in {place} open?
        are you open {next}?
        is there a store near {place}?
        can I pick up {order} in {place}?
        can I try on the {product} somewhere?
        where can I park at your shop in {place}?
        until what time are you open {next}?
        is {person} at the counter {next}?
        I want to look at the {product} in person, where can I do that?
        may I bring my dog to the shop in {place}?
        how do I get to your store by bus?
        do I need an appointment {next}?
        """,
        """
        do you have a branch in {place}?
        what are your hours {next}?
        can {person} collect {order} at the counter?
        I'd like to come by {next} and see the {product}
        which floor is your shop in {place} on?
        """,
        """
        I was at your shop in {place} {past}
        {person} in your shop was very kind
        I passed your store {past}
        """,
    ),
}
_GREETINGS = ("", "", "", "hi, ", "hello, ", "good morning, ", "hey there, ", "dear team, ")
_CLOSINGS = ("", "", "", "thanks", "thank you", "regards, {person}", "please answer by {next}")
_LINKS = {"before": ("{aside}, but {core}", "{aside}. {core}"), "after": ("{core}. {aside}",)}
_WORD = re.compile(r"[A-Za-z0-9]+(?:['./-][A-Za-z0-9]+)*|\S")


class Message(NamedTuple):
    """``spans``: (start, end, kind) of every slot's value, half-open, in order."""

    text: str
    intent: str
    spans: tuple[tuple[int, int, str], ...]


def fill(template: str, rng: Random, split: Split) -> tuple[str, tuple[tuple[int, int, str], ...]]:
    """The template with values in its slots, and where they are."""
    text, spans = "", []
    for literal, kind, _, _ in Formatter().parse(template):
        text += literal
        if kind is not None:
            start = len(text)
            text += value(kind, rng, split)
            spans.append((start, len(text), kind_of(kind)))
    return text, tuple(spans)


def _template(intent: str, rng: Random, split: Split) -> str:
    core = rng.choice(INTENTS[intent].train if split == "train" else INTENTS[intent].validation)
    if rng.random() < 0.5:
        other = rng.choice([name for name in INTENTS if name != intent])
        aside = rng.choice(INTENTS[other].asides)
        link = rng.choice(_LINKS[rng.choice(("before", "after"))])
        core = link.replace("{core}", core).replace("{aside}", aside).replace("?.", "?")
    core = rng.choice(_GREETINGS) + core
    if rng.random() < 0.5:
        core += rng.choice(("", "!", ".") if core[-1] != "?" else ("",))
    closing = rng.choice(_CLOSINGS)
    return f"{core}{' ' if core[-1] in '.!?' else '. '}{closing}" if closing else core


def messages(split: Split, count: int, *, slots: bool) -> Iterator[Message]:
    """``count`` different messages, the intents in turn; with ``slots``, each has two at least."""
    rng = Random(f"messages-{split}-{slots}")
    seen: set[str] = set()
    while len(seen) < count:
        intent = list(INTENTS)[len(seen) % len(INTENTS)]
        text, spans = fill(_template(intent, rng, split), rng, split)
        if text in seen or (slots and len(spans) < 2):
            continue
        seen.add(text)
        yield Message(text, intent, spans)


def tagged_words(message: Message) -> list[tuple[str, str]]:
    """The words and their BIO tags.

    >>> tagged_words(Message("cancel A-12 now", "cancel-order", ((7, 11, "order"),)))
    [('cancel', 'O'), ('A-12', 'B-order'), ('now', 'O')]
    """
    words = []
    for match in _WORD.finditer(message.text):
        tag = "O"
        for start, end, kind in message.spans:
            if start <= match.start() and match.end() <= end:
                tag = f"{'B' if match.start() == start else 'I'}-{kind}"
        words.append((match.group(), tag))
    return words
