"""A ledger of two claims and two arms, and lines of its runs."""

import pathlib

from benchmarks.hypotheses import entries

SMALL_LEDGER = {
    "arms.toml": '[models.m]\narg=""\nstages="pretrain"\noutput="made"\n[models.n]\narg=""\nstages="collect"\n'
                 'output="made"\noverrides={ "policy.init" = "@m/made" }\n'
                 '[arms.a]\narg="x"\n[arms.b]\narg="y"\noverrides={ "policy.init" = "@n/made" }\n',
    "c01.toml": 'id="C1"\ntitle="t"\nclaim="c"\nsource="s"\nseeds=[0, 1]\norder=2\n[[comparisons]]\nsays="greater"\n'
                'smallest=0.1\ntreatment="a:em"\ncontrol="b:em"\n',
    "c02.toml": 'id="C2"\ntitle="t"\nclaim="c"\nsource="s"\nseeds=[1, 2]\norder=1\n[[correlations]]\nsays="greater"\n'
                'smallest=0.1\nx="em"\ny="f1"\narms=["a"]\n'}


def small_ledger(folder: pathlib.Path) -> entries.Ledger:
    """The entries, written to the folder and read."""
    folder.mkdir()
    for name, text in SMALL_LEDGER.items():
        (folder / name).write_text(text)
    return entries.load(folder)


def lines_of(book, values, curves=None):
    """Stored lines of {(arm, seed): em}."""
    return {(arm, book.arms[arm].digest, seed): {
        "arm": arm, "seed": seed, "commit": "c" * 40, "seconds": 60.0, "measures": {"em": em, "f1": 2 * em, "fall": 0.0},
        "curves": curves or {"eval/em": [None, em]}} for (arm, seed), em in values.items()}
