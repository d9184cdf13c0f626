"""Draws the pictures of the documents as SVG, without a library.

    python docs/pictures.py            all of them, into docs/method
    python docs/pictures.py diagrams   those that need no model

The trajectory is a real episode: the carried policy against the carried simulator, on a question of two hops.
"""

import html
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent / "method"
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"
INK, PAPER, LINE = "#1f2933", "#ffffff", "#52606d"
HOST, DEVICE = "#fdf3dc", "#e3f0fb"
ROLES = {"prompt": "#eceff1", "policy": "#d7f0dd", "document": "#dcebfb", "template": "#f5e6fa"}


def svg(width: int, height: int, body: list[str], title: str) -> str:
    marker = ("<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
              f"<path d='M0,0 L8,4 L0,8 z' fill='{LINE}'/></marker></defs>")
    return (f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' role='img'>"
            f"<title>{html.escape(title)}</title>{marker}<rect width='{width}' height='{height}' fill='{PAPER}'/>\n"
            + "\n".join(body) + "\n</svg>\n")


def text(x, y, words, *, size=13, weight="normal", anchor="middle", color=INK, family=FONT) -> str:
    return (f"<text x='{x:g}' y='{y:g}' {family} font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' "
            f"fill='{color}' xml:space='preserve'>{html.escape(words)}</text>")


def box(x, y, width, height, fill, lines) -> list[str]:
    """A rounded box; its first line is bold."""
    first = y + height / 2 - 8 * (len(lines) - 1) + 4
    return [f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='6' fill='{fill}' stroke='{LINE}'/>",
            *(text(x + width / 2, first + 16 * i, line, weight="normal" if i else "bold", size=12 if i else 13)
              for i, line in enumerate(lines))]


