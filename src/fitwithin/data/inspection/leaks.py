"""What a run by itself sees of near twins across splits, from images that are decoded already."""

from __future__ import annotations

from PIL import Image

from fitwithin.data.inspection.greys import Greys, grey_of
from fitwithin.data.inspection.look import Seen
from fitwithin.data.inspection.twins import find
from fitwithin.data.pack import Pack

#: Seconds that an image takes, at the most (60,000 images of 84 px: 0.6 ms each), and the share of a run's time that
#: may be spent so.
IMAGE_S, SHARE = 0.002, 0.01


def affordable(pack: Pack, left_s: float) -> bool:
    """Whether looking for near twins costs next to nothing in a run that has so many seconds left."""
    return len(pack) * IMAGE_S <= SHARE * left_s


def near_leaks(pack: Pack) -> tuple[str, ...]:
    """Sentences on images of val and test that are near twins of training images; copies are not counted again."""
    train, seen = set(pack.indices("train").tolist()), []
    with Greys(len(pack)) as greys:
        for position in range(len(pack)):
            image = Image.fromarray(pack.image(position))
            greys.put(position, grey_of(image).tobytes())
            seen.append(Seen(digest=int(pack.crcs[position]).to_bytes(4), width=image.width, height=image.height))
        twins = find(seen, greys, lambda done, total: None)
    notes = []
    for split in ("val", "test"):
        mine = set(pack.indices(split).tolist())
        found = sorted(
            (pack.paths[one], pack.paths[other])
            for pair in twins
            for one, other in (pair[:2], pair[1::-1])
            if not pair.exact and one in mine and other in train
        )
        if count := len({one for one, _ in found}):
            one, other = found[0]
            images = "image is a near twin" if count == 1 else "images are near twins"
            notes.append(
                f"{count:,} {split} {images} of training images, such as {one} and {other}: "
                f"the {split} accuracy is too good; `fitwithin inspect` lists them"
            )
    return tuple(notes)
