#!/usr/bin/env python3
"""Writes tests/fixtures/generated.json: BLEU by sacrebleu 2.6 and ROUGE by rouge-score 0.1.2 of small corpora.

    pip install sacrebleu==2.6.0 rouge-score==0.1.2 && dev/make_generated_fixture.py
"""

from __future__ import annotations

import json
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

CORPORA = [
    [("The cat sat on the mat.", ["The cat sat on the mat."])],
    [("The cat sat on a mat.", ["The cat is sitting on the mat.", "A cat sat on the mat, it seems."])],
    [
        ("It costs $1,234.56 (about 10-12% more), doesn't it?", ["It costs $1,234.56, about 10-12 % more; doesn't it?"]),
        ("well-known state-of-the-art e.g. 3.14.15", ["a well-known, state-of-the-art method, e.g. 3.14"]),
    ],
    [("&quot;A &amp; B&quot; &lt;x&gt; &amp;lt;", ['"A & B" <x> <']), ("one\ntwo three-\nfour", ["one two threefour five"])],
    [("a b c", ["a b c"])],
    [("a b c d e f", ["a x c y e z"]), ("same words same words", ["same words"])],
    [("", ["nothing here"]), ("some more words are here", ["some words are here now"])],
    [("nothing in common", ["quite another text"])],
    [("Naïve café — 你好 你好, İstanbul!", ["The naïve café: 你好, istanbul!", "naïve"]), ("x 1. 2 ,3 4,5", ["x 1 . 2 , 3 4 , 5"])],
    [("short", ["a much longer reference than this"]), ("the the the the the", ["the cat the dog"])],
]


def main() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    found = []
    for corpus in CORPORA:
        predictions, references = [p for p, _ in corpus], [r for _, r in corpus]
        columns = max(len(r) for r in references)
        transposed = [[r[i] if i < len(r) else None for r in references] for i in range(columns)]
        rouge = [[score.fmeasure for score in scorer.score_multi(r, p).values()] for p, r in corpus]
        bleu = corpus_bleu(predictions, transposed).score
        found.append({"predictions": predictions, "references": references, "bleu": bleu, "rouge": rouge})
    path = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "generated.json"
    path.write_text("[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n")


if __name__ == "__main__":
    main()
