"""Speed of the shop: loading a catalogue, searching it, and stepping through it.

    python benchmarks/webshop.py [--products 100000] [--data DIR] [--episodes 200] [--json]

Draws a catalogue of the wanted size, writes it as genuine product files and loads them, or loads the files
in DIR. Queries are instructions of its own goals. Steps are those of the expert and, without it, of random
clicks. Times are of the processor, one thread; searches also give the slowest one.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from krill_tui.envs.base import StepResult
from krill_tui.envs.webshop import pages, procedural
from krill_tui.envs.webshop.catalogue import Catalogue, load_products
from krill_tui.envs.webshop.expert import WebshopExpert
from krill_tui.envs.webshop.session import Session


def write_files(folder: Path, size: int) -> None:
    """A procedural catalogue as the genuine product files."""
    items, attributes = procedural.draw_records(0, size)
    (folder / "items_shuffle.json").write_text(json.dumps(items))
    (folder / "items_ins_v2.json").write_text(json.dumps(attributes))


def measure_load(folder: Path) -> tuple[Catalogue, dict[str, float]]:
    clock = time.process_time
    start = clock()
    products = load_products(folder)
    parsed = clock()
    catalogue = Catalogue(products)
    indexed = clock()
    return catalogue, {
        "products": len(products),
        "parse_s": parsed - start,
        "index_s": indexed - parsed,
        "load_s": indexed - start,
    }


def measure_search(catalogue: Catalogue, count: int) -> dict[str, float]:
    asked = [product.instruction for product in catalogue.products if product.instruction]
    queries = random.Random(0).sample(asked, min(count, len(asked)))
    times: list[float] = []
    for query in queries:
        start = time.process_time()
        catalogue.search(query)
        times.append(1e3 * (time.process_time() - start))
    times.sort()
    return {
        "searches": len(times),
        "search_median_ms": times[len(times) // 2],
        "search_p99_ms": times[int(len(times) * 0.99)],
        "search_slowest_ms": times[-1],
    }


def measure_steps(catalogue: Catalogue, episodes: int) -> dict[str, float]:
    """Steps per second of expert episodes without the expert's own time, and of random clicks."""
    spent, steps, total = 0.0, 0, 0.0
    for index in range(episodes):
        session = Session(catalogue, procedural.draw_goal(catalogue, 0, "test", index))
        expert = WebshopExpert()
        for _ in range(15):
            names = pages.action_list(session.clickables, session.has_search_bar)
            action = expert.act(StepResult(session.observe(), names))[1]
            start = time.process_time()
            reward, done = session.step(action)
            session.observe()
            spent += time.process_time() - start
            steps += 1
            total += reward
            if done:
                break
    return {
        "expert_episodes": episodes,
        "expert_mean_score": total / episodes,
        "expert_steps_per_s": steps / spent,
        "click_steps_per_s": random_clicks(catalogue, 20 * episodes),
    }


def random_clicks(catalogue: Catalogue, count: int) -> float:
    rng = random.Random(0)
    session = Session(catalogue, procedural.draw_goal(catalogue, 0, "test", 0))
    session.step("search[long lasting gift]")
    start = time.process_time()
    for _ in range(count):
        names = [name for name in session.clickables if name not in ("back to search", "buy now")]
        session.step(f"click[{rng.choice(names)}]")
        session.observe()
    return count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        if options.data is None:
            write_files(folder, options.products)
        catalogue, report = measure_load(folder)
    report |= measure_search(catalogue, 500)
    if options.data is None:
        report |= measure_steps(catalogue, options.episodes)
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:20} {value:,.2f}")


if __name__ == "__main__":
    main()