def arrow(x1, y1, x2, y2, label="", *, dx=0, dy=-6, anchor="middle") -> list[str]:
    line = f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{LINE}' stroke-width='1.5' marker-end='url(#head)'/>"
    return [line, *([text((x1 + x2) / 2 + dx, (y1 + y2) / 2 + dy, label, size=12, anchor=anchor, color="#0b5394")]
                    if label else [])]


def way_of_the_data() -> str:
    """One training step: who computes what, and the container on each arrow."""
    top, left, wide, high, gap = 70, 20, 190, 62, 110
    columns = [left + i * (wide + gap) for i in range(3)]
    below = top + high + 100
    body = [text(20, 30, "One training step", size=16, weight="bold", anchor="start"),
            f"<rect x='640' y='14' width='16' height='16' fill='{HOST}' stroke='{LINE}'/>",
            text(662, 27, "host", anchor="start", size=12),
            f"<rect x='710' y='14' width='16' height='16' fill='{DEVICE}' stroke='{LINE}'/>",
            text(732, 27, "device", anchor="start", size=12)]
    body += box(columns[0], top, wide, high, HOST, ["questions", "QuestionStream", "a function of the step"])
    body += arrow(columns[0] + wide, top + high / 2, columns[1], top + high / 2, "list[Question]")
    body += box(columns[1], top, wide, high, DEVICE, ["rollout", "policy + search", "one compiled program"])
    body += arrow(columns[1] + wide, top + high / 2, columns[2], top + high / 2, "Episodes")
    body += box(columns[2], top, wide, high, HOST, ["rewards", "text of the policy's tokens", "terms x weights"])
    body += arrow(columns[2] + wide / 2, top + high, columns[2] + wide / 2, below, "Experience", dx=-8, dy=4, anchor="end")
    body += box(columns[2], below, wide, high, DEVICE, ["scores", "old, reference, value", "log-probs"])
    body += arrow(columns[2], below + high / 2, columns[1] + wide, below + high / 2, "TokenBatch")
    body += box(columns[1], below, wide, high, DEVICE, ["advantages", "from reward to token", "group, value, whitening"])
    body += arrow(columns[1], below + high / 2, columns[0] + wide, below + high / 2, "TokenBatch")
    body += box(columns[0], below, wide, high, DEVICE, ["updates", "minibatches, sharded", "loss_mask = POLICY"])
    body += arrow(columns[0] + wide / 2, below, columns[0] + wide / 2, top + high + 2, "", dx=0)
    body += [text(columns[0] + wide / 2 + 8, below - 58, "TrainState", size=12, anchor="start", color="#0b5394"),
             text(columns[0] + wide / 2 + 8, below - 42, "the next step", size=12, anchor="start")]
    body += arrow(columns[0] + wide / 2, below + high, columns[0] + wide / 2, below + high + 60, "dict of metrics", dx=8, dy=4,
                  anchor="start")
    body += box(columns[0], below + high + 60, wide + 120, high,
                HOST, ["recorder", "metrics.jsonl, trajectories, checkpoints", "evaluation, alarms, report"])
    return svg(columns[2] + wide + 20, below + 2 * high + 80, body, "The way of the data")


def one_search() -> str:
    """What the device does between two tokens of the policy, and what the host sees of it."""
    x, y, height = 120, 96, 50
    parts = [("policy", "writes a query", 150, "#d7f0dd"), ("tag seen", "</search>", 78, "#f5e6fa"),
             ("query cut", "prompt spliced", 104, "#f5e6fa"), ("simulator", "reads the prompt", 122, "#dcebfb"),
             ("simulator", "writes k documents", 150, "#dcebfb"), ("cut, inert", "into the context", 112, "#f5e6fa"),
             ("policy", "reads, goes on", 124, "#d7f0dd")]
    width = x + sum(part[2] for part in parts) + 30
    body = [text(20, 30, "One search in time", size=16, weight="bold", anchor="start"),
            text(20, y + 30, "device", anchor="start", weight="bold"),
            text(20, y + 160, "host", anchor="start", weight="bold"),
            f"<rect x='{x - 6}' y='{y - 26}' width='{width - x - 12}' height='{height + 76}' fill='none' stroke='{LINE}' "
            "stroke-dasharray='5 4'/>",
            text(x, y - 32, "one compiled program, all rows of the batch; each row is at its own place", anchor="start", size=12)]
    here = x
    for name, what, wide, fill in parts:
        body += box(here, y, wide - 4, height, fill, [name, what])
        here += wide
    body += [text(x, y + height + 22, "other rows meanwhile: decode, wait for a place at the simulator, end and make room for the "
                  "next episode", anchor="start", size=12),
             text(x, y + height + 40, "roles and log-probs are written with each token; equal requests are written once",
                  anchor="start", size=12)]
    low = y + 140
    body += box(x, low, 150, 40, HOST, ["questions in"])
    body += arrow(x + 75, low, x + 75, y + height + 52)
    body += box(width - 190, low, 160, 40, HOST, ["Episodes out"])
    body += arrow(width - 110, y + height + 52, width - 110, low)
    body += [f"<line x1='{x + 154}' y1='{low + 20}' x2='{width - 194}' y2='{low + 20}' stroke='{LINE}' stroke-dasharray='2 5'/>",
             text((x + width) / 2, low + 14, "no trip to the host per token or per turn", size=12)]
    return svg(width, low + 60, body, "One search in time")


def trajectory(segments) -> str:
    """An episode, each segment coloured by who wrote it. segments: [{"role": ..., "text": ...}]."""
    mono, size, row, left, columns = "font-family='DejaVu Sans Mono, Consolas, monospace'", 12, 19, 24, 100
    cell, body, y, x = 7.25, [], 74, 0
    for segment in segments:
        for i, line in enumerate(segment["text"].split("\n")):
            if i:
                y, x = y + row, 0
            while line:
                part = line[:columns - x]
                if len(part) < len(line) and " " in part.strip():
                    part = part[:part.rstrip().rfind(" ") + 1] or part
                body += [f"<rect x='{left + x * cell:g}' y='{y - 14}' width='{len(part) * cell:g}' height='{row}' "
                         f"fill='{ROLES[segment['role']]}'/>",
                         f"<text x='{left + x * cell:g}' y='{y}' {mono} font-size='{size}' fill='{INK}' xml:space='preserve' "
                         f"textLength='{len(part) * cell:g}'>{html.escape(part)}</text>"]
                x, line = x + len(part), line[len(part):]
                if line:
                    y, x = y + row, 0
    legend, at = [], left
    for role, said in (("prompt", "prompt"), ("policy", "policy: trained on"), ("document", "simulator: masked"),
                       ("template", "environment: masked")):
        legend += [f"<rect x='{at}' y='18' width='16' height='16' fill='{ROLES[role]}' stroke='{LINE}'/>",
                   text(at + 22, 31, said, anchor="start", size=12)]
        at += 30 + 8 * len(said)
    return svg(int(2 * left + columns * cell), y + 20, legend + body, "One episode, coloured by who wrote each token")


def played() -> list[dict]:
    """A right answer to a question of two hops, after a search that was answered with noisy documents."""
    import jax

    from zsjax.config import load_experiment, resolve
    from zsjax.rewards import exact_match
    from zsjax.rollout import make_rollout, transcript
    from zsjax.run import build

    config = resolve(load_experiment("experiments/tiny_world.py"))
    tokenizer = build.tokenizer(config)
    model, params = build.model(config.policy, tokenizer, seed=0, path="asset:tiny_world/policy")
    simulator = build.simulator(config, *build.model(config.simulator, tokenizer, seed=0, path="asset:tiny_world/simulator"),
                                tokenizer)
    question = next(q for q in build.questions(config, config.data.train) if q.metadata["hops"] == 2)
    rollout = make_rollout(model, simulator, tokenizer, config, group_size=32)
    episodes = jax.device_get(rollout(params, [question], noise=0.4, key=jax.random.key(0)))
    for b, answer in enumerate(transcript.answers(episodes, tokenizer)):
        if exact_match(answer, question.golden_answers) and episodes.noisy[b].any() and episodes.num_searches[b] == 3:
            return transcript.segments(episodes, b, tokenizer)
    raise SystemExit("no episode of 32 fits; choose another key")


def main(which: str = "all"):
    pictures = {"way_of_the_data": way_of_the_data(), "one_search": one_search()}
    if which == "all":
        pictures["trajectory"] = trajectory(played())
    for name, drawn in pictures.items():
        (FOLDER / f"{name}.svg").write_text(drawn)


if __name__ == "__main__":
    main(*sys.argv[1:])
