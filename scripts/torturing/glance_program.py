"""A real Glance's image cache at work: run by the interpreter of a virtual environment that has
Glance, beside a mount on the same directory, until it is killed.

Owns this program only, which imports nothing of cachefs; says on standard output what was wrong.
"""

import contextlib
import importlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from torturing.content import Image


def open_cache(cache_dir: str, driver: str) -> Any:
    """Glance's own class, configured as its API server does."""
    config = importlib.import_module("oslo_config.cfg").CONF
    module = importlib.import_module("glance.image_cache")
    config([], project="glance", default_config_files=[])
    config.set_override("image_cache_dir", cache_dir)
    config.set_override("image_cache_driver", driver)
    config.set_override("image_cache_max_size", 2**40)
    return module.ImageCache()


def chunks(image: Image, dice: random.Random) -> Iterator[bytes]:
    """The image as a slow network brings it."""
    for start in range(0, image.size, 2**16):
        time.sleep(dice.random() * 0.004)
        yield image.read(start, start + 2**16)


def step(cache: Any, image: Image, dice: random.Random) -> None:
    """One thing that Glance does with an image."""
    action = dice.choice(("cache", "cache", "read", "read", "queue", "delete", "list"))
    if action == "cache":
        cache.cache_image_iter(image.name, chunks(image, dice), image.digest("md5"))
    elif action == "read" and cache.is_cached(image.name):
        with cache.open_for_read(image.name) as file:
            if file.read() != image.read(0, image.size):
                print(f"Glance reads wrong bytes of {image.name}", flush=True)
    elif action == "queue":
        cache.queue_image(image.name)
        cache.delete_queued_image(image.name)
    elif action == "delete" and dice.random() < 0.5:
        cache.delete_cached_image(image.name)
    elif action == "list":
        cache.get_cached_images()
        cache.get_cache_size()


def main() -> None:
    """Work until it is killed."""
    order = json.loads(sys.argv[1])
    images = [Image(**members) for members in order["images"]]
    dice = random.Random(order["seed"])
    cache = open_cache(order["cache"], order["driver"])
    print("ready", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        # What another has removed meanwhile is none of this program's business: only bytes are.
        with contextlib.suppress(Exception):
            step(cache, dice.choice(images), dice)
        print("step", flush=True)


if __name__ == "__main__":
    main()
