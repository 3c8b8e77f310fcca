"""WebDataset shards and parquet files in the forms that img2dataset writes."""

import io
import json
import tarfile

from pictures import image_bytes


def write_tar(path, samples):
    """`samples`: key -> {suffix: bytes, text or JSON value}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, content in members.items():
                if isinstance(content, dict):
                    content = json.dumps(content)
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def laion_sample(number, height=40, width=60, **fields):
    caption = fields.pop("caption", f"caption {number}")
    facts = {"caption": caption, "url": "https://example.org/x.jpg", "key": f"{number:09d}", "status": "success"}
    return {"jpg": image_bytes(height, width, number, "JPEG"), "txt": caption, "json": {**facts, **fields}}


def write_shards(folder, sizes, shape=lambda number: (40, 60)):
    """Shards with so many samples each, numbered through; all captions are different."""
    number = 0
    for shard, size in enumerate(sizes):
        numbers = range(number, number + size)
        write_tar(folder / f"{shard:05d}.tar", {f"{n:09d}": laion_sample(n, *shape(n)) for n in numbers})
        number += size
    return folder
